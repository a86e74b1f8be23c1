"""Features of whole videos against one pass of the network, and against windows cut by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from support.small_features import (
    flow_frames,
    one_pass,
    rgb,
    save_other_weights,
    save_video,
    save_weights,
)
from support.small_weights import INFO

from i3d_jax import features, flow, models, video, weights
from i3d_jax.features import networks

RTOL = 2e-6  # Of the greatest feature.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of several lengths, and small networks."""
    folder = tmp_path_factory.mktemp("videos")
    for frames in 9, 30, 57, 64:
        save_video(folder / f"{frames}.mp4", frames, frames)
    (folder / "bad.mp4").write_text("no video")
    save_video(folder / "short.mp4", 5)
    save_video(folder / "wide.mp4", 20, 1, width=80)
    for stream in "rgb", "flow":
        save_weights(folder, stream)
    return folder


def extract(folder, names, streams=("rgb",), layer="AvgPool", **options):
    """The features of videos by name; `options` of Reading and Extraction."""
    reading = {name: options.pop(name) for name in [*options] if name in features.Reading._fields}
    how = features.Reading(streams, **({"short_side": 40, "size": 32} | reading))
    sources = features.load([f"{folder}/{stream}.safetensors" for stream in streams], layer)
    what = features.Extraction(sources, how, **options)
    paths = [folder / name for name in names]
    return {path.rpartition("/")[2]: found for path, found in features.extract(paths, what)}


def same(found, wanted):
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=RTOL * abs(wanted).max(initial=1e-9))


