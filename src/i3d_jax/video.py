"""Video files: decoding to frames at a given rate, resizing, cropping, looping.

Frames are uint8 [T, H, W, 3], RGB, or uint8 [T, H, W, 2], flow: u and v in pixels to the next frame, truncated to [-20, 20],
as 128 + 127 / 20 of them, so that no motion is exactly 128. A video is whatever FFmpeg opens, through PyAV: a path, or the
bytes of a file. Flow is stored as one grey video, u above v.
"""

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any, cast

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np

FPS = 25.0  # Of everything the paper trains and tests on.
LONGEST = 60  # Seconds that a video which is not damaged shows one frame.
# FFmpeg's names of those whose index says where key frames are; in others it may land after what it was to find.
INDEXED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"
# Tags of files need not be UTF-8, which PyAV before 19 is to be told.
TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoError(ValueError):
    """A file that is no video, or cannot be decoded; the message names it, `reason` is the rest."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):  # Between processes too.
        return VideoError, (self.name, self.reason)


def decode(
    video: str | os.PathLike | bytes,
    *,
    stream: str = "rgb",
    fps: float = FPS,
    short_side: int | None = None,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    threads: int = 0,
) -> np.ndarray:
    """Decodes a video at a constant frame rate.

    Frame i is the one shown nearest to time i / fps, by the file's timestamps, so that sources of any or of varying
    rate keep their speed. Frames are turned upright as the file's metadata says. Memory is bounded by what is returned.

    Args:
      video: path, or the bytes of a whole file.
      stream: "rgb", or "flow" for a file that `h264.encode` wrote flow to.
      fps: frames per second to return.
      short_side: pixels; the frames are resized to it (bilinear, aspect kept). None keeps their size, as flow must.
      start: first frame to return, counted at `fps`; found by seeking in MP4, Matroska and AVI, by decoding what is before in others.
      frames: how many to return at most. None: all.
      stride: returns one frame in so many.
      threads: of the decoder; 0 lets it choose.

    Returns:
      uint8 [T, H, W, 3] or, of flow, [T, H, W, 2]; T >= 1.

    Raises:
      VideoError: missing, empty, not a video, no video stream, not decodable, or shorter than `start`.
      ValueError: flow is to be resized.
    """
    if stream == "flow" and short_side is not None:
        raise ValueError(f"short_side is {short_side}, but flow cannot be resized")
    previous, image, size = None, np.empty(0), None
    scaler = av.video.reformatter.VideoReformatter()
    images: list[np.ndarray] = []
    for frame in shown(video, fps=fps, start=start, frames=frames, stride=stride, threads=threads):
        if size is None:  # A stream may change its size; all frames get the first one's.
            size = frame.height, frame.width
            size = size if short_side is None else resized(*size, short_side)
        if frame is not previous:
            with _resizing(video):
                image, previous = _pixels(frame, size, scaler, stream), frame
        images.append(image)
    return np.stack(images)


def shown(
    video: str | os.PathLike | bytes,
    *,
    fps: float = FPS,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    threads: int = 0,
    strict: bool = False,
) -> Iterator[av.VideoFrame]:
    """Yields what a video shows at a constant frame rate; see `decode`. A frame that is shown for long comes again.

    A `strict` reading is for videos that are to be kept: damage that the decoder could hide, a file that ends more than
    half a second before it says, and one frame for more than a minute are errors too.

    Raises:
      VideoError: as `decode`; in a strict reading also after frames have been yielded.
    """
    name = _name(video)
    file = io.BytesIO(video) if isinstance(video, bytes) else f"file:{name}"
    end, found, before, since = 0.0, False, None, 0
    try:
        with av.open(file, **TAGS) as container:
            assert isinstance(container, av.container.InputContainer)
            if not container.streams.video:
                raise VideoError(name, "has no video stream")
            # There may be a cover, too.
            track = cast(Any, container.streams.best("video") or container.streams.video[0])
            if track.codec_context is None:
                raise VideoError(name, "cannot be decoded: there is no decoder for it")
            track.thread_type = "SLICE" if threads == 1 else "AUTO"
            track.codec_context.thread_count = threads
            decoded = _decoded(container, track, name, strict)
            first = next(decoded, None)
            # Not the stream's start: its first frames may not be there, or refer to some that are not.
            origin = 0 if first is None else first.pts or 0
            if start and container.format.name in INDEXED:
                _seek(container, track, origin, start / fps)
                decoded = _decoded(container, track, name, strict)
            elif first is not None:
                decoded = itertools.chain([first], decoded)
            for index, frame in _resample(decoded, track, origin, fps, start):
                end, before, since = (index + 1) / fps, frame, since if frame is before else index
                if strict and index - since >= LONGEST * fps:
                    raise VideoError(name, f"is damaged: shows one frame for more than {LONGEST} s")
                if frames is not None and index > start + (frames - 1) * stride:
                    return
                if index < start or (index - start) % stride:
                    continue
                found = True
                yield frame
            lasts = _duration(container, track, origin)
            if strict and lasts - end > 0.5:
                raise VideoError(name, f"is truncated: ends after {end:.2f} s of {lasts:.2f} s")
    except av.error.FFmpegError as error:
        if isinstance(video, bytes) or not os.path.isfile(video) or os.path.getsize(video):
            where = f"is damaged: after {end:.2f} s" if strict and end else "cannot be decoded"
            raise VideoError(name, f"{where}: {error.strerror}") from None
        raise VideoError(name, "is empty") from None
    if not found:
        raise VideoError(name, "has no frame" + (f" {start} at {fps:g} frames per second" if start else ""))


def yuv(
    video: str | os.PathLike,
    *,
    short_side: int,
    fps: float = FPS,
    frames: int | None = None,
    threads: int = 0,
    strict: bool = False,
) -> Iterator[list[np.ndarray]]:
    """Yields what records have of a video: the planes Y [H, W], U and V [H/2, W/2] of each frame, uint8, BT.601.

    Frames are scaled as they are stored, in YUV, and turned upright; the long side's last odd pixel is cut off. A frame
    that is shown for long gives the same list again. Arguments and errors as `shown`'s.
    """
    scaler = av.video.reformatter.VideoReformatter()  # One for all frames: making it costs more than using it.
    target: dict[str, Any] = {"dst_colorspace": "ITU601", "dst_color_range": "MPEG", "threads": 1}
    previous, planes, size = None, [], (0, 0)
    for frame in shown(video, fps=fps, frames=frames, threads=threads, strict=strict):
        if previous is None:  # A stream may change its size; all frames get the first one's.
            size = resized(frame.height, frame.width, short_side)
        if frame is not previous:
            with _resizing(video):
                scaled = scaler.reformat(frame, size[1], size[0], "yuv420p", interpolation="BILINEAR", **target)
            turned = [np.rot90(plane(scaled, number), round(frame.rotation / 90)) for number in range(3)]
            height, width = (side // 2 for side in turned[0].shape)
            planes, previous = [turned[0][: 2 * height, : 2 * width], *(x[:height, :width] for x in turned[1:])], frame
        yield planes


def grey(video: str | os.PathLike, **options: Any) -> Iterator[np.ndarray]:
    """Yields a video in grey, uint8 [H, W] from 0 to 255: the brightness of `yuv`, whose options these are."""
    levels = np.rint(np.clip((np.arange(256) - 16) * 255 / 219, 0, 255)).astype(np.uint8)
    for planes in yuv(video, **options):
        yield levels[planes[0]]


def frames_in(seconds: float) -> int:
    """The frames that a clip of so many seconds has, one at least."""
    return max(1, round(seconds * FPS))


def plane(frame: av.VideoFrame, number: int) -> np.ndarray:
    """One of a frame's planes of 8 bits, uint8 [H, W], not copied: it is valid as long as the frame is."""
    part = frame.planes[number]
    lines = np.frombuffer(cast(Any, part), np.uint8).reshape(part.height, part.line_size)
    return lines[:, : part.width]  # They are padded.


def resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter is `short_side`, the aspect kept to the pixel."""
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _name(video: str | os.PathLike | bytes) -> str:
    return f"{len(video)} bytes of video" if isinstance(video, bytes) else os.fspath(video)


@contextlib.contextmanager
def _resizing(video: str | os.PathLike | bytes) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:  # Of frames that are 4,000 times as wide as high, for one.
        raise VideoError(_name(video), f"cannot be resized: {error.strerror}") from None


def _seek(container, stream, origin: int, seconds: float) -> None:
    # Half a frame early: the frame nearest to the time wanted may lie before it. And 4 more: AVI's index says when a key
    # frame is decoded; where there are B-frames, it is shown later.
    seconds -= 4.5 / float(stream.average_rate or FPS)
    container.seek(max(stream.start_time or 0, round(seconds / stream.time_base) + origin), stream=stream)


def _duration(container, stream, origin: int) -> float:
    """How long a video says that it lasts from `origin` on, in seconds; not above 0 if it does not say."""
    start = float(origin * stream.time_base)
    if stream.duration:
        # Where an AVI file is cut off, FFmpeg lessens its duration, but not the number of frames it says.
        ticks = max(stream.duration, stream.frames if container.format.name == "avi" else 0)
        return float(((stream.start_time or 0) + ticks) * stream.time_base) - start
    # Matroska's, as "00:00:10.333000000", counted from 0; the tag's name may have a language.
    tag = next((text for name, text in stream.metadata.items() if name.startswith("DURATION")), "")
    if parts := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", tag):
        hours, minutes, seconds = map(float, parts.groups())
        return 3600 * hours + 60 * minutes + seconds - start
    if len(container.streams) == 1 and container.duration:  # Sound may go on after the video.
        return container.duration / av.time_base - start
    return 0.0


def _decoded(container, stream, name: str, strict: bool) -> Iterator[av.VideoFrame]:
    """Yields a stream's frames; in a strict reading none that is damaged."""
    for packet in _packets(container, stream):
        frames = packet.decode()
        # err_detect=explode finds hardly more, and refuses what was cut out of a video of open groups of pictures.
        if strict and (packet.is_corrupt or any(frame.is_corrupt for frame in frames)):
            raise VideoError(name, "is damaged" + (f": at {frames[0].time or 0:.2f} s" if frames else ""))
        yield from frames


