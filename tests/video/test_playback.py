"""Playback of files with odd timestamps, orientation or shape, and of damaged files."""

import fractions
import io
import os
import socket
import struct

import av
import av.stream
import numpy as np
import pytest
from support.videos import (
    MPEG4,
    copied,
    damaged_mjpeg,
    encode,
    images,
    moving,
    numbered,
    numbers,
    steady,
)

from i3d_jax import video
from i3d_jax.video import h264, playback

BFRAMES = {"x264_params": "bframes=3:b-adapt=0:keyint=30"}


def barcode(image):
    """The number that is drawn in a frame of the odd files."""
    height, width = image.shape[:2]
    strip = image[height // 3 + height // 24 : height // 2 - height // 24].mean(0)
    strip = strip if strip.ndim == 1 else strip.mean(-1)
    return sum(int(strip[int((bit + 1.5) * width / 12)] > 128) << bit for bit in range(10))


ODD = {
    "base25.mp4": [*range(100)],
    "bframes.avi": [*range(100)],
    "hflip.mp4": [*range(100)],
    "zeromatrix.mp4": [*range(100)],
    "hold_first.mp4": 99 * [0] + [*range(51)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_shown_right_wherever_they_are_read(name, shared_data):
    path = shared_data / "odd" / name
    record = h264.transcode(path, short_side=240)
    for shown in (
        video.decode(path),
        list(video.grey(path, short_side=240, strict=True)),
        video.decode(record.data),
    ):
        unmirrored = [image[:, ::-1] if name == "hflip.mp4" else image for image in shown]
        assert [barcode(image) for image in unmirrored] == ODD[name]
    left, right = video.decode(path, frames=1)[0, 5, [5, -5]].tolist()
    left, right = (right, left) if name == "hflip.mp4" else (left, right)
    assert abs(np.subtract([left, right], [[230, 20, 20], [20, 200, 20]])).max() < 5


@pytest.mark.parametrize("name,count", [("stale.mkv", 100), ("pipe.avi", 100), ("two.ts", 200)])
def test_odd_files_that_are_whole_pass_a_strict_reading(name, count, shared_data):
    path = shared_data / "odd" / name
    assert len(list(video.iter_frames(path, strict=True))) == len(video.decode(path)) == count


@pytest.mark.parametrize(
    "options", [{"codec": "libx264", **BFRAMES}, {**MPEG4, "bf": 2}], ids=["H.264", "MPEG-4"]
)
@pytest.mark.parametrize("threads", [0, 1])
def test_frames_without_presentation_times_are_shown_in_the_decoders_order(
    threads, options, tmp_path
):
    data = encode(
        numbered(60), [*range(60)], **({"container": "avi", "time_base": "1/25"} | options)
    )
    (tmp_path / "x.avi").write_bytes(data)
    assert numbers(video.decode(data, threads=threads)) == [*range(60)]
    assert numbers(video.decode(data, threads=threads, start=13, frames=3)) == [13, 14, 15]
    grey = np.stack(
        list(video.grey(tmp_path / "x.avi", short_side=48, threads=threads, strict=True))
    )
    assert numbers(grey[..., None]) == [*range(60)]


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
def test_presentation_times_that_were_invented_are_not_believed(container):
    # PyAV invents timestamps for AVI, as `ffmpeg -fflags +genpts` does: every third is wrong.
    avi = encode(numbered(60), [*range(60)], "avi", time_base="1/25", **BFRAMES)
    data = copied(avi, container)
    with av.open(io.BytesIO(data)) as file:
        times = [frame.pts for frame in file.decode(video=0)]
    assert times != sorted(times)
    assert numbers(video.decode(data)) == [*range(60)]
    for start in 1, 13, 30, 57:
        assert numbers(video.decode(data, start=start, frames=3)) == [start, start + 1, start + 2]


def with_matrix(data, a, b, c, d):
    """Replaces the display matrix in the header of a file's track."""
    data, unit = bytearray(data), 1 << 16
    where = data.index(b"tkhd") + 44
    data[where : where + 36] = struct.pack(
        ">9i", a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30
    )
    return bytes(data)


@pytest.mark.parametrize(
    "matrix",
    [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
    + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)],
)
def test_a_display_matrix_mirrors_and_turns(matrix, tmp_path):
    frames = moving(3, 48, 80)
    frames[:, :24, :40] = 250, 20, 20
    a, b, c, d = matrix
    # The standard's formula: up to an offset, the stored pixel at (x, y) is shown at
    # (a x + c y, b x + d y).
    y, x = np.mgrid[:48, :80]
    right, down = a * x + c * y, b * x + d * y
    wanted = np.empty((3, np.ptp(down) + 1, np.ptp(right) + 1, 3), np.uint8)
    wanted[:, down - down.min(), right - right.min()] = frames
    path = tmp_path / "x.mp4"
    path.write_bytes(with_matrix(h264.encode(frames, crf=1), *matrix))
    found = video.decode(path)
    assert found.shape == wanted.shape and abs(found.astype(int) - wanted).mean() < 5
    assert abs(video.decode(path, short_side=24).astype(int) - wanted[:, ::2, ::2]).mean() < 12
    weights = [0.299, 0.587, 0.114]
    for grey, image in zip(video.grey(path, short_side=48), wanted, strict=True):
        assert abs(grey - image @ weights).mean() < 2
    record = h264.transcode(path, short_side=48)
    assert abs(video.decode(record.data).astype(int) - wanted).mean() < 8


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1)])
def test_a_degenerate_display_matrix_is_ignored(matrix):
    data = h264.encode(moving(3, 48, 80))
    np.testing.assert_array_equal(video.decode(with_matrix(data, *matrix)), video.decode(data))