def test_dense_rows_equal_one_pass_whatever_the_order_and_bad_videos_are_named(folder):
    names = ["9.mp4", "bad.mp4", "64.mp4", "short.mp4", "30.mp4", "57.mp4"]
    found = extract(folder, names)
    assert set(found) == {*names}
    for name in "9.mp4", "30.mp4", "57.mp4", "64.mp4":
        wanted = one_pass(f"{folder}/rgb.safetensors", rgb(folder / name))[:, 0, 0]
        same(found[name].features, wanted)
        frames = int(name[:-4])
        assert found[name].length == frames and len(wanted) == -(-frames // 8) - 1
    assert "cannot be decoded" in str(found["bad.mp4"])
    assert "too short: 5 frames at 25 per second, and at least 9" in str(found["short.mp4"])
    again = extract(folder, names[::-1])
    for name, one in found.items():
        if isinstance(one, features.Features):
            np.testing.assert_array_equal(one.features, again[name].features)


@pytest.mark.slow  # Compiles TV-L1 and two networks.
def test_both_streams_are_rgb_first_then_flow(folder):
    options = {"tv_l1": flow.FAST}
    found = extract(folder, ["30.mp4"], ("flow", "rgb"), **options)["30.mp4"]
    assert [stream for stream, _ in found.streams] == ["rgb", "flow"]
    parts = [
        one_pass(f"{folder}/rgb.safetensors", rgb(folder / "30.mp4")),
        one_pass(f"{folder}/flow.safetensors", flow_frames(folder / "30.mp4")),
    ]
    same(found.features, np.concatenate([part[:, 0, 0] for part in parts], -1))


@pytest.mark.slow  # Compiles three programs.
def test_other_layers_are_averaged_over_space_or_not(folder):
    wanted = one_pass(f"{folder}/rgb.safetensors", rgb(folder / "30.mp4"), "Mixed_4f")
    found = extract(folder, ["30.mp4"], layer="Mixed_4f")["30.mp4"]
    same(found.features, wanted.mean((1, 2)))
    # Two steps of stride 2 in time: a row per 4 frames.
    assert found.spans[:2].tolist() == [[0, 4], [4, 8]] and len(found.spans) == 8
    same(extract(folder, ["30.mp4"], layer="Mixed_4f", keep_space=True)["30.mp4"].features, wanted)


@pytest.mark.parametrize("partial", ["drop", "pad", "loop"])
def test_windows_are_whole_videos_for_the_network(partial, folder):
    windows = features.Windows(16, 12, partial)
    names = ["9.mp4", "30.mp4", "bad.mp4", "57.mp4"]
    found = extract(folder, names, windows=windows)
    assert "cannot be decoded" in str(found["bad.mp4"])
    for name in "9.mp4", "30.mp4", "57.mp4":
        frames, wanted = rgb(folder / name), []
        for start in range(0, len(frames), 12):
            cut = frames[start : start + 16]
            missing = 16 - len(cut)
            if missing and partial == "drop" or start and len(frames) <= start + 4:
                break
            more = cut[-1:] if partial == "pad" else cut
            cut = np.concatenate([cut, *[more] * missing])[:16]
            wanted.append(one_pass(f"{folder}/rgb.safetensors", cut).mean((0, 1, 2)))
        same(found[name].features, np.reshape(wanted, (-1, 64)).astype(np.float32))


@pytest.mark.slow  # Compiles for many shapes.
def test_ten_crops_are_corners_centre_and_their_mirror_images(folder):
    for options in {}, {"windows": features.Windows(16, 16)}:
        found = extract(folder, ["30.mp4"], crop="ten", **options)["30.mp4"].features
        whole = rgb(folder / "30.mp4", crop=None)
        assert whole.shape[1:3] == (40, 53)
        places = [(0, 0), (0, 21), (8, 0), (8, 21), (4, 10)]
        cuts = [whole[:, top : top + 32, left : left + 32] for top, left in places]
        cuts += [cut[:, :, ::-1] for cut in cuts]
        for number, cut in enumerate(cuts):
            if options:
                part = one_pass(f"{folder}/rgb.safetensors", cut[:16]).mean((0, 1, 2))
                same(found[0, number], part)
            else:
                same(found[:, number], one_pass(f"{folder}/rgb.safetensors", cut)[:, 0, 0])


def test_mirrored_flow_goes_the_other_way():
    uv = np.random.default_rng(0).normal(size=(40, 50, 2)).astype(np.float32)
    found = features.reading.crops(uv, "ten", 32)
    np.testing.assert_array_equal(found[5:, ..., 0], -found[:5, :, ::-1, 0])
    np.testing.assert_array_equal(found[5:, ..., 1], found[:5, :, ::-1, 1])


@pytest.mark.slow  # Compiles for many shapes.
def test_whole_frames_of_several_sizes(folder):
    names = ["30.mp4", "wide.mp4", "57.mp4"]
    for options in {}, {"windows": features.Windows(16, 16, "drop")}:
        found = extract(folder, names, crop="whole", **options)
        for name in names:
            frames = rgb(folder / name, crop=None)
            if options:
                wanted = one_pass(f"{folder}/rgb.safetensors", frames[:16]).mean((0, 1, 2))
                same(found[name].features[0], wanted)
            else:
                wanted = one_pass(f"{folder}/rgb.safetensors", frames)[:, 0, 0]
                same(found[name].features, wanted)


def test_a_video_is_read_at_its_own_rate(folder, tmp_path):
    save_video(tmp_path / "50.mp4", 60, rate=50)
    (tmp_path / "rgb.safetensors").symlink_to(folder / "rgb.safetensors")
    found = extract(tmp_path, ["50.mp4"], fps=None)["50.mp4"]
    # The encoder has the last frame shown for 40 ms.
    assert found.fps == 50 and found.length == 61
    same(
        found.features,
        one_pass(f"{folder}/rgb.safetensors", rgb(tmp_path / "50.mp4", fps=50))[:, 0, 0],
    )
    start, end, centre = found.seconds
    np.testing.assert_allclose(centre[:3], [8 / 50, 16 / 50, 24 / 50])
    assert start[0] == 0 and end[-1] == 61 / 50


def test_a_row_per_frame(folder):
    dense = extract(folder, ["57.mp4"])["57.mp4"].features
    found = extract(folder, ["57.mp4"], per_frame="nearest")["57.mp4"]
    assert found.features.shape == (57, 64) and found.spans[3].tolist() == [3, 4]
    np.testing.assert_array_equal(found.features[8:20:8], dense[[0, 1]])


@pytest.mark.parametrize("wrong", [-20, -3, 5, 40])
def test_a_length_that_was_predicted_wrongly_is_corrected(wrong, folder, monkeypatch):
    whole = video.predicted_length
    monkeypatch.setattr(
        video, "predicted_length", lambda path, fps: whole(path, fps) + wrong * ("57" in path)
    )
    found = extract(folder, ["30.mp4", "57.mp4", "64.mp4"])
    for name in "30.mp4", "57.mp4", "64.mp4":
        wanted = one_pass(f"{folder}/rgb.safetensors", rgb(folder / name))[:, 0, 0]
        same(found[name].features, wanted)


@pytest.mark.parametrize("predicted", [3, 15, 40])
def test_a_short_video_is_read_whatever_its_predicted_length(predicted, folder, monkeypatch):
    monkeypatch.setattr(video, "predicted_length", lambda path, fps: predicted)
    found = extract(folder, ["short.mp4", "9.mp4"])
    wanted = one_pass(f"{folder}/rgb.safetensors", rgb(folder / "9.mp4"))[:, 0, 0]
    same(found["9.mp4"].features, wanted)
    assert "too short: 5 frames" in str(found["short.mp4"])


def test_a_video_whose_length_changes_is_named(folder, monkeypatch):
    counts = iter([57, 20, 30, 40])
    whole = video.rgb_frames
    monkeypatch.setattr(
        video,
        "rgb_frames",
        lambda *given, **options: iter([*whole(*given, **options)][: next(counts)]),
    )
    monkeypatch.setattr(video, "predicted_length", lambda path, fps: 33)
    found = extract(folder, ["57.mp4"])
    assert "has another length each time that it is read" in str(found["57.mp4"])


def test_an_error_in_mid_video_is_that_videos(folder, monkeypatch):
    whole = video.rgb_frames

    def failing(path, **options):
        for number, frame in enumerate(whole(path, **options)):
            if "57" in path and number == 40:
                raise MemoryError
            yield frame

    monkeypatch.setattr(video, "rgb_frames", failing)
    for options in {}, {"windows": features.Windows(16, 16, "drop")}:
        found = extract(folder, ["30.mp4", "57.mp4", "64.mp4"], **options)
        assert "57.mp4: cannot be read: not enough memory" in str(found["57.mp4"])
        assert {len(found[name].features) for name in ("30.mp4", "64.mp4")} == (
            {1, 4} if options else {3, 7}
        )


@pytest.mark.slow  # Compiles for other devices.
def test_features_do_not_depend_on_the_number_of_devices(folder, monkeypatch):
    for options in {}, {"windows": features.Windows(16, 9)}:
        found = extract(folder, ["30.mp4", "57.mp4"], **options)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
            patch.setattr(jax, "local_device_count", lambda: 1)
            alone = extract(folder, ["30.mp4", "57.mp4"], **options, batch_size=5)
        for name in found:
            np.testing.assert_array_equal(found[name].features, alone[name].features)


@pytest.mark.slow  # Compiles for large batches.
@pytest.mark.parametrize("crop", ["centre", "ten"])
def test_batches_of_accelerators_give_the_same_rows(crop, folder, tmp_path, monkeypatch):
    """On CPUs clips are computed one by one; here they are not."""
    monkeypatch.setattr(networks, "one_by_one", lambda: False)
    lengths = [9, 33, 12, 64, 20, 41, 57, 16, 90, 10]
    for number, frames in enumerate(lengths):
        save_video(tmp_path / f"{number}.mp4", frames, number)
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "rgb.safetensors").symlink_to(folder / "rgb.safetensors")
    names = [*(f"{number}.mp4" for number in range(5)), "bad.mp4"]
    names += [f"{number}.mp4" for number in range(5, 10)]
    for options in {}, {"windows": features.Windows(16, 12)}:
        found = extract(tmp_path, names, **options, crop=crop, batch_size=3)
        assert len(found) == 11 and isinstance(found["bad.mp4"], video.VideoError)
        with monkeypatch.context() as patch:
            patch.setattr(networks, "one_by_one", lambda: True)
            alone = extract(tmp_path, names, **options, crop=crop)
        for number in range(10):
            one = found[f"{number}.mp4"]
            assert one.length == lengths[number]
            same(one.features, alone[f"{number}.mp4"].features)


