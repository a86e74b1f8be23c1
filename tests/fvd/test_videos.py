"""Sets of videos of every kind, and the clips that are cut out of them."""

import os

import numpy as np
import pytest
from PIL import Image
from support.small_features import save_video

from i3d_jax import video
from i3d_jax.fvd import clips, videos
from i3d_jax.fvd.clips import Clip, Facts, Selection


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def read(given, number=0, start=0):
    return np.stack([*given.frames(number, start)])


def test_arrays_are_read_one_video_at_a_time(tmp_path):
    array = noise(3, 10, 6, 8, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", array)
    np.savez_compressed(tmp_path / "c.npz", videos=array, other=np.zeros(3))
    for name in "a.npy", "b.npz", "c.npz":
        given = videos.open_set(str(tmp_path / name))
        assert given.names == ["000000000", "000000001", "000000002"]
        assert given.length(1) == (10, None)
        for number in 2, 0, 1:  # In any order.
            np.testing.assert_array_equal(read(given, number, 4), array[number, 4:])


def test_grey_becomes_rgb_and_floats_keep_their_fractions(tmp_path):
    grey = noise(2, 9, 6, 8)
    np.save(tmp_path / "grey.npy", grey)
    np.testing.assert_array_equal(
        read(videos.open_set(str(tmp_path / "grey.npy")), 1), np.repeat(grey[1, ..., None], 3, -1)
    )
    for dtype in np.float16, np.float32, np.float64:
        floats = np.random.default_rng(0).uniform(size=(1, 9, 6, 8, 3)).astype(dtype)
        np.save(tmp_path / "floats.npy", floats)
        found = read(videos.open_set(str(tmp_path / "floats.npy")))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, floats[0].astype(np.float32) * 255, rtol=1e-6)


@pytest.mark.parametrize(
    "array,message",
    [
        (np.zeros((2, 9, 6, 8, 4), np.uint8), "leave out the transparency: videos[..., :3]"),
        (np.zeros((0, 9, 6, 8, 3), np.uint8), "[0, 9, 6, 8, 3], wanted [N, T, H, W, 3]"),
        (np.zeros((9, 8, 3), np.uint8), "wanted [N, T, H, W, 3]"),
        (np.zeros((2, 9, 6, 8, 3), np.int32), "wanted uint8, or floats from 0 to 1"),
        (np.asfortranarray(np.zeros((2, 9, 6, 8, 3), np.uint8)), "Fortran order"),
    ],
)
def test_arrays_that_are_no_videos_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError) as error:
        videos.open_set(str(tmp_path / "x.npy"))
    assert message in str(error.value) and "x.npy" in str(error.value)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.npz").write_text("no array")
    np.save(tmp_path / "object.npy", np.array([{}], object))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "video.mp4").write_bytes(b"")
    wanted = {
        "text.npy": "cannot be read as an array",
        "text.npz": "cannot be read as an array",
        "object.npy": "object",
        "two.npz": "the arrays a, b, wanted one, or videos",
        "video.mp4": "is a file, wanted a folder, .npy or .npz",
    }
    for name, message in wanted.items():
        with pytest.raises(ValueError, match=message):
            videos.open_set(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        videos.open_set(str(tmp_path / "nothing"))


@pytest.mark.parametrize("value,message", [(np.nan, "has NaN"), (1.5, "has values from 0 to 1.5")])
def test_floats_out_of_range_are_the_fault_of_their_video(value, message):
    array = np.zeros((3, 9, 4, 4, 3), np.float32)
    array[1, 5, 2, 2, 2] = value
    given = videos.Arrays(array)
    assert len(read(given, 0)) == len(read(given, 2)) == 9
    with pytest.raises(video.VideoError, match=f"videos: video 1: {message}"):
        read(given, 1)


def test_a_cut_array_has_its_whole_videos(tmp_path):
    np.save(tmp_path / "x.npy", noise(3, 9, 6, 8, 3))
    os.truncate(tmp_path / "x.npy", os.path.getsize(tmp_path / "x.npy") - 10)
    given = videos.open_set(str(tmp_path / "x.npy"))
    assert len(read(given, 1)) == 9
    with pytest.raises(video.VideoError, match="video 2: is cut off"):
        read(given, 2)


def test_folders_of_frames_are_videos_in_the_order_of_their_numbers(tmp_path):
    array = noise(2, 12, 6, 8, 3)
    for name, frames in zip(("b/2", "a"), array, strict=True):
        (tmp_path / name).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"frame{number}.png")
    given = videos.open_set(str(tmp_path))
    assert given.kind == "frames" and given.names == ["a", "b/2"]
    assert given.length(0) == (12, None)
    np.testing.assert_array_equal(read(given, 0, 3), array[1, 3:])
    np.testing.assert_array_equal(read(given, 1), array[0])


