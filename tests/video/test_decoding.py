import concurrent.futures
import io
import pathlib
import pickle
import re
import struct
import subprocess
import sys

import av
import jax.numpy as jnp
import numpy as np
import pytest
from support.videos import MPEG4, copied, encode, images, moving, numbered, numbers, steady, waves

from i3d_jax import pixels, video
from i3d_jax.video import decoding, h264, planes


def smooth_flow(count, height=48, width=64):
    """Flow of a camera that pans, zooms and rolls, in pixels.

    It is up to 10 pixels, and changes by up to 0.12 from pixel to pixel.
    """
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    zoom, roll, pan = 0.1 * np.cos(t / 9), 0.06 * np.sin(t / 7), 5 * np.sin(t / 6)
    u = zoom * (x - width / 2) - roll * (y - height / 2) + pan
    v = roll * (x - width / 2) + zoom * (y - height / 2) - pan
    return np.stack([u, v], -1)


def psnr(found, wanted):
    """The peak signal-to-noise ratio of the worst frame, in dB."""
    return -10 * np.log10(
        (((found.astype(float) - wanted) / 255) ** 2).mean((1, 2, 3)).max() + 1e-9
    )


def assert_on_screen(found, times):
    """Asserts that frame `found[i]` is the one to show at 40 i ms.

    That is the frame on the screen, or the next one if it begins within 20 ms and is nearer. Ties
    may go either way.
    """
    for index, number in enumerate(found):
        now = 40 * index
        shown = max(np.flatnonzero(times <= now))
        ahead = min(np.flatnonzero(times > now), default=shown)
        early, late = times[ahead] - now, now - times[shown]
        allowed = (
            {shown}
            if early > min(20, late)
            else {ahead}
            if early < min(20, late)
            else {shown, ahead}
        )
        assert number in allowed, (index, number, allowed)


@pytest.mark.parametrize("rate", [25, 30, 28, 19.6, 50, 10, 12.5, 5, 1.5])
def test_of_any_frame_rate_the_frame_is_taken_that_is_on_the_screen(rate):
    count = 40
    times = np.rint(np.arange(count) / rate * 1000).astype(int)
    found = numbers(video.decode(encode(numbered(count), times.tolist())))
    # The encoder gives the last frame a duration of 40 ms.
    assert len(found) == pytest.approx((count - 1) / rate * 25 + 1, abs=1)
    assert_on_screen(found, times)


def test_frames_of_slow_videos_are_shown_until_the_next_one_begins():
    found = numbers(video.decode(encode(numbered(4), [0, 1000, 1010, 1200])))
    assert found == 25 * [0] + [1] + 4 * [2] + [3]


def test_varying_frame_rates_keep_their_speed():
    times = np.cumsum([0, 40, 40, 200, 40, 10, 10, 10, 10, 120, 40])
    found = numbers(video.decode(encode(numbered(11), times.tolist())))
    assert_on_screen(found, times)
    assert len(found) in (13, 14, 15)


@pytest.mark.parametrize("fps", [25, 30])
def test_seeking_is_exact(fps):
    data = h264.encode(numbered(60), fps=fps, gop=16)
    whole = video.decode(data)
    for start, frames in (0, 5), (1, 3), (15, 4), (16, 16), (31, 9), (47, 40):
        np.testing.assert_array_equal(
            video.decode(data, start=start, frames=frames), whole[start : start + frames]
        )
    with pytest.raises(video.VideoError, match="has no frame 99 at 25"):
        video.decode(data, start=99)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts", "vob", "flv", "h264"])
def test_a_start_is_found_in_every_container(container):
    codec = {"vob": "mpeg2video"}.get(container, "libx264")
    data = encode(numbered(60), [*range(60)], container, time_base="1/25", codec=codec, g=12)
    whole = video.decode(data)
    for start in 1, 13, 30, len(whole) - 1:
        np.testing.assert_array_equal(
            video.decode(data, start=start, frames=3), whole[start : start + 3]
        )


def test_recordings_that_were_put_together_are_shown_one_after_the_other():
    one = encode(numbered(60), [*range(60)], "mpegts", time_base="1/25", g=12)
    found = numbers(video.decode(one * 3))
    assert found == [*range(60)] * 3


def test_a_cover_is_not_the_video():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as target:
        tracks = []
        for codec, side, pix_fmt in ("mjpeg", 16, "yuvj420p"), ("libx264", 48, "yuv420p"):
            track = target.add_stream(codec, rate=25)
            track.height, track.width, track.pix_fmt = side, side, pix_fmt
            tracks.append((track, numbered(1 if codec == "mjpeg" else 30, side, side)))
        for track, frames in tracks:
            for image in frames:
                target.mux(
                    track.encode(
                        av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    )
                )
            target.mux(track.encode())
    assert numbers(video.decode(file.getvalue())) == [*range(30)]


