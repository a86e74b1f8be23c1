import fractions
import io
import pathlib
import re
import struct

import av
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import video


def numbered(count, height=48, width=64):
    """Grey frames whose brightness tells their number."""
    return np.broadcast_to((np.arange(count) * 3 + 20)[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(frames):
    return np.rint((frames.mean((1, 2, 3)) - 20) / 3).astype(int).tolist()


def smooth_flow(count, height=48, width=64):
    """Flow in pixels of a camera that pans, zooms and rolls: up to 10 of them, and 0.12 more per pixel."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    zoom, roll, pan = 0.1 * np.cos(t / 9), 0.06 * np.sin(t / 7), 5 * np.sin(t / 6)
    u = zoom * (x - width / 2) - roll * (y - height / 2) + pan
    v = roll * (x - width / 2) + zoom * (y - height / 2) - pan
    return np.stack([u, v], -1)


def waves(count, height=48, width=64):
    """Flow in pixels that is less smooth: 10 of them, and one more per pixel."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    return 10 * np.stack([np.sin(x / 10 + y / 13 + t / 5), np.cos(x / 11 - y / 10 + t / 6)], -1)


def encode(frames, times, container="matroska", codec="libx264", pix_fmt="yuv420p", time_base="1/1000"):
    """Frames shown at given times, in milliseconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.time_base = fractions.Fraction(time_base)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, fractions.Fraction(time_base)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("rate", [25, 30, 28, 19.6, 50, 10])
def test_any_frame_rate_is_resampled_to_the_frames_nearest_in_time(rate):
    count = 40
    times = np.rint(np.arange(count) / rate * 1000).astype(int)
    found = numbers(video.decode(encode(numbered(count), times.tolist())))
    assert len(found) == pytest.approx(count / rate * 25, abs=1)
    for index, number in enumerate(found):
        distance = abs(times - index * 40)
        assert distance[number] <= distance.min() + 1


def test_varying_frame_rates_keep_their_speed():
    times = np.cumsum([0, 40, 40, 200, 40, 10, 10, 10, 10, 120, 40])
    found = numbers(video.decode(encode(numbered(11), times.tolist())))
    wanted = [int(abs(times - i * 40).argmin()) for i in range(len(found))]
    distance = [abs(times - i * 40) for i in range(len(found))]
    assert all(d[f] == d[w] for d, f, w in zip(distance, found, wanted, strict=True))  # Ties may go either way.
    assert len(found) in (13, 14, 15)


@pytest.mark.parametrize("fps", [25, 30])
def test_seeking_is_exact(fps):
    data = video.encode(numbered(60), fps=fps, gop=16)
    whole = video.decode(data)
    for start, frames in (0, 5), (1, 3), (15, 4), (16, 16), (31, 9), (47, 40):
        np.testing.assert_array_equal(video.decode(data, start=start, frames=frames), whole[start : start + frames])
    with pytest.raises(video.VideoError, match="has no frame 99 at 25"):
        video.decode(data, start=99)


@pytest.mark.parametrize("made,fps", [(25, 25), (30, 25), (25, 10), (12, 25)])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_start_and_stride_give_the_frames_that_slicing_the_whole_gives(stream, made, fps):
    frames = numbered(60) if stream == "rgb" else video.flow_bytes(smooth_flow(60))
    data = video.encode(frames, fps=made, gop=16)
    whole = video.decode(data, stream=stream, fps=fps)
    assert len(whole) == pytest.approx(60 * fps / made, abs=1)
    for start, stride, count in (0, 2, None), (0, 5, 4), (1, 1, 3), (5, 3, 2), (17, 4, 99), (18, 7, None), (20, 99, 2):
        wanted = whole[start::stride][:count]
        for threads in 0, 1:
            options = dict(start=start, stride=stride, frames=count, threads=threads)
            found = video.decode(data, stream=stream, fps=fps, **options)
            np.testing.assert_array_equal(found, wanted, str((start, stride, count)))


@pytest.mark.parametrize("size", [64, 72, 96])
def test_encoding_is_lossy_but_the_same_every_time(size):
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(60, 200, (24, size // 8, size // 8, 3)), 8, 1), 8, 2).astype(np.uint8)
    data = video.encode(frames)
    assert abs(video.decode(data).astype(int) - frames).mean() < 15  # Chroma is halved.
    assert all(video.encode(frames) == data for _ in range(20))


@pytest.mark.parametrize("size", [48, 56, 72])
def test_encoding_flow_gives_the_same_bytes_every_time(size):
    flow = video.flow_bytes(smooth_flow(24, size, size))
    data = video.encode(flow)
    assert all(video.encode(flow) == data for _ in range(20))


@pytest.mark.parametrize("shape", [(3, 48, 63, 3), (3, 47, 64, 2), (3, 48, 64, 4), (3, 48, 64), (48, 64, 3)])
def test_encoding_names_the_shape_that_it_cannot_encode(shape):
    with pytest.raises(ValueError, match=re.escape(f"shape {shape}, wanted [T, H, W, 3 or 2] with even H and W")):
        video.encode(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("flow,mean,most", [(smooth_flow, 0.05, 0.5), (waves, 0.1, 0.8)])
@pytest.mark.parametrize("height,width", [(48, 64), (64, 48), (56, 56)])
def test_smooth_flow_comes_back_to_a_twentieth_of_a_pixel_and_other_flow_to_a_tenth(height, width, flow, mean, most):
    flow = flow(20, height, width)
    found = video.decode(video.encode(video.flow_bytes(flow)), stream="flow")
    assert found.shape == flow.shape and found.dtype == np.uint8
    error = abs(video.MAX_FLOW * video.to_unit(found) - flow)
    # The 8 bits alone are off by 0.04 in the mean, and by 0.08 at most.
    assert error.mean(axis=(0, 1, 2)).max() < mean and error.max() < most


def test_u_and_v_are_not_mixed_at_their_border():
    flow = np.zeros((6, 32, 48, 2), np.uint8)
    flow[..., 1] = 255
    np.testing.assert_array_equal(video.decode(video.encode(flow), stream="flow"), flow)
    flow[:, :, 24:] = flow[:, :, 24:, ::-1]
    np.testing.assert_array_equal(video.decode(video.encode(flow), stream="flow"), flow)


@pytest.mark.parametrize("value", [0, 1, 15, 16, 100, 127, 128, 129, 235, 236, 240, 254, 255])
def test_constant_flow_is_exact_over_the_full_range(value):
    flow = np.full((20, 32, 48, 2), value, np.uint8)
    flow[..., 1] = 255 - value
    np.testing.assert_array_equal(video.decode(video.encode(flow), stream="flow"), flow)


def test_no_motion_is_exactly_128_and_exactly_zero():
    still = video.flow_bytes(np.zeros((4, 16, 16, 2)))
    assert (still == 128).all()
    found = video.to_unit(video.decode(video.encode(still), stream="flow"))
    assert found.dtype == np.float32 and (found == 0.0).all()


def test_flow_is_truncated_to_20_pixels_which_are_one():
    flow = np.array([[-1e6, -20.1], [-20, -10], [-0.1, 0.05], [10, 20], [20.1, np.inf]])
    bytes_ = video.flow_bytes(flow)
    assert bytes_.tolist() == [[1, 1], [1, 64], [127, 128], [192, 255], [255, 255]]  # 191.5 is rounded to even.
    wanted = np.clip(flow, -20, 20) / 20
    np.testing.assert_allclose(video.to_unit(bytes_), wanted, atol=0.5 / 127 + 1e-6)
    assert video.to_unit(bytes_)[0].tolist() == [-1, -1] and video.to_unit(bytes_)[4].tolist() == [1, 1]


def test_a_quality_of_0_is_lossless():
    rng = np.random.default_rng(0)
    flow = rng.integers(0, 256, (4, 32, 48, 2)).astype(np.uint8)
    np.testing.assert_array_equal(video.decode(video.encode(flow, crf=0), stream="flow"), flow)
    assert abs(video.decode(video.encode(flow), stream="flow").astype(int) - flow).mean() > 1


def test_flow_cannot_be_resized():
    data = video.encode(np.zeros((2, 32, 48, 2), np.uint8))
    with pytest.raises(ValueError, match="short_side is 16, but flow cannot be resized"):
        video.decode(data, stream="flow", short_side=16)


def test_the_short_side_is_resized_and_the_aspect_kept():
    assert video.decode(video.encode(numbered(3, 48, 64)), short_side=24).shape == (3, 24, 32, 3)
    assert video.decode(video.encode(numbered(3, 64, 48)), short_side=96).shape == (3, 128, 96, 3)
    assert video.resized(240, 426, 256) == (256, 454)


def test_rotation_in_the_metadata_is_undone():
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, :32, 0] = 220  # The left half is red.
    data = bytearray(video.encode(frames))
    # The track header's display matrix: what a phone held upright writes.
    where = data.index(b"tkhd") + 44
    data[where : where + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    upright = video.decode(bytes(data))
    assert upright.shape == (4, 64, 32, 3)
    # Turned clockwise by 90 degrees, the left half is on top.
    assert upright[:, :32, :, 0].mean() > 200 and upright[:, 32:, :, 0].mean() < 20


def test_names_are_files_whatever_they_look_like(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "12:30.mp4", "concat:a|b.mp4", "http: x.mp4", "%d.mp4", "naïve – 視頻.mp4":
        pathlib.Path(name).write_bytes(video.encode(numbered(3)))
        assert len(video.decode(name)) == 3


def test_gifs_are_videos(tmp_path):
    (tmp_path / "x.gif").write_bytes(encode(numbered(12), range(0, 1200, 100), "gif", "gif", "gray", "1/100"))
    assert video.decode(tmp_path / "x.gif").shape[1:] == (48, 64, 3)


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(video.encode(numbered(20))[:500])
    with av.open(tmp_path / "sound.wav", "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
    for name in "text.mp4", "empty.mp4", "cut.mp4", "sound.wav", "missing.mp4", ".":
        with pytest.raises(video.VideoError, match=str(tmp_path / name)):
            video.decode(tmp_path / name)
    with pytest.raises(video.VideoError, match="no video stream"):
        video.decode(tmp_path / "sound.wav")
    with pytest.raises(video.VideoError, match="missing.mp4: .*No such file"):
        video.decode(pathlib.Path(tmp_path / "missing.mp4"))


def test_crop_and_loop():
    frames = numbered(3, 6, 9)
    assert video.crop(frames, 4).shape == (3, 4, 4, 3)
    assert numbers(video.loop(frames, 7)) == [0, 1, 2, 0, 1, 2, 0]
    assert numbers(video.loop(frames, 2)) == [0, 1]
    with pytest.raises(ValueError, match="cannot cut 7x7 out of frames of 6x9"):
        video.crop(frames, 7)


def test_mirroring_negates_u_exactly_and_exchanges_left_and_right():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 4, 6, 3)).astype(np.uint8)
    flow = rng.integers(1, 256, (3, 4, 6, 2)).astype(np.uint8)
    np.testing.assert_array_equal(video.mirrored(frames), frames[:, :, ::-1])
    found = video.mirrored(flow)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(video.to_unit(found)[..., 0], -video.to_unit(flow)[:, :, ::-1, 0])
    np.testing.assert_array_equal(found[..., 1], flow[:, :, ::-1, 1])


def test_mirroring_twice_changes_nothing_but_a_u_of_0_which_stands_for_less_than_minus_20():
    values = np.arange(256, dtype=np.uint8)
    flow = np.stack(np.broadcast_arrays(values[None, None, :], values[None, ::-1, None]), -1)  # Every u with every v.
    twice = video.mirrored(video.mirrored(flow))
    np.testing.assert_array_equal(twice[:, :, 1:], flow[:, :, 1:])
    assert (twice[:, :, 0, 0] == 1).all() and (video.mirrored(flow)[:, :, 255, 0] == 255).all()
    np.testing.assert_array_equal(twice[..., 1], flow[..., 1])
    frames = numbered(3)
    np.testing.assert_array_equal(video.mirrored(video.mirrored(frames)), frames)


def test_unit_range():
    rgb, flow = np.array([[0, 51, 255]], np.uint8), np.array([[1, 128], [255, 64]], np.uint8)
    np.testing.assert_allclose(video.to_unit(rgb), [[-1, -0.6, 1]], atol=1e-7)
    np.testing.assert_allclose(video.to_unit(flow), [[-1, 0], [1, -64 / 127]], atol=1e-7)
    for frames in rgb, flow:
        assert video.to_unit(frames).dtype == video.to_unit(jnp.asarray(frames)).dtype == np.float32
        np.testing.assert_allclose(video.to_unit(jnp.asarray(frames)), video.to_unit(frames), atol=1e-7)


def test_the_real_clips(shared_data):
    gif = video.decode(shared_data / "kinetics-i3d" / "v_CricketShot_g04_c01_rgb.gif")
    assert gif.shape == (79, 224, 224, 3)
    clip = video.decode(shared_data / "clips" / "flipping_a_pancake.mkv", short_side=256, frames=250)
    assert clip.shape == (250, 256, 454, 3)
    # 310 frames at 30 per second are 10.33 s; frame 258 is due at 10.32 s.
    assert len(video.decode(shared_data / "clips" / "flipping_a_pancake.mkv", short_side=32)) == 259
