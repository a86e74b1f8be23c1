"""Decides which frame of a video file is on the screen at a given time, as a player does.

FFmpeg reads the file, through PyAV. This module makes the choices that FFmpeg's own tools make:
which track is the video, which timestamps to trust, which frame is shown at a given time, how
frames are rotated and mirrored, and which errors are damage.
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

FPS = 25.0  # Of all training and tests in the paper.
# Seconds. A strict reading takes a frame that is shown for longer as damage.
MAX_STILL = 60
# Seconds. A longer gap between timestamps means that another recording begins.
MAX_GAP = 3600
# Of a stored frame; 8K is below it. Some dozens of frames may be in memory at a time.
MAX_PIXELS = 8192 * 4352
# FFmpeg's names of the containers whose index gives key frames. In others a seek may land behind
# its target.
SEEKABLE_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"
# Metadata need not be UTF-8; PyAV before 19 must be told.
OPEN_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
# The frame count that FFmpeg's muxer leaves in an AVI header when it cannot seek back to it.
UNKNOWN_FRAMES = 2**30
LOOKAHEAD = 8  # Frames that are decoded before the first timestamp is trusted.
# The timestamps of another recording begin within so many packets after a flagged one.
JOINT_PACKETS = 2


class VideoError(ValueError):
    """A file that is not a video or cannot be decoded.

    Attributes:
      name: the file, which the message names first.
      reason: the rest of the message.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):  # So that it can be pickled, between processes.
        return VideoError, (self.name, self.reason)


class DamageWarning(UserWarning):
    """Part of a video could not be decoded; the message names the file and says how much."""


class DisplayedFrame(NamedTuple):
    """The frame on the screen at some time.

    Attributes:
      frame: the stored frame; the same object as long as it stays on the screen.
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
) -> Iterator[DisplayedFrame]:
    """Yields the frames on the screen at times start / fps, (start + stride) / fps, and so on.

    Args:
      video: see `decoding.decode`.
      fps: see `decoding.decode`.
      start: see `decoding.decode`.
      frames: see `decoding.decode`.
      stride: see `decoding.decode`.
      threads: see `decoding.decode`.
      strict: see `decoding.iter_frames`.

    Raises:
      VideoError: as `decoding.iter_frames`.
      ValueError: `frames` or `stride` is below 1.
    """
    if frames is not None and frames < 1 or stride < 1:
        raise ValueError(f"frames is {frames} and stride is {stride}, wanted 1 or more")
    name, losses = name_of(video), _Losses(strict)
    end, any_shown, previous, previous_since = 0.0, False, None, 0
    try:
        with _open(video, name, threads) as (container, track):
            origin, decoded = _decode_from(container, track, name, losses, start / fps)
            aspect = track.sample_aspect_ratio or Fraction(1)
            max_gap = np.inf if strict else MAX_GAP
            for index, frame in resample(decoded, track, origin, fps, start, max_gap):
                end = (index + 1) / fps
                if frame is not previous:
                    previous, previous_since = frame, index
                if strict and index - previous_since >= MAX_STILL * fps:
                    raise VideoError(
                        name, f"is damaged: shows one frame for more than {MAX_STILL} s"
                    )
                if index < start or (index - start) % stride:
                    continue
                any_shown = True
                yield DisplayedFrame(frame, aspect)
                if frames is not None and index == start + (frames - 1) * stride:
                    return
            duration = _duration(container, track, origin)
            if strict and duration - end > 0.5:
                raise VideoError(name, f"is truncated: ends after {end:.2f} s of {duration:.2f} s")
            if not any_shown and losses.first_error is not None:
                raise losses.first_error
    except av.error.FFmpegError as error:
        where = f"is damaged: after {end:.2f} s" if strict and end else "cannot be decoded"
        raise _decoding_error(video, error, where) from None
    finally:
        if any_shown and losses.packets:
            lost = f"all after {end:.2f} s" if losses.rest_lost else _lost_packets(losses.packets)
            warnings.warn(f"{name}: is damaged: left out: {lost}", DamageWarning, 3)
    if not any_shown:
        raise VideoError(
            name, "has no frame" + (f" {start} at {fps:g} frames per second" if start else "")
        )


@contextlib.contextmanager
def opened(video: str | os.PathLike | bytes) -> Iterator[tuple[Any, Any]]:
    """Opens a video; gives its container and the track that a player shows.

    Raises:
      VideoError: also for FFmpeg's errors in the block.
    """
    try:
        with _open(video, name_of(video), 1) as found:
            yield found
    except av.error.FFmpegError as error:
        raise _decoding_error(video, error, "cannot be decoded") from None


def _decoding_error(
    video: str | os.PathLike | bytes, error: av.error.FFmpegError, where: str
) -> VideoError:
    """The error of a video that FFmpeg cannot open or decode."""
    if isinstance(video, bytes) or not os.path.isfile(video) or os.path.getsize(video):
        return VideoError(name_of(video), f"{where}: {error.strerror}")
    return VideoError(name_of(video), "is empty")


def name_of(video: str | os.PathLike | bytes) -> str:
    """A video's name in messages."""
    return f"{len(video)} bytes of video" if isinstance(video, bytes) else os.fspath(video)


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Rotates and mirrors an image [H, W, ...] as its frame's display matrix says."""
    (a, b), (c, d) = display_matrix(frame)
    if a * d == b * c:  # Degenerate: some muxers write zeros, which players ignore.
        return image
    # Up to an offset, the stored pixel (x, y) is shown at (a x + c y, b x + d y). Matrices in
    # between are rounded to the nearest multiple of 90 degrees.
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def is_turned(frame: av.VideoFrame) -> bool:
    """Whether `upright` exchanges height and width."""
    return upright(np.empty((1, 2)), frame).shape == (2, 1)


