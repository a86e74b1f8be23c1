"""Reading windows of stored videos at the decoder's speed, and making of them, on the device, what networks take.

A decoder gives planes: brightness Y, and colours U and V of half the size. The host copies a window of them out and no
more; colours are converted, the crop's last pixel is cut and clips are mirrored on the device, by `unpacked` inside
the compiled step. A clip so takes half the bytes of RGB, and the host little more time than the decoder needs.

Packed, uint8 [T, 3/2 h, w], h and w even: Y above, U and V beside each other below. Flow is uint8 [T, 2 h, w], u above v.
"""

import ctypes
import functools
import io
from typing import Any, NamedTuple, cast

import av
import av.container
import av.error
import av.video.reformatter
import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import video


class Window(NamedTuple):
    """Part of a frame, in pixels."""

    top: int
    left: int
    size: int


def around(window: Window) -> Window:
    """The window of even corner that holds another, whose size is even; it is larger by 2, whatever the corner."""
    return Window(window.top - window.top % 2, window.left - window.left % 2, window.size + 2)


def packed_shape(stream: str, size: int) -> tuple[int, int]:
    """(rows, columns) of a packed frame: of "flow", or of "rgb" with the pixels around a window of such a size."""
    return (2 * size, size) if stream == "flow" else ((size + 2) * 3 // 2, size + 2)


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
    outer = window if stream == "flow" else around(window)
    out = np.empty((frames, *packed_shape(stream, window.size)), np.uint8)
    scaler = av.video.reformatter.VideoReformatter()
    count, stop = 0, start + (frames - 1) * stride + 1

    def wanted(index: int) -> bool:
        return start <= index < stop and (index - start) % stride == 0

    try:
        with av.open(io.BytesIO(data), format="mp4", **video.TAGS) as container:
            assert isinstance(container, av.container.InputContainer)
            tracks = container.streams.video
            if not tracks or cast(Any, tracks[0].codec_context) is None:
                raise video.VideoError(f"{len(data)} bytes of video", "has no video stream that can be decoded")
            track = tracks[0]
            decoder, ticks = track.codec_context, max(1, round(1 / (video.FPS * float(track.time_base or 1))))
            track.thread_type, decoder.thread_count = "SLICE", 1
            if start:
                container.seek(start * ticks, stream=track)
            for packet in container.demux(track):
                if packet.pts is not None:  # Frames that are neither wanted nor needed for others are not decoded.
                    decoder.skip_frame = "DEFAULT" if wanted(packet.pts // ticks) else "NONREF"
                for frame in packet.decode():
                    if count < frames and wanted((frame.pts or 0) // ticks):
                        shown = frame
                        if size is not None:
                            options = {"interpolation": "BILINEAR", "threads": 1}
                            shown = scaler.reformat(frame, size[1], size[0], "yuv420p", **options)
                        _copy(shown, out[count], window, outer, stream)
                        count += 1
                if count == frames:
                    break
    except av.error.FFmpegError as error:
        raise video.VideoError(f"{len(data)} bytes of video", f"cannot be decoded: {error.strerror}") from None
    if not count:
        raise video.VideoError(f"{len(data)} bytes of video", f"has no frame {start}")
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


def _copy(frame: av.VideoFrame, out: np.ndarray, window: Window, outer: Window, stream: str) -> None:
    height, width = frame.height // (2 if stream == "flow" else 1), frame.width
    if window.top + window.size > height or window.left + window.size > width or min(window[:2]) < 0:
        raise ValueError(f"cannot cut {window.size}x{window.size} at {window[:2]} out of frames of {height}x{width}")
    top, left, size = outer
    brightness = video.plane(frame, 0)
    if stream == "flow":
        out[:size] = brightness[top : top + size, left : left + size]
        out[size:] = brightness[height + top : height + top + size, left : left + size]
        return
    half = size // 2
    _put(out[:size], brightness, top, left)
    _put(out[size:, :half], video.plane(frame, 1), top // 2, left // 2)
    _put(out[size:, half:], video.plane(frame, 2), top // 2, left // 2)


def _put(out: np.ndarray, plane: np.ndarray, top: int, left: int) -> None:
    part = plane[top : top + out.shape[0], left : left + out.shape[1]]
    if part.shape == out.shape:
        out[:] = part
    else:  # What is `around` a window may go beyond the frame, by pixels that are cut off again.
        out[:] = np.pad(part, [(0, n - m) for n, m in zip(out.shape, part.shape, strict=True)], "edge")


def unpacked(clips: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Packed clips as networks take them, each cropped and, if it is to be, mirrored and reversed. For a compiled step.

    Args:
      clips: "rgb" uint8 [B, T, 3/2 (s + 2), s + 2] or "flow" uint8 [B, T, 2 s, s] or both (see `read`), "corner" int32 [B, 2],
        0 or 1: where in the window read (top, left) the crop begins, "mirrored" bool [B], and perhaps "backwards" bool [B],
        whose flow is each frame's from the one before; the rest is ignored.

    Returns:
      f32 "rgb" [B, T, s, s, 3] in [-1, 1] and "flow" [B, T, s, s, 2], pixels / 20.
    """
    found = {}
    if "rgb" in clips:
        found["rgb"] = jax.vmap(_cut)(rgb(clips["rgb"]), clips["corner"])
    if "flow" in clips:
        packed = clips["flow"]
        flow = jnp.stack(jnp.split(packed, 2, -2), -1)
        found["flow"] = video.to_unit(flow)
    # What moved right moves left in a mirror, and backwards everything moves the other way.
    found = _turned(found, clips["mirrored"], -2, np.array([-1, 1], np.float32))
    if "backwards" in clips:
        found = _turned(found, clips["backwards"], 1, np.array([-1, -1], np.float32))
    return found


def _turned(streams: dict[str, jax.Array], which: jax.Array, axis: int, signs: np.ndarray) -> dict[str, jax.Array]:
    """The clips, those of `which` reversed along an axis, the flow's u and v times `signs`."""
    turned = {stream: jnp.flip(frames, axis) for stream, frames in streams.items()}
    if "flow" in turned:
        turned["flow"] *= signs[None, None, None, None]
    which = which[:, None, None, None, None]
    return {stream: jnp.where(which, turned[stream], frames) for stream, frames in streams.items()}


def rgb(packed: jax.Array) -> jax.Array:
    """Packed planes uint8 [..., 3/2 h, w] -> RGB f32 [..., h, w, 3] in [-1, 1], by BT.601's studio swing, not rounded.

    Every 2x2 pixels share one colour sample, as in FFmpeg's conversion.
    """
    height = packed.shape[-2] * 2 // 3
    brightness = packed[..., :height, :].astype(jnp.float32) - 16
    colours = jnp.split(packed[..., height:, :].astype(jnp.float32) - 128, 2, -1)
    blue, red = (jnp.repeat(jnp.repeat(colour, 2, -2), 2, -1) for colour in colours)
    brightness = 255 / 219 * brightness
    red, blue = (255 / 224 * colour for colour in (red, blue))
    image = jnp.stack(
        [
            brightness + 1.402 * red,
            brightness - 0.344136 * blue - 0.714136 * red,
            brightness + 1.772 * blue,
        ],
        -1,
    )
    return jnp.clip(image, 0, 255) / 127.5 - 1


def _cut(frames: jax.Array, corner: jax.Array) -> jax.Array:
    for axis in (1, 2):
        frames = jax.lax.dynamic_slice_in_dim(frames, corner[axis - 1], frames.shape[axis] - 2, axis)
    return frames
