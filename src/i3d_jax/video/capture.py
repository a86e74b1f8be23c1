"""Frames of a live source as they come: a webcam, a stream from the network, a file being played.

A thread decodes the source. Frames are those of `decoding.decode`: the frame on the screen at
i / fps by the source's timestamps, upright, resized and cropped. A consumer that falls behind loses
frames, so that the others are not late.
"""

import contextlib
import errno
import os
import re
import socket
import stat
import sys
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Self

import av
import av.container
import av.device
import av.error
import numpy as np

from i3d_jax.video import decoding, playback
from i3d_jax.video.playback import FPS, OPEN_OPTIONS, DisplayedFrame, VideoError

# By platform (`sys.platform`): FFmpeg's name of webcams.
WEBCAM_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
# Of URLs, those whose servers may send faster than a stream plays: files, and HLS in pieces.
PACED_SCHEMES = "http", "https"
# Seconds. A stream that is silent for longer goes on as a new recording, without frames between.
MAX_GAP = 10
# Seconds that playback may be late before its clock is set back, as when a player has to wait.
MAX_LATE = 0.5
# FFmpeg's formats without timestamps of their own: a frame's time is that of its arrival.
UNTIMED_FORMATS = ("mpjpeg",)
DEVICE_PAUSE = 0.005  # Seconds between looks at whether a device has a frame.
TIMEOUT = 10.0


class Source(NamedTuple):
    """A live source as FFmpeg opens it.

    Attributes:
      name: in messages.
      url: what is opened.
      format: FFmpeg's name of the input format; None lets it find out.
      options: of FFmpeg.
      file: whether it is a file, which is read as `decoding.decode` reads it.
      paced: whether frames may come faster than they are shown.
    """

    name: str
    url: str
    format: str | None = None
    options: Mapping[str, str] = {}
    file: bool = False
    paced: bool = False


class LiveFrame(NamedTuple):
    """A frame of a live source.

    Attributes:
      number: counted at the source's `fps` from its first frame on, also over dropped frames.
      captured: `time.monotonic()` when the frame had come.
      image: uint8 [H, W, 3].
    """

    number: int
    captured: float
    image: np.ndarray


def find_source(name: str, platform: str = sys.platform) -> Source:
    """Finds out what a name stands for.

    Args:
      name: "webcam" or "webcam:1" for this platform's webcam, a device such as /dev/video0, a URL,
        or a file.
      platform: see `sys.platform`.

    Raises:
      VideoError: there is no such webcam.
    """
    webcam = re.fullmatch(r"webcam(?::(.+))?", name)
    if webcam and not os.path.lexists(name):
        return _find_webcam(name, webcam[1] or "0", platform)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name):
        options = {"overrun_nonfatal": "1"} if scheme[1].lower() == "udp" else {}
        paced = scheme[1].lower() in PACED_SCHEMES
        return Source(_without_password(name), name, options=options, paced=paced)
    with contextlib.suppress(OSError):  # FFmpeg's message says what is wrong.
        if stat.S_ISCHR(os.stat(name).st_mode):
            return Source(name, name, WEBCAM_FORMATS.get(platform, "v4l2"))
    if name.startswith("/dev/video"):
        return Source(name, name, "v4l2")
    return Source(name, name, file=True, paced=True)


def check_exists(source: Source) -> None:
    """Raises a VideoError if a source is a file or device that is missing; opens nothing."""
    if source.file or source.format == "v4l2":
        try:
            os.stat(source.url)
        except OSError as error:
            raise VideoError(source.name, f"cannot be opened: {error.strerror}") from None


def _find_webcam(name: str, which: str, platform: str) -> Source:
    kind = WEBCAM_FORMATS.get(platform)
    if kind is None:
        raise VideoError(name, f"webcams are not known on {platform}; name a device, file or URL")
    if kind == "v4l2":
        return Source(name, f"/dev/video{which}" if which.isdigit() else which, kind)
    if kind == "avfoundation":
        # Its own default, 29.97 per second, is refused by many webcams.
        return Source(name, which, kind, {"framerate": "30"})
    if which.isdigit():  # DirectShow has names only.
        try:
            found = av.device.enumerate_input_devices(kind)
        except (ValueError, av.error.FFmpegError):
            found = []
        names = [each.description for each in found if "video" in each.media_types]
        if int(which) >= len(names):
            raise VideoError(name, f"there are {len(names)} webcams; they are counted from 0")
        which = names[int(which)]
    return Source(name, f"video={which}", kind)