def test_no_video_is_read_further_than_needed(folder, monkeypatch):
    """However long a video is, few of its frames are in memory."""
    frame, given = np.zeros((40, 53, 3), np.uint8), []
    monkeypatch.setattr(video, "predicted_length", lambda path, fps: 10**6)
    monkeypatch.setattr(
        video, "rgb_frames", lambda path, **_: (given.append(1) or frame for _ in range(10**6))
    )
    sources = features.load([f"{folder}/rgb.safetensors"])
    what = features.Extraction(sources, features.Reading(short_side=40, size=32))
    done = []

    def advance(frames):
        done.append(frames)
        if len(done) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        [*features.extract([folder / "30.mp4"], what, advance)]
    assert sum(done) == 320 and len(given) <= 320 + 3 * 16


@pytest.mark.slow  # Compiles two networks.
@pytest.mark.parametrize(
    "name,layer,rows,span",
    # The last 14 frames are no window of 16.
    [("inception", "AvgPool", 30, 1), ("c3d", "Dense_7", 1, 16)],
)
def test_networks_of_frames_and_of_16_frames(name, layer, rows, span, folder):
    path = save_other_weights(folder, name)
    sources = features.load([path], layer)
    what = features.Extraction(sources, features.reading_for(sources))
    ((_, found),) = features.extract([folder / "30.mp4"], what)
    assert isinstance(found, features.Features) and found.spans[-1].tolist() == [
        (rows - 1) * span,
        rows * span,
    ]
    wanted = one_pass(path, rgb(folder / "30.mp4")[: rows * span], layer)
    same(found.features, wanted.reshape(rows, -1))