@pytest.mark.parametrize("height,width", [(2, 8000), (8000, 2), (16, 272)])
def test_frames_too_long_to_be_resized_are_named(height, width, tmp_path):
    path = tmp_path / "ribbon.mkv"
    path.write_bytes(
        encode(np.zeros((2, height, width, 3), np.uint8), [0, 40], codec="ffv1", pix_fmt="bgr0")
    )
    message = (
        f"ribbon.mkv: cannot be resized: frames of {height}x{width} "
        "are more than 16 times as long as wide"
    )
    for read in (
        lambda: video.decode(path, short_side=256),
        lambda: next(video.grey(path, short_side=256)),
        lambda: h264.transcode(path, short_side=256),
    ):
        with pytest.raises(video.VideoError, match=message):
            read()
    assert video.decode(path).shape == (2, height, width, 3)


@pytest.mark.parametrize("made,fps", [(25, 25), (30, 25), (25, 10), (12, 25)])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_start_and_stride_give_the_frames_that_slicing_the_whole_gives(stream, made, fps):
    frames = numbered(60) if stream == "rgb" else pixels.flow_bytes(smooth_flow(60))
    data = h264.encode(frames, fps=made, gop=16)
    whole = video.decode(data, stream=stream, fps=fps)
    assert len(whole) == pytest.approx(60 * fps / made, abs=1)
    for start, stride, count in (
        (0, 2, None),
        (0, 5, 4),
        (1, 1, 3),
        (5, 3, 2),
        (17, 4, 99),
        (18, 7, None),
        (20, 99, 2),
    ):
        wanted = whole[start::stride][:count]
        for threads in 0, 1:
            options = dict(start=start, stride=stride, frames=count, threads=threads)
            found = video.decode(data, stream=stream, fps=fps, **options)
            np.testing.assert_array_equal(found, wanted, str((start, stride, count)))


