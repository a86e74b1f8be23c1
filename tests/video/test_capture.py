"""Frames of live sources: streams over the network, files at their speed, devices."""

import io
import os
import socket
import threading

import av
import numpy as np
import pytest
from support.processes import wait_until
from support.servers import answering, head
from support.streams import NUMBERS, free_udp_port, jpeg_stream, udp_stream
from support.videos import damaged_mjpeg, encode, moving, numbered, numbers, steady

from i3d_jax import video
from i3d_jax.video import capture
from i3d_jax.video.capture import Capture, find_source


def write(path, content):
    path.write_bytes(content)
    return str(path)


def all_frames(source, count=8, **options):
    """All frames that a capture gives, and the capture."""
    found = []
    with Capture(find_source(source), **options) as capturing:
        while taken := capturing.take(count, 60):
            found += taken
    return found, capturing


def image_numbers(frames):
    return numbers(np.stack([frame.image for frame in frames]))


def test_a_file_gives_the_frames_that_decode_gives(tmp_path):
    # 30 frames per second, not all of one length; 25 are wanted.
    times = [0, 33, 67, 100, 133, 210, 233, 267, 300, 333, 367, 400]
    path = write(tmp_path / "a.mkv", encode(moving(12, 60, 96), times))
    sizes = dict(short_side=40, crop=32)
    found, _ = all_frames(path, drop=False, **sizes)
    assert [frame.number for frame in found] == [*range(len(found))]
    np.testing.assert_array_equal(
        np.stack([frame.image for frame in found]), video.decode(path, **sizes)
    )


def test_a_stride_takes_every_so_many_frames_and_keeps_their_numbers(tmp_path):
    path = write(tmp_path / "a.mp4", steady(23))
    found, capturing = all_frames(path, drop=False, stride=5)
    assert [frame.number for frame in found] == [0, 5, 10, 15, 20]
    assert image_numbers(found) == [0, 5, 10, 15, 20] and capturing.captured == 5


def test_a_file_is_played_no_faster_than_its_speed(tmp_path):
    path = write(tmp_path / "a.mp4", steady(20))
    found, capturing = all_frames(path, capacity=100)
    assert image_numbers(found) == [*range(20)] and capturing.dropped == 0
    for number, frame in enumerate(found):
        assert frame.captured - found[0].captured >= number / 25 - 0.002


def test_who_falls_behind_loses_frames_and_gets_the_others_in_order(tmp_path):
    path = write(tmp_path / "a.mp4", steady(60))
    with Capture(find_source(path), capacity=8) as capturing:
        first = capturing.take(4, 60)
        wait_until(lambda: capturing.captured >= 50)  # The consumer is busy meanwhile.
        newest = capturing.captured
        then = capturing.take(4, 60)
        rest = []
        while taken := capturing.take(4, 60):
            rest += taken
    shown = [frame.number for frame in (*first, *then, *rest)]
    assert shown == sorted(set(shown)) and shown[-1] == 59
    assert image_numbers([*first, *then, *rest]) == shown
    # What waited is at most the capacity: the delay is bounded.
    assert then[0].number >= newest - 8
    assert capturing.captured == 60 and len(shown) + capturing.dropped == 60
    assert capturing.dropped % 4 == 0 and capturing.dropped >= 36


def test_without_dropping_a_slow_consumer_gets_every_frame(tmp_path):
    path = write(tmp_path / "a.mp4", steady(30))
    with Capture(find_source(path), capacity=4, drop=False) as capturing:
        threading.Event().wait(0.3)
        assert capturing.captured <= 5  # No more is read ahead.
        found = []
        while taken := capturing.take(4, 60):
            found += taken
    assert image_numbers(found) == [*range(30)] and capturing.dropped == 0


def test_frames_that_have_not_come_in_time_are_none_and_are_not_lost(tmp_path):
    path = write(tmp_path / "a.mp4", steady(10))
    with Capture(find_source(path)) as capturing:
        while (found := capturing.take(10, 0.01)) is None:
            pass
        assert image_numbers(found) == [*range(10)]
        assert capturing.take(1, 60) == [] == capturing.take(1, 60)