def display_matrix(frame: av.VideoFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rotating part of a frame's display matrix, ((a, b), (c, d)) in ISO 14496-12's names."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return (1, 0), (0, 1)
    a, b, _, c, d, *_ = np.frombuffer(cast(Any, data), np.int32).tolist()
    return (a, b), (c, d)


class _Losses:
    """The parts of a file that could not be decoded.

    Attributes:
      strict: whether a loss is an error.
      packets: number of packets that could not be decoded.
      rest_lost: whether the file goes on, but the demuxer cannot find where.
      first_error: the error of the first lost packet.
    """

    def __init__(self, strict: bool):
        self.strict, self.packets, self.rest_lost = strict, 0, False
        self.first_error: av.error.FFmpegError | None = None

    def add(self, error: av.error.FFmpegError) -> None:
        """Counts a packet that cannot be decoded; raises the error in a strict reading."""
        if self.strict:
            raise error
        self.packets, self.first_error = self.packets + 1, self.first_error or error


def _lost_packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'} that could not be decoded"


@contextlib.contextmanager
def _open(video: str | os.PathLike | bytes, name: str, threads: int) -> Iterator[tuple[Any, Any]]:
    """Opens a video; gives its container and the track that a player shows."""
    if not isinstance(video, bytes):
        with contextlib.suppress(OSError):  # FFmpeg's message says what is wrong.
            if kind := files.special_file_kind(os.stat(video).st_mode):
                raise VideoError(name, f"is {kind}, wanted a file")
    with av.open(
        io.BytesIO(video) if isinstance(video, bytes) else f"file:{name}", **OPEN_OPTIONS
    ) as container:
        assert isinstance(container, av.container.InputContainer)
        yield container, _choose_track(container, name, threads)


def _choose_track(container: Any, name: str, threads: int) -> Any:
    """The track of an open container that a player shows, set up to be decoded."""
    # PyAV asks FFmpeg to invent missing presentation times. They come out of order where
    # frames refer to later ones.
    container.flags &= ~av.container.Flags.gen_pts.value
    track = cast(Any, container.streams.best("video"))  # Not the cover picture.
    if track is None or track.disposition & av.stream.Disposition.attached_pic:
        raise VideoError(name, "has no video stream")
    decoder = track.codec_context
    if decoder is None:
        raise VideoError(name, "cannot be decoded: there is no decoder for it")
    if decoder.width * decoder.height > MAX_PIXELS:
        size = f"{decoder.height}x{decoder.width}"
        raise VideoError(name, f"has frames of {size}, wanted {MAX_PIXELS} pixels at most")
    # Not "FRAME": how many frames a damaged one takes with it would depend on the number of
    # threads.
    track.thread_type, decoder.thread_count = "SLICE", threads
    decoder.options = {"max_pixels": str(MAX_PIXELS)}  # A stream may change its size.
    return track


def _decode_from(
    container, track, name: str, losses: _Losses, seconds: float
) -> tuple[int, Iterator[tuple[av.VideoFrame, int | None]]]:
    """Decodes a track, at least from a given time on.

    Returns:
      the time of the video's first frame in ticks, and the frames (see `with_timestamps`).
    """
    reversals = [0, 0]
    decoded = with_timestamps(_decode_packets(container, track, name, losses), reversals)
    first = next(decoded, None)
    # The stream's own start is not used: its first frames may be missing, or refer to missing ones.
    origin = 0 if first is None or first[1] is None else first[1]
    if seconds and container.format.name in SEEKABLE_FORMATS:
        _seek(container, track, origin, seconds)
        return origin, with_timestamps(_decode_packets(container, track, name, losses), reversals)
    return origin, decoded if first is None else itertools.chain([first], decoded)


def _seek(container, track, origin: int, seconds: float) -> None:
    # Half a frame early: the nearest frame may lie before the time wanted. And 4 frames more:
    # AVI's index has decoding times, and B-frames make a key frame's presentation time later.
    seconds -= 4.5 / float(track.average_rate or FPS)
    container.seek(
        max(track.start_time or 0, round(seconds / track.time_base) + origin), stream=track
    )


def _duration(container, track, origin: int) -> float:
    """The stated duration from `origin` on, in seconds; 0 or less if the file states none."""
    start = float(origin * track.time_base)
    if container.format.name == "avi" and track.frames >= UNKNOWN_FRAMES:
        return 0.0
    if track.duration:
        # For a truncated AVI file FFmpeg lowers the duration, but not the number of frames.
        ticks = max(track.duration, track.frames if container.format.name == "avi" else 0)
        return float(((track.start_time or 0) + ticks) * track.time_base) - start
    # Matroska's tag, "00:00:10.333000000", counts from 0. Editors leave outdated tags behind,
    # under names with a language.
    tags = {name: text for name, text in track.metadata.items() if name.startswith("DURATION")}
    tag = tags.get("DURATION") or min(tags.values(), default="")
    if parts := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", tag):
        hours, minutes, seconds = map(float, parts.groups())
        return 3600 * hours + 60 * minutes + seconds - start
    if len(container.streams) == 1 and container.duration:  # Sound may outlast the video.
        return container.duration / av.time_base - start
    return 0.0


def _decode_packets(container, track, name: str, losses: _Losses) -> Iterator[av.VideoFrame]:
    """Yields a track's frames; a strict reading raises at the first damaged one."""
    for packet in _unflag_joints(_demux(container, track, losses)):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            losses.add(error)
            continue
        # err_detect=explode finds hardly more, and it refuses videos that were cut out of open
        # groups of pictures.
        if losses.strict and (packet.is_corrupt or any(frame.is_corrupt for frame in frames)):
            times = [frame.time for frame in frames if frame.time is not None]
            raise VideoError(name, "is damaged" + (f": at {times[0]:.2f} s" if times else ""))
        yield from frames


def _demux(container, track, losses: _Losses) -> Iterator[av.Packet]:
    try:
        yield from container.demux(track)
    except IndexError:
        # PyAV raises it after the last packet if a stream appeared after the beginning.
        return
    except av.error.FFmpegError as error:
        losses.add(error)
        losses.rest_lost = True
        end = av.Packet()  # Flushes the frames that the decoder still holds.
        end.stream = track
        yield end


def _unflag_joints(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Yields packets, without the corruption flag where one recording ends and another begins.

    Where recordings are concatenated, as in MPEG-TS, parts of the stream seem to be missing, but
    both recordings are whole.
    """
    window: deque[av.Packet] = deque()
    for packet in itertools.chain(packets, [None] * JOINT_PACKETS):
        if packet is not None:
            window.append(packet)
        if len(window) > JOINT_PACKETS or (packet is None and window):
            if window[0].is_corrupt and _has_new_recording(window):
                window[0].is_corrupt = False
            yield window.popleft()


def _has_new_recording(packets: deque[av.Packet]) -> bool:
    """Whether decoding times go back by more than a second, to a key frame."""
    return any(
        after.is_keyframe
        and None not in (before.dts, after.dts)
        and (before.dts - after.dts) * float(after.time_base) > 1  # pyright: ignore - not None
        for before, after in itertools.pairwise(packets)
    )


def with_timestamps(
    decoded: Iterator[av.VideoFrame], reversals: list[int], lookahead: int = LOOKAHEAD
) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """Yields frames and their times in ticks; None where a frame has no time.

    The time is the presentation time, unless presentation times go back more often than decoding
    times; then it is the decoding time. Decoders give frames in the order of presentation, so a
    time that goes back is wrong. FFmpeg's tools guess in the same way, but they do not look ahead
    and they count the first reversal. AVI has no presentation times.

    An error is raised after the frames before it.

    Args:
      decoded: frames in the decoder's order.
      reversals: how often presentation and decoding times went back so far. This is updated.
      lookahead: frames that are decoded before the first timestamp is trusted.
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
                    reversals[which] += time <= last[which]
                    last[which] = time
        # A single reversal may be a frame that came twice.
        by_decoding = reversals[0] > reversals[1] + 1 and np.isfinite(last[1])
        while len(waiting) > (0 if frame is None else lookahead):
            oldest = waiting.popleft()
            yield oldest, oldest.dts if by_decoding or oldest.pts is None else oldest.pts
        if frame is None:
            break
    if error is not None:
        raise error


def resample(
    decoded, track, origin: int, fps: float, start: int, max_gap: float
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (i, frame on the screen at i / fps), for i in order, from `start` or earlier on.

    A frame may come on early, by at most half an output frame, if it is then nearer than the one
    before. Where timestamps go back by more than a second, or ahead by more than `max_gap`
    seconds, another recording begins, as in concatenated MPEG-TS files. It is shown after the one
    before.
    """
    step = 1 / float(track.average_rate or fps)
    frame, time, index, offset = None, 0.0, 0, 0.0
    for following, ticks in decoded:
        if ticks is None:
            now = time + step if frame else 0.0
        else:
            now = float((ticks - origin) * following.time_base) + offset
            if frame is not None and not time - 1 <= now <= time + max_gap:
                offset += time + step - now
                now = time + step
        if frame is None:
            # After a seek the first decoded frame is some key frame before the time wanted.
            index = min(start, max(0, round(now * fps)))
        else:
            middle, latest = (time + now) / 2, now - 0.5 / fps
            until = latest + 1e-6 if latest > middle + 1e-6 else middle
            while index / fps < until:
                yield index, frame
                index += 1
        frame, time = following, max(now, time)
    if frame is not None:
        duration = min(float(frame.duration * track.time_base), max_gap) if frame.duration else step
        # The last frame is shown for its duration. A video has at least one frame.
        while index / fps < time + duration - 1e-3 / fps or index == 0:
            yield index, frame
            index += 1
