"""Clips packed as the decoder's planes, and made, on the device, into what networks take.

A decoder gives planes: brightness Y, and colours U and V of half the size. The host copies a window of them out (`windows`) and no
more; colours are converted, the crop's last pixel is cut and clips are mirrored on the device, by `unpack` inside
the compiled step. A clip so takes half the bytes of RGB, and the host little more time than the decoder needs.

Packed, uint8 [T, 3/2 h, w], h and w even: Y above, U and V beside each other below. Flow is uint8 [T, 2 h, w], u above v.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import pixels


class Window(NamedTuple):
    """Part of a frame, in pixels."""

    top: int
    left: int
    size: int


def even_window(window: Window) -> Window:
    """The window of even corner that holds another, whose size is even; it is larger by 2, whatever the corner."""
    return Window(window.top - window.top % 2, window.left - window.left % 2, window.size + 2)


def packed_shape(stream: str, size: int) -> tuple[int, int]:
    """(rows, columns) of a packed frame: of "flow", or of "rgb" with the pixels around a window of such a size."""
    return (2 * size, size) if stream == "flow" else ((size + 2) * 3 // 2, size + 2)


def unpack(clips: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Packed clips as networks take them, each cropped and, if it is to be, mirrored and reversed. For a compiled step.

    Args:
      clips: "rgb" uint8 [B, T, 3/2 (s + 2), s + 2] or "flow" uint8 [B, T, 2 s, s] or both (see `windows.read`), "corner" int32 [B, 2],
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
        found["flow"] = pixels.to_unit(flow)
    # What moved right moves left in a mirror, and backwards everything moves the other way.
    found = _turned(found, clips["mirrored"], -2, np.array([-1, 1], np.float32))
    if "backwards" in clips:
        found = _turned(found, clips["backwards"], 1, np.array([-1, -1], np.float32))
    return found


def _turned(
    streams: dict[str, jax.Array], which: jax.Array, axis: int, signs: np.ndarray
) -> dict[str, jax.Array]:
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
        frames = jax.lax.dynamic_slice_in_dim(
            frames, corner[axis - 1], frames.shape[axis] - 2, axis
        )
    return frames
