"""Reads windows of stored videos as packed planes (see `planes`), as fast as the decoder can."""

import contextlib
import ctypes
import functools
import io
from collections.abc import Iterator
from typing import Any, cast

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np

from i3d_jax.video import decoding
from i3d_jax.video.planes import Window, even_window, packed_shape


def read(
    data: bytes,
    window: Window,
    *,
    stream: str = "rgb",
    start: int = 0,
    frames: int,
    stride: int = 1,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decodes a window of some frames of a stored video.

    Args:
      data: an H.264 file that `h264.encode` or `h264.transcode` wrote.
      window: the part of the frames to read. RGB is read from its `even_window`; where that goes
        beyond the frame, the last pixels are repeated.
      stream: "rgb" or "flow".
      start: the first frame.
      frames: the number of frames.
      stride: takes every `stride`-th frame.
      size: (height, width) that frames are resized to first; None: as they are. Flow cannot be
        resized.

    Returns:
      uint8 [T, 3/2 s, s] packed RGB, where s is the size of `even_window(window)`, or packed flow
      [T, 2 * window.size, window.size]. T is less than `frames` if the video ends before.

    Raises:
      video.VideoError: the video cannot be decoded, or is shorter than `start`.
      ValueError: the window is not inside the frames, or flow is to be resized.
    """
    if stream == "flow" and size is not None:
        raise ValueError(f"resizing to {size}, but flow cannot be resized")
    _keep_memory()
    outer = window if stream == "flow" else even_window(window)
    out = np.empty((frames, *packed_shape(stream, window.size)), np.uint8)
    scaler = av.video.reformatter.VideoReformatter()
    options: dict[str, Any] = {"interpolation": decoding.BILINEAR, "threads": 1}
    name, count = f"{len(data)} bytes of video", 0
    try:
        with _open(data, name) as (container, track):
            for frame in _decode(container, track, range(start, start + frames * stride, stride)):
                if size is not None:
                    frame = scaler.reformat(frame, size[1], size[0], "yuv420p", **options)
                _copy(frame, out[count], window, outer, stream)
                count += 1
                if count == frames:
                    break
    except av.error.FFmpegError as error:
        raise decoding.VideoError(name, f"cannot be decoded: {error.strerror}") from None
    if not count:
        raise decoding.VideoError(name, f"has no frame {start}")
    return out[:count]


@contextlib.contextmanager
def _open(data: bytes, name: str) -> Iterator[tuple[Any, Any]]:
    """Opens an H.264 file; gives its container and its video track."""
    with av.open(io.BytesIO(data), format="mp4", **decoding.OPEN_OPTIONS) as container:
        assert isinstance(container, av.container.InputContainer)
        tracks = container.streams.video
        if not tracks or cast(Any, tracks[0].codec_context) is None:
            raise decoding.VideoError(name, "has no video stream that can be decoded")
        tracks[0].thread_type, tracks[0].codec_context.thread_count = "SLICE", 1
        yield container, tracks[0]


def _decode(container: Any, track: Any, wanted: range) -> Iterator[av.VideoFrame]:
    """Yields the frames of some numbers, without decoding those that no other frame needs."""
    ticks = max(1, round(1 / (decoding.FPS * float(track.time_base or 1))))
    if wanted.start:
        container.seek(wanted.start * ticks, stream=track)
    for packet in container.demux(track):
        if packet.pts is not None:
            skip = "DEFAULT" if packet.pts // ticks in wanted else "NONREF"
            track.codec_context.skip_frame = skip
        for frame in packet.decode():
            if (frame.pts or 0) // ticks in wanted:
                yield frame


@functools.cache
def _keep_memory() -> None:
    """Makes the C library keep freed memory for the next clip.

    glibc returns blocks of megabytes, such as a record or a clip, to the system at once. Getting
    them again, page by page, took a sixth of the time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc has it.
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(trim_threshold, 2**26)
        library.mallopt(mmap_threshold, 2**25)


def _copy(
    frame: av.VideoFrame, out: np.ndarray, window: Window, outer: Window, stream: str
) -> None:
    """Copies a window of a frame's planes to a packed frame.

    Args:
      frame: the decoded frame.
      out: the packed frame, which is written.
      window: must lie inside the frame.
      outer: the part to copy, which may go beyond the frame.
      stream: "rgb" or "flow".
    """
    height, width = frame.height // (2 if stream == "flow" else 1), frame.width
    if (
        window.top + window.size > height
        or window.left + window.size > width
        or min(window[:2]) < 0
    ):
        raise ValueError(
            f"cannot cut {window.size}x{window.size} at {window[:2]} "
            f"out of frames of {height}x{width}"
        )
    top, left, size = outer
    brightness = decoding.plane(frame, 0)
    if stream == "flow":
        out[:size] = brightness[top : top + size, left : left + size]
        out[size:] = brightness[height + top : height + top + size, left : left + size]
        return
    half = size // 2
    _copy_part(out[:size], brightness, top, left)
    _copy_part(out[size:, :half], decoding.plane(frame, 1), top // 2, left // 2)
    _copy_part(out[size:, half:], decoding.plane(frame, 2), top // 2, left // 2)


def _copy_part(out: np.ndarray, plane: np.ndarray, top: int, left: int) -> None:
    part = plane[top : top + out.shape[0], left : left + out.shape[1]]
    if part.shape == out.shape:
        out[:] = part
    else:  # The even window goes beyond the frame, by pixels that are cut off again.
        missing = [(0, n - m) for n, m in zip(out.shape, part.shape, strict=True)]
        out[:] = np.pad(part, missing, "edge")
