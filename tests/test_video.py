import fractions
import io
import pathlib
import struct

import av
import numpy as np
import pytest

from i3d_jax import video


def numbered(count, height=48, width=64):
    """Grey frames whose brightness tells their number."""
    return np.broadcast_to((np.arange(count) * 3 + 20)[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(frames):
    return np.rint((frames.mean((1, 2, 3)) - 20) / 3).astype(int).tolist()


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


@pytest.mark.parametrize("size", [64, 72, 96])
def test_encoding_is_lossy_but_the_same_every_time(size):
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(60, 200, (24, size // 8, size // 8, 3)), 8, 1), 8, 2).astype(np.uint8)
    data = video.encode(frames)
    assert abs(video.decode(data).astype(int) - frames).mean() < 15  # Chroma is halved.
    assert all(video.encode(frames) == data for _ in range(20))


def test_encoding_wants_even_sizes():
    with pytest.raises(ValueError, match="even H and W"):
        video.encode(np.zeros((3, 48, 63, 3), np.uint8))


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


def test_unit_range():
    np.testing.assert_array_equal(video.to_unit(np.array([0, 255], np.uint8)), [-1, 1])


def test_the_real_clips(shared_data):
    gif = video.decode(shared_data / "kinetics-i3d" / "v_CricketShot_g04_c01_rgb.gif")
    assert gif.shape == (79, 224, 224, 3)
    clip = video.decode(shared_data / "clips" / "flipping_a_pancake.mkv", short_side=256, frames=250)
    assert clip.shape == (250, 256, 454, 3)
    # 310 frames at 30 per second are 10.33 s; frame 258 is due at 10.32 s.
    assert len(video.decode(shared_data / "clips" / "flipping_a_pancake.mkv", short_side=32)) == 259