@pytest.mark.parametrize(
    "stem,footprint,fps,rows", [("8x8", (38, 8), 3.75, 2), ("32x2", (150, 2), 15.0, 8)]
)
def test_frames_lie_as_far_apart_as_a_networks_clips_have_them(
    stem, footprint, fps, rows, tmp_path
):
    options = dict(width=0.1, depth=14, stem=stem)
    network = models.build("i3d_r50", num_classes=len(INFO.classes), **options)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 8, 32, 32, 3), "f"))
    info = dataclasses.replace(
        INFO, model="i3d_r50", options=options, footprint={"rgb": footprint}, fps=30.0
    )
    path = tmp_path / "resnet.safetensors"
    weights.save(path, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), info)
    (source,) = features.load([str(path)])
    assert features.reading_for([source]).fps == fps
    assert source.grid.spans(16).tolist()[-1] == [16 - rows, 16]


@pytest.mark.slow  # Initialises a network.
def test_networks_of_frames_that_lie_apart_are_refused(folder):
    with pytest.raises(weights.WeightsError, match="convnet_lstm takes frames that lie apart"):
        features.load([save_other_weights(folder, "convnet_lstm")])


@pytest.mark.parametrize(
    "names,options,message",
    [
        (["rgb"], {"layer": "Mixed_9z"}, "has no layer 'Mixed_9z'; there are .*Conv_1a, "),
        (["rgb"], {"stream": "both"}, "weights for rgb, not for both"),
    ],
)
def test_networks_that_do_not_fit_are_refused(names, options, message, folder):
    with pytest.raises(weights.WeightsError, match=message):
        features.load([f"{folder}/{name}.safetensors" for name in names], **options)


def test_windows_that_are_too_short_are_refused(folder):
    with pytest.raises(ValueError, match="windows of 8 frames, wanted 9 at least"):
        extract(folder, ["30.mp4"], windows=features.Windows(8, 8))


@pytest.mark.slow  # Runs a network of full size over 10 s of video, twice.
def test_real_features_of_a_real_clip_equal_one_pass(shared_data):
    name = str(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")
    path = shared_data / "clips" / "flipping_a_pancake.mkv"
    sources = features.load([name])
    what = features.Extraction(sources, features.reading_for(sources))
    ((_, found),) = features.extract([path], what)
    frames = video.decode(path, short_side=256, crop=224)
    assert isinstance(found, features.Features) and found.length == len(frames) == 259
    wanted = one_pass(name, frames)[:, 0, 0]
    assert found.features.shape == wanted.shape == (32, 1024)
    np.testing.assert_allclose(found.features, wanted, rtol=0, atol=1e-5 * wanted.max())