def test_the_last_frames_are_fewer(tmp_path):
    path = write(tmp_path / "a.mp4", steady(10))
    with Capture(find_source(path), drop=False) as capturing:
        assert [len(capturing.take(4, 60)) for _ in range(4)] == [4, 4, 2, 0]


@pytest.mark.parametrize("rate", [25, 50])
def test_an_mpeg_ts_stream_over_udp_gives_its_frames_in_order(rate):
    with udp_stream(rate=rate) as url, Capture(find_source(url), capacity=64) as capturing:
        found = []
        while len(found) < 40:
            found += capturing.take(8, 60)
    # Numbers count 25 frames per second, whatever the stream has. The stream was joined anywhere.
    shown = np.array(image_numbers(found))
    count = np.array([frame.number for frame in found])
    assert np.all(np.diff(count) > 0)
    assert len({*((shown - count * rate // 25) % NUMBERS)}) == 1


def test_a_stream_that_falls_silent_ends_with_an_error_after_its_frames():
    with (
        udp_stream(lasts=40) as url,
        Capture(find_source(url), capacity=64, timeout=1.0) as capturing,
    ):
        found = capturing.take(10, 60)
        with pytest.raises(video.VideoError, match=f"^{url}: nothing came for 1 s$"):
            while True:
                found += capturing.take(10, 60)
    assert (image_numbers(found)[-1] - image_numbers(found)[0]) % NUMBERS == len(found) - 1


def test_nothing_at_all_from_a_stream_is_an_error():
    url = f"udp://127.0.0.1:{free_udp_port()}"
    with pytest.raises(video.VideoError, match=f"^{url}: nothing came for 0.2 s$"):
        all_frames(url, timeout=0.2)


def test_jpegs_without_timestamps_are_shown_when_they_come():
    with jpeg_stream(20, 12.5) as url, Capture(find_source(url), capacity=64) as capturing:
        found = capturing.take(20, 60)
    # Each is on the screen for two of 25 frames per second, more or less. FFmpeg would say one.
    shown, count = image_numbers(found), [frame.number for frame in found]
    assert shown == sorted(shown) and count == [*range(20)]
    assert len({*shown}) <= 16


def test_a_consumer_that_stops_ends_the_thread(tmp_path):
    path = write(tmp_path / "a.mp4", steady(60))
    for drop in True, False:
        with Capture(find_source(path), capacity=4, drop=drop) as capturing:
            capturing.take(1, 60)
        assert not capturing._thread.is_alive()


def test_packets_that_cannot_be_decoded_are_counted(tmp_path):
    path = write(tmp_path / "a.mkv", damaged_mjpeg([5, 6]))
    found, capturing = all_frames(path, drop=False)
    assert len(found) == 20 and capturing.damaged == 2


@pytest.mark.parametrize(
    "name,message",
    [
        ("missing.mp4", "cannot be decoded: No such file or directory|No such file or directory"),
        ("text.mp4", "cannot be decoded: Invalid data found"),
        ("empty.mp4", "is empty"),
        ("folder", "Is a directory"),
        ("fifo", "is a FIFO, wanted a file"),
        ("sound.mka", "has no video stream"),
        ("/dev/video99", "cannot be opened: No such file or directory"),
        ("webcam:99", "cannot be opened: No such file or directory"),
        ("/dev/null", "cannot be opened: Inappropriate ioctl for device"),
        ("rtsp://127.0.0.1:CLOSED/live", "cannot be opened: Connection refused"),
        ("http://no.such.host.invalid/a.mp4", "there is no host no.such.host.invalid"),
        ("gopher://127.0.0.1/", "cannot be opened: "),
        ("nonsense://127.0.0.1/", "cannot be opened: Protocol not found"),
    ],
)
def test_a_source_that_cannot_be_read_is_an_error_that_names_it(name, message, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        name = name.replace("CLOSED", str(closed.getsockname()[1]))
        if "/" not in name and ":" not in name:
            name = str(tmp_path / name)
        if name.endswith(".mka"):
            sound = encode(numbered(1), [0], sound=0.1)
            write(tmp_path / "sound.mka", only_sound(sound))
        with pytest.raises(video.VideoError) as found:
            all_frames(name)
    assert str(found.value).startswith(f"{name}: ") and str(found.value).count("\n") == 0
    assert any(each in str(found.value) for each in message.split("|"))


def only_sound(data):
    """The audio track of a file as a file."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "name,platform,wanted",
    [
        ("webcam", "linux", ("/dev/video0", "v4l2")),
        ("webcam:2", "linux", ("/dev/video2", "v4l2")),
        ("webcam", "darwin", ("0", "avfoundation")),
        ("webcam:1", "darwin", ("1", "avfoundation")),
        ("webcam:Integrated Camera", "win32", ("video=Integrated Camera", "dshow")),
        ("/dev/video1", "linux", ("/dev/video1", "v4l2")),
        ("udp://239.0.0.1:1234", "linux", ("udp://239.0.0.1:1234", None)),
    ],
)
def test_names_of_sources_are_understood_as_ffmpeg_opens_them(name, platform, wanted):
    source = find_source(name, platform)
    assert (source.url, source.format) == wanted and not source.paced and not source.file


def test_a_webcam_of_an_unknown_platform_is_an_error():
    with pytest.raises(video.VideoError, match="^webcam: webcams are not known on plan9"):
        find_source("webcam", "plan9")


def test_a_password_in_a_url_is_not_printed():
    source = find_source("rtsp://user:secret@camera.local/live")
    assert source.name == "rtsp://user:***@camera.local/live"
    assert source.url == "rtsp://user:secret@camera.local/live"
    assert find_source("rtsp://camera.local:554/a@b").name == "rtsp://camera.local:554/a@b"


def test_playback_that_is_late_goes_on_from_there(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(capture.time, "monotonic", lambda: now[0])
    clock = capture._Clock(25)
    assert clock.seconds_until(0) == pytest.approx(0)
    assert clock.seconds_until(25) == pytest.approx(1)
    now[0] = 101.2  # A little late: the frames in between catch up.
    assert clock.seconds_until(25) == pytest.approx(-0.2)
    now[0] = 110.0  # Frame 50 was due at 102.
    assert clock.seconds_until(50) == pytest.approx(0)
    assert clock.seconds_until(75) == pytest.approx(1)


def test_a_file_from_a_server_is_played_too():
    data = steady(30, "matroska")

    def answer(handler):
        head(handler, content_length=str(len(data)))
        handler.wfile.write(data)

    with answering(answer) as (url, _):
        assert find_source(url).paced
        found, _ = all_frames(url, drop=False)
    assert image_numbers(found) == [*range(30)]


def test_a_device_that_has_no_frame_yet_is_asked_again(tmp_path):
    path = write(tmp_path / "a.mp4", steady(6))
    with av.open(path) as container:
        track = container.streams.video[0]

        class Device:
            """A camera that has a frame every other time it is asked."""

            def __init__(self):
                self.packets, self.asked = container.demux(track), 0

            def demux(self, _):
                self.asked += 1
                if self.asked > 1:
                    yield next(self.packets)
                if self.asked <= 6:
                    raise av.error.BlockingIOError(11, "Resource temporarily unavailable")
                yield from self.packets

        capturing = Capture(find_source(path))
        frames = [frame.to_ndarray(format="rgb24") for frame in capturing._packets(Device(), track)]
    assert numbers(np.stack(frames)) == [*range(6)]


def test_a_device_without_permission_is_an_error(monkeypatch):
    def refuse(*_, **__):
        raise av.error.PermissionError(13, "Permission denied", "/dev/video0")

    monkeypatch.setattr(capture.av, "open", refuse)
    with pytest.raises(video.VideoError, match="^webcam: cannot be opened: Permission denied$"):
        all_frames("webcam")


@pytest.mark.parametrize("name", ["missing.mp4", "/dev/video99", "webcam:99"])
def test_a_missing_file_or_device_is_seen_without_opening_it(name):
    with pytest.raises(video.VideoError, match=f"^{name}: cannot be opened: No such file"):
        capture.check_exists(find_source(name, "linux"))


def test_other_sources_are_not_looked_for():
    for name in "udp://127.0.0.1:1", "http://no.such.host.invalid/a.mp4":
        capture.check_exists(find_source(name))
