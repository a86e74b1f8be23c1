import concurrent.futures
import functools
import io
import itertools

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from av.video.frame import PictureType
from support.videos import colours, exact_rgb

from i3d_jax import pixels, video
from i3d_jax.video import decoding, h264, planes, windows
from i3d_jax.video.planes import Window

HEIGHT, WIDTH, COUNT = 50, 66, 61
GOPS = [1, 5, 16, 250]


def pictures(count, height, width):
    """Coloured shapes with grain; the camera moves past them by a pixel a frame."""
    y, x = np.mgrid[: height + count, :width]
    waves = [np.sin(x / 11 + c) * np.cos(y / 13 + 2 * c) for c in range(3)]
    grain = np.random.default_rng(0).integers(-20, 21, (height + count, width, 1))
    scene = np.clip(128 + 90 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)
    return np.stack([scene[number : number + height] for number in range(count)])


def flows(count, height, width):
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    return pixels.flow_bytes(
        10 * np.stack([np.sin(x / 10 + t / 5), np.cos(y / 10 - x / 30 + t / 6)], -1)
    )


@functools.cache
def stored(stream, gop, height=HEIGHT, width=WIDTH, count=COUNT):
    frames = (pictures if stream == "rgb" else flows)(count, height, width)
    return h264.encode(frames, gop=gop)


@functools.cache
def whole(data):
    """All frames of a file as FFmpeg's decoder gives them, in order: I420, or grey."""
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_ndarray() for frame in file.decode(video=0)]