@pytest.mark.parametrize("size", [64, 72, 96])
def test_encoding_is_lossy_but_the_same_every_time(size):
    rng = np.random.default_rng(0)
    frames = np.repeat(
        np.repeat(rng.integers(60, 200, (24, size // 8, size // 8, 3)), 8, 1), 8, 2
    ).astype(np.uint8)
    data = h264.encode(frames)
    assert abs(video.decode(data).astype(int) - frames).mean() < 15  # Chroma is halved.
    assert all(h264.encode(frames) == data for _ in range(20))


@pytest.mark.parametrize("size", [48, 56, 72])
def test_encoding_flow_gives_the_same_bytes_every_time(size):
    flow = pixels.flow_bytes(smooth_flow(24, size, size))
    data = h264.encode(flow)
    assert all(h264.encode(flow) == data for _ in range(20))


@pytest.mark.parametrize(
    "shape", [(3, 48, 63, 3), (3, 47, 64, 2), (3, 48, 64, 4), (3, 48, 64), (48, 64, 3)]
)
def test_encoding_names_the_shape_that_it_cannot_encode(shape):
    with pytest.raises(
        ValueError, match=re.escape(f"shape {shape[1:]}, wanted [H, W, 3 or 2] with even H and W")
    ):
        h264.encode(np.zeros(shape, np.uint8))


def test_encoding_nothing_is_an_error():
    with pytest.raises(ValueError, match="no frames"):
        h264.encode([])


def test_encoding_takes_frames_one_by_one():
    frames = moving(20)
    assert h264.encode(iter(frames)) == h264.encode(frames)


def coloured(place, height, width, axis):
    """RGB [..., 3] at a place (y, x) of an image whose colours change linearly along an axis."""
    share = place[axis] / (height, width)[axis]
    return np.stack([50 + 140 * share, 120 + 0 * share, 190 - 130 * share], -1)


def write_coloured(path, height, width, axis, weights, code, full):
    """Writes that image as a lossless H.264 file.

    Colour samples lie where H.264 has them: at the left one of two pixels, between two rows.
    """

    def value(place, channel):
        r, g, b = np.moveaxis(coloured(place, height, width, axis), -1, 0)
        luma = weights[0] * r + (1 - sum(weights)) * g + weights[1] * b
        value = [luma, (b - luma) / (1 - weights[1]) / 2, (r - luma) / (1 - weights[0]) / 2][
            channel
        ]
        if not full:
            value = value * (219 if channel == 0 else 224) / 255
        return np.rint(value + (128 if channel else 0 if full else 16)).astype(np.uint8).ravel()

    y, x = np.mgrid[:height, :width].astype(float)
    cy, cx = np.mgrid[: height // 2, : width // 2].astype(float)
    samples = [value((y, x), 0), value((2 * cy + 0.5, 2 * cx), 1), value((2 * cy + 0.5, 2 * cx), 2)]
    with av.open(path, "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = code, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(
            np.concatenate(samples).reshape(-1, width), format="yuv420p"
        )
        frame.colorspace, frame.color_range = code, 2 if full else 1
        target.mux(stream.encode(frame))
        target.mux(stream.encode())


STANDARDS = {"BT.601": ((0.299, 0.114), 6), "BT.709": ((0.2126, 0.0722), 1)}


@pytest.mark.parametrize("axis", [0, 1], ids=["down", "across"])
@pytest.mark.parametrize("full", [False, True], ids=["studio", "full"])
@pytest.mark.parametrize("standard", STANDARDS)
@pytest.mark.parametrize("height,width", [(240, 426), (256, 342), (480, 640), (240, 320)])
def test_colours_are_exact_to_a_tenth_of_a_level_scaled_or_not(
    height, width, standard, full, axis, tmp_path
):
    write_coloured(tmp_path / "x.mp4", height, width, axis, *STANDARDS[standard], full)
    (found,) = video.decode(tmp_path / "x.mp4", short_side=256).astype(float)
    place = np.mgrid[: found.shape[0], : found.shape[1]] + 0.5
    place *= np.array([height / found.shape[0], width / found.shape[1]])[:, None, None]
    exact = coloured(place - 0.5, height, width, axis)
    inside = (slice(16, -16), slice(16, -16))  # Resizing cannot look past the borders.
    assert (
        abs((found - exact)[inside].mean((0, 1))).max() < 0.1
        and abs(found - exact)[inside].max() < 3
    )
    (grey,) = video.grey(tmp_path / "x.mp4", short_side=256)
    brightness = (exact @ [0.299, 0.587, 0.114])[: grey.shape[0], : grey.shape[1]]
    assert abs((grey - brightness)[inside].mean()) < 0.1
    _, u, v = next(decoding.yuv(tmp_path / "x.mp4", short_side=256))
    # The colours of records: their mean may be off by a third of a pixel where a side is odd.
    rows, columns = np.mgrid[: u.shape[0], : u.shape[1]].astype(float)
    place = (
        (2 * rows + 1) * height / found.shape[0] - 0.5,
        (2 * columns + 0.5) * width / found.shape[1] - 0.5,
    )
    r, g, b = np.moveaxis(coloured(place, height, width, axis), -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    for plane, wanted in ((u, (b - luma) / 1.772), (v, (r - luma) / 1.402)):
        error = (plane - (128 + wanted * 224 / 255))[8:-8, 8:-8]
        assert abs(error.mean()) < 0.2 and abs(error).max() < 2


@pytest.mark.parametrize("full", [False, True], ids=["studio", "full"])
@pytest.mark.parametrize("width", [426, 320, 342, 341])
@pytest.mark.parametrize("value", [40, 128, 201])
def test_constants_are_rounded_and_no_more(value, width, full, tmp_path):
    with av.open(tmp_path / "x.mkv", "w") as target:
        stream = target.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 240, width, "yuv420p"
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame(width, 240, "yuv420p")
        frame.color_range = 2 if full else 1
        for number, level in enumerate((value, 128, 128)):
            np.frombuffer(frame.planes[number], np.uint8)[:] = level
        target.mux(stream.encode(frame))
        target.mux(stream.encode())
    wanted = value if full else (value - 16) * 255 / 219
    for short_side in None, 256, 120, 240:
        assert abs(video.decode(tmp_path / "x.mkv", short_side=short_side) - wanted).max() <= 0.5
    grey = next(video.grey(tmp_path / "x.mkv", short_side=256))
    assert abs(grey - wanted).max() <= 1.1  # Rounded twice.


def test_what_records_show_is_as_bright_as_what_decoding_shows(shared_data):
    clip = shared_data / "clips" / "flipping_a_pancake.mkv"
    shown = video.decode(clip, short_side=256, frames=20).astype(float)
    for index, planes_ in enumerate(decoding.yuv(clip, short_side=256, frames=20)):
        y, u, v = planes_
        packed = np.concatenate([y, np.concatenate([u, v], 1)])
        difference = 127.5 * (1 + np.asarray(planes.to_rgb(packed))) - shown[index]
        assert abs(difference.mean((0, 1))).max() < 0.1


def test_grey_is_the_brightness_of_what_records_show(tmp_path):
    (tmp_path / "x.mp4").write_bytes(h264.encode(moving(9, 48, 66)))
    found = np.stack(list(video.grey(tmp_path / "x.mp4", short_side=24)))
    assert found.shape == (9, 24, 32) and found.dtype == np.uint8  # 33 wide, but for the odd pixel.
    record = h264.transcode(tmp_path / "x.mp4", short_side=24)
    assert (record.frames, record.height, record.width) == found.shape
    weights = np.array([0.299, 0.587, 0.114])  # OpenCV's weights for grey.
    wanted = video.decode(record.data) @ weights
    # The record is compressed.
    assert abs(found - wanted).mean() < 2 and abs(found - wanted).max() < 20
    exact = video.decode(tmp_path / "x.mp4", short_side=24)[:, :, :32] @ weights
    assert abs(found - exact).mean() < 1


def test_black_is_0_and_white_255_in_grey(tmp_path):
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    frames[:, :, 24:] = 255
    (tmp_path / "x.mp4").write_bytes(h264.encode(frames, crf=0))
    found = np.stack(list(video.grey(tmp_path / "x.mp4", short_side=32)))
    assert (found[:, :, :20] == 0).all() and (found[:, :, 28:] == 255).all()


@pytest.mark.parametrize("flow,mean,most", [(smooth_flow, 0.05, 0.5), (waves, 0.1, 0.8)])
@pytest.mark.parametrize("height,width", [(48, 64), (64, 48), (56, 56)])
def test_smooth_flow_comes_back_to_a_twentieth_of_a_pixel_and_other_flow_to_a_tenth(
    height, width, flow, mean, most
):
    flow = flow(20, height, width)
    found = video.decode(h264.encode(pixels.flow_bytes(flow)), stream="flow")
    assert found.shape == flow.shape and found.dtype == np.uint8
    error = abs(pixels.MAX_FLOW * pixels.to_unit(found) - flow)
    # The mean error of the 8 bits alone is 0.04, the maximum 0.08.
    assert error.mean(axis=(0, 1, 2)).max() < mean and error.max() < most


def test_u_and_v_are_not_mixed_at_their_border():
    flow = np.zeros((6, 32, 48, 2), np.uint8)
    flow[..., 1] = 255
    np.testing.assert_array_equal(video.decode(h264.encode(flow), stream="flow"), flow)
    flow[:, :, 24:] = flow[:, :, 24:, ::-1]
    np.testing.assert_array_equal(video.decode(h264.encode(flow), stream="flow"), flow)


@pytest.mark.parametrize("value", [0, 1, 15, 16, 100, 127, 128, 129, 235, 236, 240, 254, 255])
def test_constant_flow_is_exact_over_the_full_range(value):
    flow = np.full((20, 32, 48, 2), value, np.uint8)
    flow[..., 1] = 255 - value
    np.testing.assert_array_equal(video.decode(h264.encode(flow), stream="flow"), flow)


def test_no_motion_is_exactly_128_and_exactly_zero():
    still = pixels.flow_bytes(np.zeros((4, 16, 16, 2)))
    assert (still == 128).all()
    found = pixels.to_unit(video.decode(h264.encode(still), stream="flow"))
    assert found.dtype == np.float32 and (found == 0.0).all()


def test_flow_is_truncated_to_20_pixels_which_are_one():
    flow = np.array([[-1e6, -20.1], [-20, -10], [-0.1, 0.05], [10, 20], [20.1, np.inf]])
    bytes_ = pixels.flow_bytes(flow)
    # 191.5 is rounded to even.
    assert bytes_.tolist() == [[1, 1], [1, 64], [127, 128], [192, 255], [255, 255]]
    wanted = np.clip(flow, -20, 20) / 20
    np.testing.assert_allclose(pixels.to_unit(bytes_), wanted, atol=0.5 / 127 + 1e-6)
    assert pixels.to_unit(bytes_)[0].tolist() == [-1, -1] and pixels.to_unit(bytes_)[
        4
    ].tolist() == [1, 1]


def test_a_quality_of_0_is_lossless():
    rng = np.random.default_rng(0)
    flow = rng.integers(0, 256, (4, 32, 48, 2)).astype(np.uint8)
    np.testing.assert_array_equal(video.decode(h264.encode(flow, crf=0), stream="flow"), flow)
    assert abs(video.decode(h264.encode(flow), stream="flow").astype(int) - flow).mean() > 1


def test_flow_cannot_be_resized():
    data = h264.encode(np.zeros((2, 32, 48, 2), np.uint8))
    with pytest.raises(ValueError, match="short_side is 16, but flow cannot be resized"):
        video.decode(data, stream="flow", short_side=16)


def test_the_short_side_is_resized_and_the_aspect_kept():
    assert video.decode(h264.encode(numbered(3, 48, 64)), short_side=24).shape == (3, 24, 32, 3)
    assert video.decode(h264.encode(numbered(3, 64, 48)), short_side=96).shape == (3, 128, 96, 3)
    assert decoding.resized_shape(240, 426, 256) == (256, 454)


def test_rotation_in_the_metadata_is_undone():
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, :32, 0] = 220  # The left half is red.
    data = bytearray(h264.encode(frames))
    # The display matrix in the track header, as a phone held upright writes it.
    where = data.index(b"tkhd") + 44
    data[where : where + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    upright = video.decode(bytes(data))
    assert upright.shape == (4, 64, 32, 3)
    # Turned clockwise by 90 degrees, the left half is on top.
    assert upright[:, :32, :, 0].mean() > 200 and upright[:, 32:, :, 0].mean() < 20


def test_a_crop_is_the_middle_of_what_is_resized():
    data = h264.encode(moving(4, 48, 66))
    whole = video.decode(data, short_side=40)
    assert whole.shape == (4, 40, 55, 3)
    np.testing.assert_array_equal(video.decode(data, short_side=40, crop=24), whole[:, 8:32, 15:39])
    with pytest.raises(ValueError, match="cannot cut 41x41 out of frames of 40x55"):
        video.decode(data, short_side=40, crop=41)


def test_names_are_files_whatever_they_look_like(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "12:30.mp4", "concat:a|b.mp4", "http: x.mp4", "%d.mp4", "naïve – 視頻.mp4":
        pathlib.Path(name).write_bytes(h264.encode(numbered(3)))
        assert len(video.decode(name)) == 3


def test_gifs_are_videos(tmp_path):
    (tmp_path / "x.gif").write_bytes(
        encode(numbered(12), range(0, 1200, 100), "gif", "gif", "gray", "1/100")
    )
    assert video.decode(tmp_path / "x.gif").shape[1:] == (48, 64, 3)


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(h264.encode(numbered(20))[:500])
    with av.open(tmp_path / "sound.wav", "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
    for name in "text.mp4", "empty.mp4", "cut.mp4", "sound.wav", "missing.mp4", ".":
        with pytest.raises(video.VideoError, match=str(tmp_path / name)):
            video.decode(tmp_path / name)
    with pytest.raises(video.VideoError, match="no video stream"):
        video.decode(tmp_path / "sound.wav")
    with pytest.raises(video.VideoError, match="missing.mp4: .*No such file"):
        video.decode(pathlib.Path(tmp_path / "missing.mp4"))


def test_flow_files_are_those_that_encode_writes(tmp_path):
    path = tmp_path / "flow.mp4"
    flow = pixels.flow_bytes(np.zeros((4, 32, 48, 2)))
    path.write_bytes(h264.encode(flow))
    h264.check_flow(path)
    for other in (h264.encode(flow, fps=50), h264.encode(np.zeros((4, 32, 48, 3), np.uint8))):
        path.write_bytes(other)
        with pytest.raises(
            video.VideoError,
            match="flow.mp4: is not as `python -m i3d_jax.flow` writes it: mov, h264, ",
        ):
            h264.check_flow(path)
    path.write_text("u and v")
    with pytest.raises(video.VideoError, match="flow.mp4: cannot be decoded"):
        h264.check_flow(path)


def test_errors_come_back_from_other_processes():
    error = pickle.loads(pickle.dumps(video.VideoError("x.mp4", "is empty")))
    assert (str(error), error.name, error.reason) == ("x.mp4: is empty", "x.mp4", "is empty")


def test_crop_and_loop():
    frames = numbered(3, 6, 9)
    assert pixels.crop(frames, 4).shape == (3, 4, 4, 3)
    assert numbers(pixels.loop(frames, 7)) == [0, 1, 2, 0, 1, 2, 0]
    assert numbers(pixels.loop(frames, 2)) == [0, 1]
    with pytest.raises(ValueError, match="cannot cut 7x7 out of frames of 6x9"):
        pixels.crop(frames, 7)


def test_unit_range():
    rgb, flow = np.array([[0, 51, 255]], np.uint8), np.array([[1, 128], [255, 64]], np.uint8)
    np.testing.assert_allclose(pixels.to_unit(rgb), [[-1, -0.6, 1]], atol=1e-7)
    np.testing.assert_allclose(pixels.to_unit(flow), [[-1, 0], [1, -64 / 127]], atol=1e-7)
    for frames in rgb, flow:
        assert (
            pixels.to_unit(frames).dtype == pixels.to_unit(jnp.asarray(frames)).dtype == np.float32
        )
        np.testing.assert_allclose(
            pixels.to_unit(jnp.asarray(frames)), pixels.to_unit(frames), atol=1e-7
        )


def test_the_real_clips(shared_data):
    gif = video.decode(shared_data / "kinetics-i3d" / "v_CricketShot_g04_c01_rgb.gif")
    assert gif.shape == (79, 224, 224, 3)
    clip = video.decode(
        shared_data / "clips" / "flipping_a_pancake.mkv", short_side=256, frames=250
    )
    assert clip.shape == (250, 256, 454, 3)
    # 310 frames at 30 per second are 10.33 s; frame 258 is due at 10.32 s.
    assert len(video.decode(shared_data / "clips" / "flipping_a_pancake.mkv", short_side=32)) == 259


def regular(count, rate):
    """The times of frames at a constant rate, in milliseconds."""
    return np.rint(np.arange(count) / rate * 1000).astype(int).tolist()


VARYING = np.cumsum([0] + 12 * [40, 20, 60, 100, 10, 33]).tolist()


@pytest.mark.parametrize("rate", [10, 24, 29.97, 30, 50, 60, "varying"])
@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_transcoding_keeps_what_decoding_shows(rate, container, tmp_path):
    count = 73 if rate == "varying" else round(2 * rate)
    times = VARYING if rate == "varying" else regular(count, rate)
    (tmp_path / "x").write_bytes(encode(moving(count, 64, 96), times, container))
    wanted = video.decode(tmp_path / "x", short_side=48)
    found = h264.transcode(tmp_path / "x", short_side=48)
    assert (found.frames, found.height, found.width) == wanted.shape[:3] == (len(wanted), 48, 72)
    assert len(wanted) == pytest.approx(times[-1] / 40, abs=3)
    with av.open(io.BytesIO(found.data)) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25 and stream.frames == found.frames
    frames = video.decode(found.data)
    assert frames.shape == wanted.shape and psnr(frames, wanted) > 34
    assert psnr(frames[1:], wanted[:-1]) < 28  # A frame too many or too few would give this.


@pytest.mark.parametrize(
    "seconds,frames", [(0.001, 1), (0.3, 8), (0.5, 12), (1, 25), (1.99, 50), (99, 60)]
)
def test_transcoding_takes_so_many_seconds_at_most(seconds, frames, tmp_path):
    (tmp_path / "x").write_bytes(steady(60))
    found = h264.transcode(tmp_path / "x", short_side=48, seconds=seconds)
    assert found.frames == frames
    assert numbers(video.decode(found.data)) == list(range(frames))


@pytest.mark.parametrize("height,width", [(49, 64), (48, 67), (49, 67), (67, 49)])
def test_transcoding_cuts_nothing_off_but_the_last_pixel_of_an_odd_side(height, width, tmp_path):
    grey = np.broadcast_to(moving(4, height, width)[..., :1], (4, height, width, 3))
    (tmp_path / "x").write_bytes(encode(grey, regular(4, 25), pix_fmt="yuv444p", crf=5))
    for short_side in min(height, width), 33:
        wanted = video.decode(tmp_path / "x", short_side=short_side)
        rows, columns = (side // 2 * 2 for side in wanted.shape[1:3])
        found = h264.transcode(tmp_path / "x", short_side=short_side)
        assert (found.height, found.width) == (rows, columns)
        frames = video.decode(found.data)
        assert psnr(frames, wanted[:, :rows, :columns]) > 41
        assert psnr(frames[:, 1:], wanted[:, : rows - 1, :columns]) < 38
        assert psnr(frames[:, :, 1:], wanted[:, :rows, : columns - 1]) < 38


@pytest.mark.parametrize(
    "turns,matrix", [(1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))]
)
def test_transcoded_videos_are_upright(turns, matrix, tmp_path):
    frames = moving(4, 48, 80)
    frames[:, :24, :40] = 250, 20, 20  # One corner is red.
    data = bytearray(h264.encode(frames))
    where = data.index(b"tkhd") + 44
    a, b, c, d = (number * (1 << 16) for number in matrix)
    data[where : where + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "x").write_bytes(data)
    upright = np.rot90(frames, -turns, (1, 2))  # Clockwise, as the matrix says.
    found = h264.transcode(tmp_path / "x", short_side=48)
    assert (found.height, found.width) == upright.shape[1:3]
    assert psnr(video.decode(found.data), upright) > 26
    # Brightness only: colours have fewer samples, and are turned about another point.
    brightness = np.array([[0.299], [0.587], [0.114]])
    shown = video.decode(tmp_path / "x", short_side=48)
    assert psnr(video.decode(found.data) @ brightness, shown @ brightness) > 36
    assert psnr(np.rot90(video.decode(found.data), 2, (1, 2)), upright) < 20


def test_transcoding_gives_the_same_bytes_every_time_and_whatever_else_runs(tmp_path):
    for number in range(3):
        times = regular(40, 24 + number)
        (tmp_path / f"{number}").write_bytes(encode(moving(40, 56 + 8 * number, 88), times))
    alone = [h264.transcode(tmp_path / f"{n}", short_side=72).data for n in range(3)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda n: h264.transcode(tmp_path / f"{n % 3}", short_side=72).data, range(12))
        )
    assert found == alone * 4


def planar(rgb, red, blue, full):
    """Converts RGB [H, W, 3] to Y, Cb and Cr.

    Args:
      rgb: the image.
      red: luma weight of red in a standard.
      blue: luma weight of blue.
      full: whether the full range of values is used.
    """
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    colours = [(b - y) / (1 - blue) / 2, (r - y) / (1 - red) / 2]
    colours = [c.reshape(c.shape[0] // 2, 2, c.shape[1] // 2, 2).mean((1, 3)) for c in colours]
    values = (
        [255 * y] + [255 * c + 128 for c in colours]
        if full
        else [219 * y + 16] + [224 * c + 128 for c in colours]
    )
    return np.concatenate([np.clip(np.rint(x), 0, 255).astype(np.uint8).ravel() for x in values])


@pytest.mark.parametrize("full", [False, True], ids=["studio", "full"])
@pytest.mark.parametrize("space", ["BT.601", "BT.709"])
def test_transcoding_keeps_colours_whatever_standard_the_video_follows(space, full, tmp_path):
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (4, 6, 3))
    patches[0] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
    image = np.kron(patches, np.ones((16, 16, 1)))
    code, weights = {"BT.601": (6, (0.299, 0.114)), "BT.709": (1, (0.2126, 0.0722))}[space]
    with av.open(tmp_path / "x.mp4", "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = code, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(
            planar(image, *weights, full).reshape(96, 96), format="yuv420p"
        )
        frame.colorspace, frame.color_range = code, 2 if full else 1
        target.mux(stream.encode(frame))
        target.mux(stream.encode())
    with av.open(tmp_path / "x.mp4") as file:
        (frame,) = file.decode(video=0)
        assert (frame.colorspace, frame.color_range) == (code, 2 if full else 1)
    (decoded,) = video.decode(tmp_path / "x.mp4").astype(float)
    (found,) = video.decode(h264.transcode(tmp_path / "x.mp4", short_side=64).data).astype(float)
    # Away from the patches' borders, where colours mix.
    middle = (slice(5, None, 16), slice(5, None, 16))
    assert abs(decoded - image)[middle].max() < 5
    assert abs(found - decoded)[middle].max() < 7 and abs(found - image)[middle].max() < 9


def test_transcoding_leaves_sound_out(tmp_path):
    (tmp_path / "x").write_bytes(encode(numbered(10), regular(10, 25), sound=0.4))
    with av.open(tmp_path / "x") as file:
        assert len(file.streams) == 2
    with av.open(io.BytesIO(h264.transcode(tmp_path / "x", short_side=48).data)) as file:
        assert [stream.type for stream in file.streams] == ["video"]


def test_transcoding_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path):
    frames = np.tile(moving(50, 64, 64), (60, 1, 1, 1))
    (tmp_path / "x").write_bytes(encode(frames, regular(3000, 25), preset="ultrafast"))
    code = """if True:
        import resource, sys
        from i3d_jax.video import h264
        def peak(seconds):
            found = h264.transcode(sys.argv[1], short_side=64, seconds=seconds)
            assert found.frames == 25 * seconds
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(-(peak(12) - peak(120)))"""
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x"], check=True, stdout=subprocess.PIPE, text=True
    )
    # The planes of 2,700 more frames would take 16,200 KiB; the file takes 1,000.
    assert int(process.stdout) < 8000


def test_what_is_shown_is_what_is_decoded():
    data = encode(moving(40), VARYING[:40])
    for options in (
        {},
        {"start": 7},
        {"frames": 9},
        {"fps": 10},
        {"start": 3, "frames": 5, "stride": 4, "threads": 1},
    ):
        np.testing.assert_array_equal(
            images(video.iter_frames(data, **options)), video.decode(data, **options)
        )


def test_a_frame_that_is_shown_for_long_comes_again():
    first, second, third, *others = video.iter_frames(encode(numbered(3), [0, 120, 240]))
    assert first is second is third and first is not others[0]


CLOSED = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
OPEN = CLOSED + ":open-gop=1"
STILL = steady(4, x264_params="bframes=0")
FINE = {
    "plain": (lambda: steady(), range(40)),
    "sound that goes on, mp4": (lambda: steady(sound=4), range(40)),
    "sound that goes on, mkv": (lambda: steady(container="matroska", sound=4), range(40)),
    "sound that ends early": (lambda: steady(container="matroska", sound=0.2), range(40)),
    "begins late, mp4": (lambda: steady(first=125), range(40)),
    "begins late, mkv": (lambda: steady(container="matroska", first=125), range(40)),
    "begins late, ts": (lambda: steady(container="mpegts", first=125), range(40)),
    "begins after its sound": (lambda: steady(container="matroska", first=25, sound=3), range(40)),
    "varying": (lambda: encode(numbered(4), [0, 40, 80, 2080]), [0, 1] + 50 * [2] + [3]),
    "a last frame of 2 seconds, mp4": (lambda: copied(STILL, "mp4", last=2), [0, 1, 2] + 50 * [3]),
    "a last frame of 2 seconds, mkv": (
        lambda: copied(STILL, "matroska", last=2),
        [0, 1, 2] + 50 * [3],
    ),
    "B-frames": (lambda: steady(x264_params="bframes=3:b-adapt=0:b-pyramid=normal"), range(40)),
    "open groups": (lambda: steady(x264_params=OPEN), range(40)),
    # Frames that refer to frames left out are lost. x264's first group of pictures is shorter by
    # its three B-frames.
    "cut out of open groups, mp4": (
        lambda: copied(steady(x264_params=OPEN), "mp4", 0.3),
        range(12, 40),
    ),
    "cut out of open groups, mkv": (
        lambda: copied(steady(x264_params=OPEN), "matroska", 0.3),
        range(12, 40),
    ),
    "cut out, mp4": (lambda: copied(steady(x264_params=CLOSED), "mp4", 0.3), range(12, 40)),
    "cut out, mkv": (lambda: copied(steady(x264_params=CLOSED), "matroska", 0.3), range(12, 40)),
    "edit list": (
        lambda: copied(steady(), "mp4", 0, -0.4, avoid_negative_ts="disabled"),
        range(10, 40),
    ),
    "one frame, mp4": (lambda: steady(1), [0]),
    "one frame, mkv": (lambda: steady(1, "matroska"), [0]),
    "10 frames per second": (lambda: encode(numbered(8), regular(8, 10), "mp4"), None),
    "AVI": (lambda: encode(numbered(40), range(40), **MPEG4), range(40)),
    "AVI, B-frames": (lambda: encode(numbered(40), range(40), bf=2, **MPEG4), range(40)),
    "ts": (lambda: steady(container="mpegts"), range(40)),
    "VP9": (lambda: steady(container="webm", codec="libvpx-vp9", crf=4, cpu_used=8), range(40)),
    "interlaced": (lambda: steady(x264_params="interlaced=1"), range(40)),
    "does not say how long it lasts": (
        lambda: steady(container="matroska", mux_live=1, sound=1),
        range(40),
    ),
    "says it badly": (
        lambda: steady(container="matroska").replace(b"00:00:01.6000", b"for 1.6 s    "),
        range(40),
    ),
    "tags that are not UTF-8": (
        lambda: steady(container="matroska").replace(b"Lavf", b"Caf\xe9"),
        range(40),
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_strict_reading_takes_files_that_are_odd_but_whole(name, tmp_path):
    make, wanted = FINE[name]
    (tmp_path / "x").write_bytes(make())
    frames = video.decode(tmp_path / "x")
    for threads in 0, 1:
        strict = images(video.iter_frames(tmp_path / "x", strict=True, threads=threads))
        np.testing.assert_array_equal(strict, frames)
    found = video.decode(h264.transcode(tmp_path / "x", short_side=48).data)
    assert numbers(found) == numbers(frames)
    if wanted is not None:
        assert numbers(found) == list(wanted)


def detailed(count=40):
    """Frames with so much detail that their file is large."""
    rng = np.random.default_rng(0)
    grain = np.kron(rng.integers(-60, 60, (count, 48, 64, 1)), np.ones((1, 2, 2, 1)))
    return np.clip(moving(count, 96, 128) + grain, 0, 255).astype(np.uint8)


def detailed_file(container, **options):
    return encode(
        detailed(),
        [40 * number for number in range(40)],
        container,
        **{"x264_params": CLOSED} | options,
    )


def rotten(container, **options):
    """A file with 40 wrong bytes in the middle of some frames.

    In a single frame, H.264's decoder might not notice them.
    """
    data = bytearray(detailed_file(container, **options))
    with av.open(io.BytesIO(data)) as file:
        places = [packet.pos + packet.size // 2 for packet in file.demux(video=0) if packet.size]
    for place in places[10:30:4]:
        data[place : place + 40] = np.random.default_rng(place).bytes(40)
    return bytes(data)


def sound_only():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as target:
        stream = target.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 960), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 48000
        target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return file.getvalue()


def claiming(container, seconds):
    """A file with 1.6 seconds of video that states a longer duration."""
    if container == "avi":
        data = bytearray(encode(numbered(40), range(40), **MPEG4))
        where, claim = data.index(b"strh") + 40, struct.pack("<I", round(25 * seconds))
    else:
        data = bytearray(steady(container="matroska", sound=1.6))
        where, claim = data.index(b"00:00:01.600"), b"00:00:%06.3f" % seconds
    data[where : where + len(claim)] = claim
    return bytes(data)


def part(data, share):
    return data[: round(share * len(data))]


def between_frames(data, number):
    with av.open(io.BytesIO(data)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    return data[: places[number] - 8]  # A chunk of AVI begins with a header of 8 bytes.


INDEX_FIRST = {"mux_moov_size": 10_000}  # Like +faststart, which cannot write to memory.
CUT = ("is damaged", "is truncated")
BAD = {
    "cut off, mkv": (lambda: [part(detailed_file("matroska"), s) for s in (0.1, 0.4, 0.6)], CUT),
    "cut off, mkv with sound": (
        lambda: [part(detailed_file("matroska", sound=1.6), s) for s in (0.1, 0.4, 0.6)],
        CUT,
    ),
    "cut off, mp4": (
        lambda: [part(detailed_file("mp4", **INDEX_FIRST), s) for s in (0.3, 0.6, 0.95)],
        CUT,
    ),
    "cut off, avi": (
        lambda: [part(encode(detailed(), range(40), **MPEG4), s) for s in (0.2, 0.6)],
        CUT,
    ),
    "cut off between two frames, avi": (
        lambda: [between_frames(encode(detailed(), range(40), **MPEG4), 20)],
        CUT,
    ),
    "cut off, VP9": (
        lambda: [part(detailed_file("webm", codec="libvpx-vp9", cpu_used=8), 0.5)],
        CUT,
    ),
    "without its end, mp4": (
        lambda: [part(detailed_file("mp4"), s) for s in (0.5, 0.95)],
        ("cannot be decoded",),
    ),
    "rotten, mp4": (lambda: [rotten("mp4")], ("is damaged",)),
    "rotten, mkv": (lambda: [rotten("matroska", sound=1.6)], ("is damaged",)),
    "empty": (lambda: [b""], ("is empty",)),
    "zeros": (lambda: [bytes(20_000)], ("cannot be decoded",)),
    "text": (lambda: [b"<html>This video is private.</html>" * 99], ("cannot be decoded",)),
    "sound only": (lambda: [sound_only()], ("has no video stream",)),
    "an unknown codec": (lambda: [steady().replace(b"avc1", b"zzzz")], ("cannot be decoded",)),
    "claims to be longer": (
        lambda: [claiming(c, 2.2) for c in ("avi", "matroska")],
        ("is truncated",),
    ),
    "stands still for 3 hours": (
        lambda: [encode(numbered(3), [0, 40, 10_800_000])],
        ("is damaged",),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_strict_reading_refuses_damaged_files_and_says_why(name, tmp_path):
    make, wanted = BAD[name]
    for number, data in enumerate(make()):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data)
        for read in (
            lambda path: list(video.iter_frames(path, strict=True)),
            lambda path: list(video.iter_frames(path, strict=True, threads=1)),
            lambda path: h264.transcode(path, short_side=48),
        ):
            with pytest.raises(video.VideoError) as caught:
                read(path)
            assert caught.value.reason.partition(":")[0] in wanted
            assert str(caught.value) == f"{path}: {caught.value.reason}"


@pytest.mark.parametrize("container", ["avi", "matroska"])
def test_half_a_second_may_be_missing(container):
    assert len(list(video.iter_frames(claiming(container, 2.0), strict=True))) == 40


def test_what_comes_after_the_seconds_that_are_taken_may_be_damaged(tmp_path):
    (tmp_path / "x").write_bytes(part(detailed_file("matroska"), 0.6))
    assert h264.transcode(tmp_path / "x", short_side=48, seconds=0.4).frames == 10


def test_frame_0_is_the_first_that_is_there():
    # AVI has no timestamps: positions count, those of missing frames too.
    data = encode(numbered(30), range(50, 80), bf=2, **MPEG4)
    frames = video.decode(data)
    assert numbers(frames) == list(range(30))
    for start in range(30):
        np.testing.assert_array_equal(
            video.decode(data, start=start, frames=5), frames[start : start + 5]
        )