def _without_password(url: str) -> str:
    """The URL with "***" in place of a password."""
    return re.sub(r"(://[^/@:]*):[^/]*@", r"\1:***@", url)


class Capture:
    """Reads a live source in a thread. It is a context manager, which ends the thread.

    The thread opens the source. Files are played at their speed.

    Args:
      source: see `find_source`.
      fps: frames per second.
      short_side: see `decoding.decode`.
      crop: see `decoding.decode`.
      stride: gives every `stride`-th frame.
      capacity: most frames that wait to be taken. When they are as many, the older half of them is
        dropped: one cut in time instead of many.
      drop: False gives every frame of a source, as fast as they are taken. This is for files.
      timeout: seconds after which a silent stream has ended; also for opening it.
      options: of FFmpeg, such as {"video_size": "1280x720"}.

    Attributes:
      captured: number of frames that came so far, on the grid of `fps` and `stride`.
      dropped: how many of these were dropped.
      taken: how many of these were taken.
      damaged: number of packets that could not be decoded.
    """

    def __init__(
        self,
        source: Source,
        *,
        fps: float = FPS,
        short_side: int | None = None,
        crop: int | None = None,
        stride: int = 1,
        capacity: int = 32,
        drop: bool = True,
        timeout: float = TIMEOUT,
        options: Mapping[str, str] | None = None,
    ):
        self.source, self.fps, self.stride = source, fps, stride
        self._short_side, self._crop = short_side, crop
        self._capacity, self._drop, self._timeout = capacity, drop, timeout
        self._options = {**source.options, **(options or {})}
        self._losses = playback._Losses(strict=False)
        self._waiting: deque[LiveFrame] = deque()
        self._changed = threading.Condition()  # Guards all that follows.
        self._closed, self._ended = False, False
        self._error: VideoError | None = None
        self.captured = self.dropped = self.taken = 0
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    @property
    def damaged(self) -> int:
        return self._losses.packets

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # A thread that waits for a silent source ends when something comes, or with the process.
        self._thread.join(1.0)

    def take(self, count: int, timeout: float | None = None) -> list[LiveFrame] | None:
        """Returns the next frames in order.

        Args:
          count: how many, at most `capacity`.
          timeout: seconds to wait for them; None waits forever.

        Returns:
          `count` frames; fewer at the end of the source, and then []. None if they have not come
          in time.

        Raises:
          VideoError: the source cannot be opened or read on. The frames before it are given first.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self._waiting) >= count or self._ended, timeout
            ):
                return None
            if not self._waiting and self._error is not None:
                raise self._error
            found = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
            self.taken += len(found)
            self._changed.notify_all()
            return found

    def _run(self) -> None:
        error = None
        try:
            with self._open() as (container, track):
                self._decode(container, track)
        except VideoError as found:
            error = found
        except av.error.FFmpegError as found:
            error = VideoError(self.source.name, self._reason(found))
        except Exception as found:  # noqa: BLE001 - the consumer shall hear of it.
            error = VideoError(self.source.name, f"cannot be read: {found}")
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        name = self.source.name
        if self.source.file:
            with playback._open(self.source.url, name, 0) as opened:
                yield opened
            return
        options: dict[str, Any] = OPEN_OPTIONS | {"timeout": self._timeout}
        try:
            container = av.open(
                self.source.url, format=self.source.format, options=self._options, **options
            )
        except ValueError:  # PyAV's, for an input format that FFmpeg was built without.
            raise VideoError(name, f"{self.source.format} is not in this FFmpeg") from None
        with container:
            yield container, playback._choose_track(container, name, 0)

    def _reason(self, error: av.error.FFmpegError) -> str:
        """What went wrong, for a message."""
        if isinstance(error, av.error.ExitError):
            return f"nothing came for {self._timeout:g} s"
        if self.captured:
            return f"ended after {self.captured * self.stride / self.fps:.2f} s: {error.strerror}"
        if self.source.file and os.path.exists(self.source.url):
            empty = os.path.isfile(self.source.url) and not os.path.getsize(self.source.url)
            return "is empty" if empty else f"cannot be decoded: {error.strerror}"
        host = urllib.parse.urlsplit(self.source.url).hostname
        if error.errno == errno.EIO and host is not None:  # FFmpeg's for a host without address.
            try:
                socket.getaddrinfo(host, None)
            except OSError:
                return f"there is no host {host}"
        return f"cannot be opened: {error.strerror}"

    def _decode(self, container: Any, track: Any) -> None:
        image_of = decoding.ImageMaker(self.source.name, self._short_side, self._crop)
        any_shown = False
        aspect = track.sample_aspect_ratio or Fraction(1)
        clock = _Clock(self.fps) if self.source.paced and self._drop else None
        for number, frame in self._on_the_grid(container, track):
            any_shown = True
            if self._closed:
                return
            if number % self.stride:
                continue
            image = image_of(DisplayedFrame(frame, aspect))
            if clock is not None:
                self._wait(clock.seconds_until(number))
            self._give(LiveFrame(number, time.monotonic(), image))
        if not any_shown:
            if self._losses.first_error is not None:
                raise self._losses.first_error
            raise VideoError(self.source.name, "has no frame 0 at 25 frames per second")

    def _on_the_grid(self, container: Any, track: Any) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (i, frame on the screen at i / fps)."""
        if self.source.file:
            origin, decoded = playback._decode_from(
                container, track, self.source.name, self._losses, 0
            )
            return playback.resample(decoded, track, origin, self.fps, 0, playback.MAX_GAP)
        packets = self._packets(container, track)
        # To look ahead would delay frames that come as they are shown.
        lookahead = playback.LOOKAHEAD if self.source.paced else 0
        timed = playback.with_timestamps(packets, [0, 0], lookahead)
        if container.format.name in UNTIMED_FORMATS:
            timed = _at_arrival(timed, track)
        return playback.resample(_from_zero(timed), track, 0, self.fps, 0, MAX_GAP)

    def _packets(self, container: Any, track: Any) -> Iterator[av.VideoFrame]:
        packets = container.demux(track)
        while not self._closed:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):  # See `playback._demux`.
                return
            except av.error.BlockingIOError:  # A device that has no frame yet.
                self._wait(DEVICE_PAUSE)
                packets = container.demux(track)
                continue
            try:
                yield from packet.decode()
            except av.error.FFmpegError as error:
                self._losses.add(error)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, max(0.0, seconds))

    def _give(self, frame: LiveFrame) -> None:
        with self._changed:
            if not self._drop:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._capacity)
            self.captured += 1
            if len(self._waiting) >= self._capacity:
                for _ in range(max(1, self._capacity // 2)):
                    self._waiting.popleft()
                    self.dropped += 1
            self._waiting.append(frame)
            self._changed.notify_all()


class _Clock:
    """When frames are due. Playback that is late goes on from there, as in a player."""

    def __init__(self, fps: float):
        self._fps, self._start = fps, -np.inf

    def seconds_until(self, number: int) -> float:
        """Seconds until a frame is due; 0 or less: now."""
        now = time.monotonic()
        if now - (self._start + number / self._fps) > MAX_LATE:
            self._start = now - number / self._fps
        return self._start + number / self._fps - now


def _from_zero(timed: Iterator[tuple[av.VideoFrame, int | None]]) -> Iterator:
    """Yields frames with times that count from the first frame's."""
    origin = None
    for frame, ticks in timed:
        if origin is None and ticks is not None:
            origin = ticks
        yield frame, None if ticks is None else ticks - (origin or 0)


def _at_arrival(timed: Iterator[tuple[av.VideoFrame, int | None]], track: Any) -> Iterator:
    """Yields frames with the times at which they came."""
    for frame, _ in timed:
        yield frame, round(time.monotonic() / (frame.time_base or track.time_base))