def anamorphic(aspect):
    """Frames of 48x64 pixels, each `aspect` times as wide as high."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(aspect)
        for image in numbered(3):
            target.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                )
            )
        target.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    "aspect,shape", [("2", (24, 64)), ("16/15", (24, 34)), ("3/8", (48, 24)), ("1", (24, 32))]
)
def test_pixels_that_are_not_square_are_stretched_as_players_do(aspect, shape, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(anamorphic(aspect))
    assert video.decode(path, short_side=24).shape == (3, *shape, 3)
    assert next(video.grey(path, short_side=24)).shape == shape
    assert h264.transcode(path, short_side=24)[2:] == shape
    assert video.decode(path).shape == (3, 48, 64, 3)  # The stored shape.
    path.write_bytes(with_matrix(anamorphic(aspect), 0, 1, -1, 0))
    assert video.decode(path, short_side=24).shape == (3, *shape[::-1], 3)


def test_a_reading_goes_on_after_frames_that_cannot_be_decoded_and_says_how_many(tmp_path):
    path = tmp_path / "x.mkv"
    path.write_bytes(damaged_mjpeg([5, 6]))
    with pytest.warns(
        video.DamageWarning,
        match="x.mkv: is damaged: left out: 2 packets that could not be decoded",
    ):
        found = numbers(video.decode(path))
    assert found == [0, 1, 2, 3, 4, 4, 4, *range(7, 20)]
    path.write_bytes(damaged_mjpeg([0]))
    with pytest.warns(video.DamageWarning, match="left out: 1 packet that could"):
        assert numbers(video.decode(path)) == [*range(1, 20)]
    # The part that is read is not damaged.
    assert numbers(video.decode(damaged_mjpeg([15]), frames=3)) == [0, 1, 2]


def test_a_video_of_which_nothing_can_be_decoded_is_an_error():
    with pytest.raises(video.VideoError, match="cannot be decoded: Invalid data"):
        video.decode(damaged_mjpeg(range(20)))


def test_a_strict_reading_refuses_frames_that_cannot_be_decoded():
    frames = video.iter_frames(damaged_mjpeg([5]), strict=True, threads=1)
    assert numbers(images(next(frames) for _ in range(4))) == [0, 1, 2, 3]
    with pytest.raises(video.VideoError, match="is damaged: after 0.16 s: Invalid data"):
        list(frames)
    assert len(list(video.iter_frames(damaged_mjpeg([5]), strict=True, threads=1, frames=4))) == 4


def test_the_joint_of_two_recordings_is_no_damage_but_a_hole_is():
    one = steady(50, "mpegts", g=12)  # With other lengths no packet may be flagged.
    assert numbers(video.decode(one * 2)) == [*range(50)] * 2
    with av.open(io.BytesIO(one * 2)) as file:
        assert any(packet.is_corrupt for packet in file.demux(video=0))
    assert len(list(video.iter_frames(one * 2, strict=True))) == 100
    # Three packets of the stream are missing.
    hole = one[: 188 * (len(one) // 376)] + one[188 * (len(one) // 376 + 3) :]
    with pytest.raises(video.VideoError, match="is damaged"):
        list(video.iter_frames(hole, strict=True))


@pytest.mark.parametrize("container,codec", [("mp3", "libmp3lame"), ("mp4", "aac")])
def test_music_with_a_cover_is_no_video(container, codec):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        sound, cover = target.add_stream(codec, rate=44100), target.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        target.mux(
            cover.encode(
                av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            )
        )
        target.mux(cover.encode())
        silence = np.zeros((sound.codec_context.layout.nb_channels, 1152), np.float32)
        frame = av.AudioFrame.from_ndarray(
            silence, format="fltp", layout=sound.codec_context.layout.name
        )
        frame.sample_rate = 44100
        target.mux(sound.encode(frame))
        target.mux(sound.encode())
    with pytest.raises(video.VideoError, match="has no video stream"):
        video.decode(file.getvalue())


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(video.VideoError, match="pipe.mp4: is a FIFO, wanted a file"):
        video.decode(tmp_path / "pipe.mp4")
    with pytest.raises(video.VideoError, match="/dev/zero: is a device, wanted a file"):
        video.decode("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
        with pytest.raises(video.VideoError, match="s.mp4: is a socket, wanted a file"):
            video.decode(tmp_path / "s.mp4")


def test_frames_that_would_take_all_memory_are_refused(monkeypatch):
    monkeypatch.setattr(playback, "MAX_PIXELS", 47 * 64)
    with pytest.raises(video.VideoError, match="has frames of 48x64, wanted 3008 pixels at most"):
        video.decode(h264.encode(numbered(3)))


def with_packets(data, container, change):
    """Copies a file's packets, without decoding, after `change(packet)`."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                change(packet)
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("broken", [45, 56, 57])
@pytest.mark.parametrize("threads", [0, 1, 8, 16])
def test_how_many_frames_are_lost_does_not_depend_on_threads(threads, broken):
    data = bytearray(steady(60, x264_params="bframes=2:b-adapt=0:b-pyramid=none:keyint=20"))
    with av.open(io.BytesIO(data)) as file:
        place, size = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size][
            broken
        ]
    data[place : place + size] = bytes(size)
    with pytest.warns(video.DamageWarning, match="left out: 1 packet that could not be decoded"):
        found = numbers(video.decode(bytes(data), threads=threads))
    # A damaged frame may spoil frames that refer to it.
    assert len(found) == 60 and len(set(found)) in range(56, 60)
    with pytest.raises(video.VideoError, match="is damaged"):
        list(video.iter_frames(bytes(data), threads=threads, strict=True))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_timestamp_that_comes_twice_moves_no_other_frame(container):
    times = np.cumsum([0] + [2000 if number in (20, 45) else 40 for number in range(59)]).tolist()
    data = encode(numbered(60), times, "mp4", x264_params="bframes=2:b-adapt=0:keyint=20")

    def twice(packet):
        if round(float(packet.pts * packet.time_base) * 25) == 10:
            packet.pts -= round(0.04 / packet.time_base)

    whole = video.decode(with_packets(data, container, twice))
    assert len(whole) == len(video.decode(data)) == times[-1] // 40 + 1
    assert numbers(whole[-3:]) == [57, 58, 59]
    np.testing.assert_array_equal(
        video.decode(with_packets(data, container, twice), start=140), whole[140:]
    )


def test_a_frame_that_comes_hours_late_begins_another_recording():
    data = encode(numbered(4), [0, 40, 80, 3 * 3600 * 1000])
    assert numbers(video.decode(data)) == [0, 1, 2, 3]
    with pytest.raises(video.VideoError, match="is damaged: shows one frame for more than 60 s"):
        list(video.iter_frames(data, strict=True))


@pytest.mark.parametrize("options", [{"frames": 0}, {"stride": 0}])
def test_nothing_at_all_cannot_be_asked_for(options):
    with pytest.raises(ValueError, match="wanted 1 or more"):
        video.decode(steady(3), **options)