def cut(frame, window, stream, height=HEIGHT, width=WIDTH):
    """The expected part of a frame, indexed pixel by pixel; beyond the frame its last pixel."""

    def part(plane, top, left, size):
        rows, columns = (
            np.minimum(np.arange(n, n + size), m - 1)
            for n, m in zip((top, left), plane.shape, strict=True)
        )
        return plane[rows[:, None], columns[None]]

    if stream == "flow":
        return np.concatenate(
            [part(half, *window) for half in frame[: 2 * height].reshape(2, height, width)]
        )
    y, u, v = np.split(frame.ravel(), [height * width, height * width * 5 // 4])
    u, v = (colour.reshape(height // 2, width // 2) for colour in (u, v))
    top, left, size = window.top // 2, window.left // 2, window.size // 2 + 1
    brightness = part(y.reshape(height, width), 2 * top, 2 * left, 2 * size)
    return np.concatenate(
        [brightness, np.concatenate([part(u, top, left, size), part(v, top, left, size)], 1)]
    )


def assert_reads(stream, window, gop=16, start=0, frames=3, stride=1):
    data = stored(stream, gop)
    wanted = [cut(frame, window, stream) for frame in whole(data)[start::stride][:frames]]
    found = windows.read(data, window, stream=stream, start=start, frames=frames, stride=stride)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack(wanted))


def test_files_have_b_frames_and_key_frames():
    # Otherwise nothing could be skipped in the tests below.
    for stream, gop in itertools.product(("rgb", "flow"), GOPS):
        with av.open(io.BytesIO(stored(stream, gop))) as file:
            kinds = [PictureType(frame.pict_type) for frame in file.decode(video=0)]
        assert len(kinds) == COUNT and kinds.count(PictureType.I) >= COUNT // gop
        assert (PictureType.B in kinds) == (gop > 1)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize("top", [0, 1, 6, 7, HEIGHT - 17, HEIGHT - 16])
@pytest.mark.parametrize("left", [0, 1, 12, 13, WIDTH - 17, WIDTH - 16])
def test_windows_are_cut_exactly_wherever_they_are(top, left, stream):
    assert_reads(stream, Window(top, left, 16))


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_window_may_be_all_of_the_frame(stream):
    data = stored(stream, 16, 48, 48, 5)
    found = windows.read(data, Window(0, 0, 48), stream=stream, frames=5)
    wanted = [cut(frame, Window(0, 0, 48), stream, 48, 48) for frame in whole(data)]
    np.testing.assert_array_equal(found, np.stack(wanted))
    assert found.shape == ((5, 75, 50) if stream == "rgb" else (5, 96, 48))


@pytest.mark.parametrize("gop", GOPS)
@pytest.mark.parametrize("stride", [1, 2, 5, 10])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_frames_that_nobody_wants_are_skipped_and_the_others_are_exact(stream, stride, gop):
    for start in range(0, COUNT, 3):
        assert_reads(stream, Window(start % 7, start % 11, 20), gop, start, 1 + start % 6, stride)


def test_a_video_that_ends_early_gives_what_there_is():
    for start, stride, count in (0, 1, COUNT), (COUNT - 1, 1, 1), (COUNT - 4, 3, 2), (10, 7, 8):
        assert_reads("rgb", Window(3, 3, 16), 16, start, 99, stride)
        assert (
            len(
                windows.read(
                    stored("rgb", 16), Window(3, 3, 16), start=start, stride=stride, frames=99
                )
            )
            == count
        )
    for start in COUNT, COUNT + 1, 100_000:
        with pytest.raises(video.VideoError, match=rf"\d+ bytes of video: has no frame {start}$"):
            windows.read(stored("rgb", 16), Window(0, 0, 16), start=start, frames=1)


def test_transcoded_videos_are_read_exactly(tmp_path):
    (tmp_path / "x").write_bytes(stored("rgb", 250))
    data = h264.transcode(tmp_path / "x", short_side=46).data
    assert len(whole(data)) == COUNT
    for start, stride in itertools.product((0, 1, 15, 17, 40), (1, 5)):
        found = windows.read(data, Window(5, 8, 30), start=start, frames=4, stride=stride)
        wanted = [
            cut(frame, Window(5, 8, 30), "rgb", 46, 60) for frame in whole(data)[start::stride][:4]
        ]
        np.testing.assert_array_equal(found, np.stack(wanted))


def test_threads_do_not_mix_their_windows():
    corners = [Window(n, 2 * n, 16) for n in range(12)]

    def read(window):
        return windows.read(stored("rgb", 16), window, start=window.top, frames=9, size=(60, 80))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, window in zip(pool.map(read, corners), corners, strict=True):
            np.testing.assert_array_equal(found, read(window))


def cropped(packed, corner=(0, 0)):
    """Unpacks planes [T, ...] to RGB from 0 to 255, not rounded."""
    clips = {
        "rgb": packed[None],
        "corner": np.array([corner], np.int32),
        "mirrored": np.zeros(1, bool),
    }
    return 127.5 * (np.asarray(planes.unpack(clips)["rgb"][0]) + 1)


@pytest.mark.parametrize("short_side", [32, 41, 64])
@pytest.mark.parametrize("corner", [(0, 0), (3, 5), (7, 2), (8, 18)])
def test_frames_are_resized_before_a_window_is_cut(corner, short_side):
    data = stored("rgb", 16)
    wanted = video.decode(data, short_side=short_side, start=7, frames=6, stride=4).astype(float)
    size = decoding.resized_shape(HEIGHT, WIDTH, short_side)
    assert wanted.shape[1:3] == size
    # At the ends of the frames, too.
    corners = [corner, (size[0] - 24, size[1] - 24)] if corner == (8, 18) else [corner]
    for top, left in corners:
        packed = windows.read(data, Window(top, left, 24), start=7, frames=6, stride=4, size=size)
        assert packed.shape == (6, 39, 26)
        found = cropped(packed, (top % 2, left % 2))
        differences = {
            (y, x): abs(found - part).mean()
            for y, x in itertools.product(
                range(max(0, top - 1), top + 2), range(max(0, left - 1), left + 2)
            )
            if (part := wanted[:, y : y + 24, x : x + 24]).shape == found.shape
        }
        assert min(differences, key=lambda place: differences[place]) == (top, left)
        assert differences[top, left] < 5


@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize(
    "window", [(0, 0, 52), (35, 0, 16), (0, 51, 16), (-1, 0, 16), (0, -2, 16), (48, 64, 4)]
)
def test_a_window_outside_the_frame_is_named(window, stream):
    with pytest.raises(
        ValueError,
        match=rf"cannot cut {window[2]}x{window[2]} at .{window[0]}, {window[1]}. .* 50x66",
    ):
        windows.read(stored(stream, 16), Window(*window), stream=stream, frames=1)


def test_flow_cannot_be_resized():
    with pytest.raises(ValueError, match=r"resizing to \(40, 60\), but flow cannot be resized"):
        windows.read(stored("flow", 16), Window(0, 0, 16), stream="flow", frames=1, size=(40, 60))


def test_what_cannot_be_decoded_is_an_error_that_says_so():
    data = stored("rgb", 16)
    for bad in (
        data[:300],
        data[: len(data) // 2],
        b"",
        b"text" * 99,
        data.replace(b"avc1", b"zzzz"),
    ):
        with pytest.raises(video.VideoError, match=rf"^{len(bad)} bytes of video: .*decoded"):
            windows.read(bad, Window(0, 0, 16), frames=1)
    tagged = data.replace(b"Lavf", b"Caf\xe9")  # This tag is not UTF-8.
    assert tagged != data
    np.testing.assert_array_equal(
        windows.read(tagged, Window(0, 0, 16), frames=3),
        windows.read(data, Window(0, 0, 16), frames=3),
    )


def test_around_a_window_is_the_even_one_that_holds_it():
    for top, left in itertools.product(range(4), range(4)):
        outer = planes.even_window(Window(top, left, 10))
        assert outer == (top - top % 2, left - left % 2, 12)


def packed_clips(batch=8, count=3, size=6):
    """Clips of every corner, each as it is and mirrored."""
    rng = np.random.default_rng(0)
    return {
        "rgb": rng.integers(16, 236, (batch, count, (size + 2) * 3 // 2, size + 2)).astype(
            np.uint8
        ),
        "flow": rng.integers(0, 256, (batch, 2 * count, 2 * size, size)).astype(np.uint8),
        "corner": np.array(list(itertools.product((0, 1), (0, 1))) * 2, np.int32),
        "mirrored": np.arange(8) >= 4,
    }


def test_clips_are_cropped_at_their_corners_and_mirrored_as_they_are_to_be():
    clips = packed_clips()
    found = planes.unpack(clips)
    assert found.keys() == {"rgb", "flow"}
    assert found["rgb"].shape == (8, 3, 6, 6, 3) and found["flow"].shape == (8, 6, 6, 6, 2)
    assert found["rgb"].dtype == found["flow"].dtype == np.float32
    for number, (top, left) in enumerate(clips["corner"]):
        rgb = np.asarray(planes.to_rgb(clips["rgb"][number]))[:, top : top + 6, left : left + 6]
        u, v = (
            clips["flow"][number].reshape(6, 2, 6, 6).swapaxes(0, 1).astype(np.float32) - 128
        ) / np.float32(127)
        if number >= 4:
            rgb, u, v = rgb[:, :, ::-1], -u[..., ::-1], v[..., ::-1]
        np.testing.assert_array_equal(found["rgb"][number], rgb)
        np.testing.assert_allclose(found["flow"][number], np.stack([u, v], -1), atol=1e-7)


def test_streams_alone_are_what_they_are_together_and_other_keys_are_ignored():
    clips = packed_clips()
    both = planes.unpack(clips | {"label": np.zeros(8, np.int32), "id": np.zeros(8)})
    assert both.keys() == {"rgb", "flow"}
    for stream in "rgb", "flow":
        alone = planes.unpack({name: clips[name] for name in (stream, "corner", "mirrored")})
        assert alone.keys() == {stream}
        np.testing.assert_array_equal(alone[stream], both[stream])


def mirror(flow, mirrored=True):
    """A network's input for flow bytes [T, H, W, 2], mirrored or not."""
    packed = np.concatenate([flow[..., 0], flow[..., 1]], 1)
    clips = {
        "flow": packed[None],
        "corner": np.zeros((1, 2), np.int32),
        "mirrored": np.array([mirrored]),
    }
    return np.asarray(planes.unpack(clips)["flow"][0])


def test_mirroring_negates_u_exactly_and_exchanges_left_and_right():
    values = np.arange(256, dtype=np.uint8)
    # Every u with every v.
    flow = np.stack(np.broadcast_arrays(values[None, None, :], values[None, ::-1, None]), -1)
    found, plain = mirror(flow), mirror(flow, False)
    np.testing.assert_allclose(plain, pixels.to_unit(flow), atol=1e-7)
    np.testing.assert_array_equal(found[..., 0], -plain[:, :, ::-1, 0])
    np.testing.assert_array_equal(found[..., 1], plain[:, :, ::-1, 1])
    assert found.dtype == np.float32 and abs(found).max() == np.float32(128) / np.float32(127)


def test_no_motion_is_exactly_zero_and_20_pixels_are_one_mirrored_or_not():
    flow = np.zeros((2, 4, 4, 2))
    flow[:, 1, 1], flow[:, 2, 2] = (20, -20), (-10, 10)
    for mirrored in False, True:
        found = mirror(pixels.flow_bytes(flow), mirrored)
        wanted = flow / 20 if not mirrored else flow[:, :, ::-1] / 20 * [-1, 1]
        np.testing.assert_allclose(found, wanted, atol=0.5 / 127)
        assert (found[wanted == 0] == 0).all() and (
            found[abs(wanted) == 1] == wanted[abs(wanted) == 1]
        ).all()


def test_a_clip_read_is_the_crop_of_what_is_shown_for_every_parity_of_its_corner():
    data = stored("rgb", 16)
    frames = np.stack([exact_rgb(frame, HEIGHT, WIDTH) for frame in whole(data)[:4]])
    for top, left in (
        (4, 6),
        (4, 7),
        (5, 6),
        (5, 7),
        (HEIGHT - 24, WIDTH - 24),
        (HEIGHT - 25, WIDTH - 25),
    ):
        found = cropped(windows.read(data, Window(top, left, 24), frames=4), (top % 2, left % 2))
        np.testing.assert_allclose(found, frames[:, top : top + 24, left : left + 24], atol=1e-3)


def test_colours_are_ffmpegs_but_for_rounding_and_where_2x2_pixels_differ():
    data = stored("rgb", 16, 64, 64, 20)
    found = cropped(windows.read(data, Window(0, 0, 64), frames=20))
    assert found.std() > 20
    with av.open(io.BytesIO(data)) as file:
        shared = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    difference = found - shared
    # FFmpeg's tables, in which 2x2 pixels share a colour, round towards 0.
    assert abs(difference).max() <= 3 and abs(difference.mean((0, 1, 2))).max() < 2
    # `decode` interpolates colours.
    assert abs((found - video.decode(data)).mean((0, 1, 2))).max() < 0.1


def pack(y, cb, cr):
    """Packs colours as 2x2 blocks of pixels that share them."""
    y, cb, cr = (
        np.kron(x[:, None], np.ones(shape)).astype(np.uint8)
        for x, shape in zip((y, cb, cr), [(2, 2), (1, 1), (1, 1)], strict=True)
    )
    return np.concatenate([y, np.concatenate([cb, cr], 1)])


def test_colours_are_those_of_bt_601():
    rng = np.random.default_rng(0)
    y, cb, cr = (rng.integers(0, 256, 5000) for _ in range(3))
    found = np.asarray(planes.to_rgb(pack(y, cb, cr)))
    np.testing.assert_allclose(found[::2, 0], 2 * np.clip(colours(y, cb, cr), 0, 1) - 1, atol=3e-6)
    np.testing.assert_array_equal(found[::2], found[1::2])
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_black_white_and_greys_are_exact():
    greys = np.arange(16, 236)
    found = np.asarray(planes.to_rgb(pack(greys, np.full(220, 128), np.full(220, 128))))[::2, 0]
    np.testing.assert_allclose(
        found, np.broadcast_to((2 * (greys - 16) / 219 - 1)[:, None], (220, 3)), atol=1e-6
    )
    assert (found[0] == -1).all() and (found[-1] == 1).all()
    beyond = np.asarray(
        planes.to_rgb(pack(np.array([0, 15, 236, 255]), np.full(4, 128), np.full(4, 128)))
    )[::2, 0]
    assert (beyond[:2] == -1).all() and (beyond[2:] == 1).all()


def test_primaries_come_back_to_a_level():
    primaries = np.array(list(itertools.product((0, 1), repeat=3)), float)
    luma = primaries @ [0.299, 0.587, 0.114]
    cb, cr = (
        (primaries[:, c] - luma) / (2 * (1 - weight)) for c, weight in ((2, 0.114), (0, 0.299))
    )
    packed = pack(*(np.rint(x) for x in (16 + 219 * luma, 128 + 224 * cb, 128 + 224 * cr)))
    found = np.asarray(planes.to_rgb(packed))[::2, 0]
    np.testing.assert_allclose(127.5 * (found + 1), 255 * primaries, atol=1.5)


def test_compiled_it_is_the_same():
    clips = packed_clips()
    found, wanted = jax.jit(planes.unpack)(clips), planes.unpack(clips)
    assert found.keys() == wanted.keys()
    for stream in found:
        np.testing.assert_allclose(found[stream], wanted[stream], atol=1e-6)
    still = {"flow": jnp.full((1, 2, 8, 4), 128, jnp.uint8), "corner": np.zeros((1, 2), np.int32)}
    assert not jax.jit(planes.unpack)(still | {"mirrored": np.array([True])})["flow"].any()


def test_the_real_clip_transcoded_and_read_is_the_clip(shared_data):
    clip = shared_data / "clips" / "flipping_a_pancake.mkv"
    found = h264.transcode(clip, short_side=120, seconds=2)
    assert found[1:] == (50, 120, 212)
    wanted = video.decode(clip, short_side=120, frames=50)[:, :, :212].astype(float)
    for left in 0, 51, 212 - 120:
        frames = cropped(windows.read(found.data, Window(0, left, 120), frames=50), (0, left % 2))
        difference = abs(frames - wanted[:, :, left : left + 120])
        assert difference.mean() < 3
        assert (
            abs(frames - wanted[:, :, left + 2 : left + 122]).mean() > 2 * difference.mean()
            if left < 90
            else True
        )