def test_images_of_every_usual_mode_are_rgb(tmp_path):
    path, grey = str(tmp_path / "x.png"), noise(6, 8)
    rgb, opaque = np.repeat(grey[..., None], 3, -1), np.full((6, 8, 1), 255, np.uint8)
    for image in grey, rgb, np.concatenate([rgb, opaque], -1):
        Image.fromarray(image).save(path)
        np.testing.assert_array_equal(videos.read_image(path), rgb)
    Image.fromarray(np.concatenate([rgb, opaque // 2], -1)).save(path)
    with pytest.raises(video.VideoError, match="transparent pixels"):
        videos.read_image(path)
    Image.fromarray(grey.astype(np.uint16) * 256).save(path)
    with pytest.raises(video.VideoError, match="more than 8 bits"):
        videos.read_image(path)
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(video.VideoError, match=r"x\.png: cannot be read as an image"):
        videos.read_image(path)


def test_folders_without_videos_or_with_both_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no videos and no images"):
        videos.open_set(str(tmp_path))
    Image.fromarray(noise(6, 8)).save(tmp_path / "x.png")
    save_video(tmp_path / "x.mp4", 3)
    with pytest.raises(ValueError, match="has 1 videos and 1 images, wanted one kind"):
        videos.open_set(str(tmp_path))


def test_video_files_are_read_at_their_own_rate_or_another(tmp_path):
    save_video(tmp_path / "x" / "a.mp4", 20, rate=10)
    given = videos.open_set(str(tmp_path))
    assert given.kind == "videos" and given.names == ["x/a.mp4"]
    assert given.length(0) == (20, 10.0)
    np.testing.assert_array_equal(
        read(given, 0, 5), video.decode(tmp_path / "x" / "a.mp4", fps=10, start=5)
    )
    faster = videos.open_set(str(tmp_path), fps=20)
    assert faster.length(0) == (len(read(faster)), 20.0) == (39, 20.0)


def test_random_clips_depend_on_the_seed_and_the_name_only():
    choose = Selection("random", seed=3).starts
    assert choose("a", 100, 16, 16) == choose("a", 100, 16, 16)
    assert choose("a", 16, 16, 16) == [0]
    starts = [choose(str(number), 40, 16, 16)[0] for number in range(2000)]
    counts = np.bincount(starts)
    assert len(counts) == 25  # 0 to 24.
    assert counts.min() > 40 and counts.max() < 125  # 80 are expected of each.
    assert Selection("random", seed=4).starts("a", 100, 16, 16) != choose("a", 100, 16, 16)


def clips_of(array, *selections, frames=16, stride=1):
    """The clips of all videos of an array."""
    found = clips.read_clips(
        videos.Arrays(array), range(len(array)), lambda: selections, frames, stride
    )
    return [each for each in found if isinstance(each, Clip)]


def test_all_clips_lie_side_by_side():
    array = noise(1, 50, 4, 4, 3)
    found = clips_of(array, Selection("all"))
    assert [each.start for each in found] == [0, 16, 32]
    for each in found:
        np.testing.assert_array_equal(each.frames, array[0, each.start : each.start + 16])


def test_strided_clips_have_every_nth_frame():
    array = noise(1, 70, 4, 4, 3)
    found = clips_of(array, Selection("all"), Selection("random"), stride=3, frames=9)
    for each in found:
        np.testing.assert_array_equal(each.frames, array[0, each.start :: 3][:9])
    # Nine frames, three apart, span 25; the next clip begins 27 on.
    assert [each.start for each in found if Selection("all") in each.selections] == [0, 27]


def test_a_clip_that_two_selections_take_is_read_once():
    first, every = Selection("first"), Selection("all")
    found = clips_of(noise(2, 40, 4, 4, 3), first, every)
    assert [(each.video, each.start, len(each.selections)) for each in found] == [
        (0, 0, 2),
        (0, 16, 1),
        (1, 0, 2),
        (1, 16, 1),
    ]


def test_a_short_video_is_an_error_and_the_next_ones_go_on(tmp_path):
    for name, frames in (("a", 20), ("b", 12), ("d", 16)):
        save_video(tmp_path / f"{name}.mp4", frames)
    (tmp_path / "c.mp4").write_text("no video")
    given = videos.open_set(str(tmp_path))
    found = [*clips.read_clips(given, range(4), lambda: [Selection("random")], 16)]
    assert [type(each) for each in found] == [
        Facts,
        Clip,
        video.VideoError,
        video.VideoError,
        Facts,
        Clip,
    ]
    assert "b.mp4: too short: 12 frames, wanted 16 at least" in str(found[2])
    assert "c.mp4" in str(found[3])


def test_a_video_that_ends_before_its_stated_end_gives_a_clip_of_what_it_has(tmp_path):
    class Shorter(videos.Arrays):
        def length(self, number):
            return 400, None

    array = noise(30, 17, 2, 2, 3)
    found = [*clips.read_clips(Shorter(array), range(30), lambda: [Selection("random")], 16)]
    assert {each.start for each in found if isinstance(each, Clip)} == {0, 1}
    assert sum(isinstance(each, Clip) for each in found) == 30


def test_clips_know_whether_they_move_and_whether_they_are_equal():
    array = noise(4, 16, 4, 4, 3)
    array[1] = array[1, :1]
    array[3] = array[0]
    found = clips_of(array, Selection("first"))
    assert [each.is_static for each in found] == [False, True, False, False]
    assert found[0].digest == found[3].digest
    assert len({each.digest for each in found}) == 3
