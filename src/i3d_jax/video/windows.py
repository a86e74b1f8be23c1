"""Reading windows of stored videos, packed as `planes` has them, at the decoder's speed."""

import ctypes
import functools
import io
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
      data: an H.264 file as `h264.encode` and `h264.transcode` write it.
      window: of the frames. Of RGB what is `around` it is returned; beyond the frame that repeats the last pixels.
      stream: "rgb" or "flow".
      start, frames, stride: see `video.decode`.
      size: (height, width) that frames are resized to before; None: as they are. Flow cannot be resized.

    Returns:
      uint8 [T, 3/2 s, s] packed, s the size of `around(window)`, or flow [T, 2 * window.size, window.size]; T <= `frames`.

    Raises:
      video.VideoError: it cannot be decoded, or is shorter than `start`.
      ValueError: the window is not inside the frames, or flow is to be resized.
    """
    if stream == "flow" and size is not None:
        raise ValueError(f"resizing to {size}, but flow cannot be resized")
    _keep_memory()
    outer = window if stream == "flow" else even_window(window)
    out = np.empty((frames, *packed_shape(stream, window.size)), np.uint8)
    scaler = av.video.reformatter.VideoReformatter()
    count, stop = 0, start + (frames - 1) * stride + 1

    def wanted(index: int) -> bool:
        return start <= index < stop and (index - start) % stride == 0

    try:
        with av.open(io.BytesIO(data), format="mp4", **decoding.TAGS) as container:
            assert isinstance(container, av.container.InputContainer)
            tracks = container.streams.video
            if not tracks or cast(Any, tracks[0].codec_context) is None:
                raise decoding.VideoError(
                    f"{len(data)} bytes of video", "has no video stream that can be decoded"
                )
            track = tracks[0]
            decoder, ticks = (
                track.codec_context,
                max(1, round(1 / (decoding.FPS * float(track.time_base or 1)))),
            )
            track.thread_type, decoder.thread_count = "SLICE", 1
            if start:
                container.seek(start * ticks, stream=track)
            for packet in container.demux(track):
                if (
                    packet.pts is not None
                ):  # Frames that are neither wanted nor needed for others are not decoded.
                    decoder.skip_frame = "DEFAULT" if wanted(packet.pts // ticks) else "NONREF"
                for frame in packet.decode():
                    if count < frames and wanted((frame.pts or 0) // ticks):
                        shown = frame
                        if size is not None:
                            options = {"interpolation": decoding.BILINEAR, "threads": 1}
                            shown = scaler.reformat(frame, size[1], size[0], "yuv420p", **options)
                        _copy(shown, out[count], window, outer, stream)
                        count += 1
                if count == frames:
                    break
    except av.error.FFmpegError as error:
        raise decoding.VideoError(
            f"{len(data)} bytes of video", f"cannot be decoded: {error.strerror}"
        ) from None
    if not count:
        raise decoding.VideoError(f"{len(data)} bytes of video", f"has no frame {start}")
    return out[:count]


@functools.cache
def _keep_memory() -> None:
    """Has the C library keep what it is given back, for the next clip.

    A record and a clip are megabytes, which glibc returns to the system at once; getting them again, page by page, took
    a sixth of the time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc's.
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(trim_threshold, 2**26)
        library.mallopt(mmap_threshold, 2**25)


def _copy(
    frame: av.VideoFrame, out: np.ndarray, window: Window, outer: Window, stream: str
) -> None:
    height, width = frame.height // (2 if stream == "flow" else 1), frame.width
    if (
        window.top + window.size > height
        or window.left + window.size > width
        or min(window[:2]) < 0
    ):
        raise ValueError(
            f"cannot cut {window.size}x{window.size} at {window[:2]} out of frames of {height}x{width}"
        )
    top, left, size = outer
    brightness = decoding.plane(frame, 0)
    if stream == "flow":
        out[:size] = brightness[top : top + size, left : left + size]
        out[size:] = brightness[height + top : height + top + size, left : left + size]
        return
    half = size // 2
    _put(out[:size], brightness, top, left)
    _put(out[size:, :half], decoding.plane(frame, 1), top // 2, left // 2)
    _put(out[size:, half:], decoding.plane(frame, 2), top // 2, left // 2)


def _put(out: np.ndarray, plane: np.ndarray, top: int, left: int) -> None:
    part = plane[top : top + out.shape[0], left : left + out.shape[1]]
    if part.shape == out.shape:
        out[:] = part
    else:  # What is `around` a window may go beyond the frame, by pixels that are cut off again.
        out[:] = np.pad(
            part, [(0, n - m) for n, m in zip(out.shape, part.shape, strict=True)], "edge"
        )
