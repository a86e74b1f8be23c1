"""Packs clips as the decoder's planes, and unpacks them on the device into a network's input.

A clip then takes half the bytes of RGB, and the host does little more than decode. A decoder gives
planes: brightness Y, and colours U and V at half the size. The host only copies a window of them
(`windows`). Inside the compiled step `unpack` converts colours, cuts to the exact crop, mirrors and
reverses.

A packed RGB clip is uint8 [T, 3/2 h, w] with even h and w: Y above, U and V side by side below. A
packed flow clip is uint8 [T, 2 h, w]: u above v.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import pixels


class Window(NamedTuple):
    """A square part of a frame, in pixels.

    Attributes:
      top: its first row.
      left: its first column.
      size: its side.
    """

    top: int
    left: int
    size: int


def even_window(window: Window) -> Window:
    """The window that is read for a given one of even size: its corner is even, its size 2 more.

    U and V have one value for every 2x2 pixels, so a window of planes begins at even pixels. The
    size is the same whatever the corner.
    """
    return Window(window.top - window.top % 2, window.left - window.left % 2, window.size + 2)


def packed_shape(stream: str, size: int) -> tuple[int, int]:
    """(rows, columns) of a packed frame.

    Args:
      stream: "rgb" or "flow".
      size: side of the crop. RGB is packed as its `even_window`.
    """
    return (2 * size, size) if stream == "flow" else ((size + 2) * 3 // 2, size + 2)


def unpack(clips: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Turns packed clips into a network's input: crops, and mirrors or reverses those marked so.

    Runs inside a compiled step.

    Args:
      clips: a dict with these entries; others are ignored.
        "rgb": uint8 [B, T, 3/2 (s + 2), s + 2] (see `windows.read`); may be missing.
        "flow": uint8 [B, T, 2 s, s]; may be missing.
        "corner": int32 [B, 2], 0 or 1: the crop's (top, left) in the window that was read.
        "mirrored": bool [B].
        "backwards": bool [B]; may be missing. The flow of these clips is each frame's from the
          frame before.

    Returns:
      a dict with "rgb", f32 [B, T, s, s, 3] in [-1, 1], and "flow", f32 [B, T, s, s, 2] in pixels
      / 20, as far as `clips` has them.
    """
    streams = {}
    if "rgb" in clips:
        streams["rgb"] = jax.vmap(_crop)(to_rgb(clips["rgb"]), clips["corner"])
    if "flow" in clips:
        flow = jnp.stack(jnp.split(clips["flow"], 2, -2), -1)
        streams["flow"] = pixels.to_unit(flow)
    # A mirror turns motion to the right into motion to the left. Backwards, all motion is reversed.
    streams = _flip(streams, clips["mirrored"], -2, np.array([-1, 1], np.float32))
    if "backwards" in clips:
        streams = _flip(streams, clips["backwards"], 1, np.array([-1, -1], np.float32))
    return streams


def _flip(
    streams: dict[str, jax.Array], where: jax.Array, axis: int, signs: np.ndarray
) -> dict[str, jax.Array]:
    """Flips the clips `where` is true along an axis, and multiplies their flow by `signs`."""
    flipped = {stream: jnp.flip(frames, axis) for stream, frames in streams.items()}
    if "flow" in flipped:
        flipped["flow"] *= signs[None, None, None, None]
    where = where[:, None, None, None, None]
    return {stream: jnp.where(where, flipped[stream], frames) for stream, frames in streams.items()}


def to_rgb(packed: jax.Array) -> jax.Array:
    """Converts packed planes to RGB by BT.601's studio range, without rounding.

    Every 2x2 pixels share one colour sample, as in FFmpeg's conversion.

    Args:
      packed: uint8 [..., 3/2 h, w].

    Returns:
      f32 [..., h, w, 3] in [-1, 1].
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


def _crop(frames: jax.Array, corner: jax.Array) -> jax.Array:
    """Cuts [T, h, w, C] to [T, h - 2, w - 2, C] at a corner."""
    for axis in (1, 2):
        frames = jax.lax.dynamic_slice_in_dim(
            frames, corner[axis - 1], frames.shape[axis] - 2, axis
        )
    return frames