def _packets(container, stream) -> Iterator[av.Packet]:
    try:
        yield from container.demux(stream)
    except IndexError:  # PyAV's, after the last packet, if there is a stream that was not there at the beginning.
        return


def _resample(decoded, stream, origin: int, fps: float, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (i, the decoded frame shown nearest to time i / fps) for i in order, from `start` or earlier on.

    Where timestamps go back by more than a second another recording begins, as in MPEG-TS files put together: it is shown after the one
    before.
    """
    step = 1 / float(stream.average_rate or fps)
    frame, time, index, before = None, 0.0, 0, 0.0
    for following in decoded:
        if following.pts is None:
            now = time + step if frame else 0.0
        else:
            now = float((following.pts - origin) * following.time_base) + before
            if frame is not None and now < time - 1:
                before += time + step - now
                now = time + step
        if frame is None:
            # After a seek the first frame decoded is a key frame somewhere before the time wanted.
            index = min(start, max(0, round(now * fps)))
        else:
            while index / fps < (time + now) / 2:
                yield index, frame
                index += 1
        frame, time = following, max(now, time)
    if frame is not None:
        shown = float(frame.duration * stream.time_base) if frame.duration else step
        # The last frame is shown for its duration, and a video has one frame at least.
        while index / fps < time + shown - 1e-3 / fps or index == 0:
            yield index, frame
            index += 1


def _pixels(frame, size: tuple[int, int], scaler, stream: str) -> np.ndarray:
    height, width = size
    if stream == "flow":
        grey = scaler.reformat(frame, width, height, "gray").to_ndarray()
        return np.moveaxis(grey.reshape(2, -1, width), 0, -1)
    image = scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
    return np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image
