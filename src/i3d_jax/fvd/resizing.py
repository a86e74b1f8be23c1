"""The resizes of FVD's implementations, in JAX: frames of any size become the network's input.

Bilinear interpolation as TensorFlow 1 had it, with its legacy places of pixels, is not what others
have: on noise it is 7 to 37 grey levels of 255 away (docs/howto/fvd.md).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIDE = 224  # Of I3D's input, in pixels.
RESIZES = {
    "legacy": "224x224, aspect ratio not kept, TensorFlow 1's legacy bilinear, no antialias",
    "half-pixel": "224x224, aspect ratio not kept, half-pixel bilinear, no antialias",
    "crop": "short side 224, half-pixel bilinear, no antialias, centre crop",
}


def bilinear(frames: Any, height: int, width: int, *, legacy: bool) -> jax.Array:
    """Bilinear interpolation without antialias, as `tf.compat.v1.image.resize_bilinear`.

    On a CPU it is equal to the bit to the formula there, which interpolates along the width
    first.

    Args:
      frames: f32 [..., H, W, C].
      height: of the result.
      width: of the result.
      legacy: whether pixel i of the result lies at i * in / out, as by TensorFlow 1's default;
        otherwise at (i + 0.5) * in / out - 0.5, as in PyTorch and in TensorFlow 2.

    Returns:
      f32 [..., height, width, C].
    """
    low, high, part = _places(frames.shape[-2], width, legacy)
    rows = _between(frames[..., low, :], frames[..., high, :], part[:, None])
    low, high, part = _places(frames.shape[-3], height, legacy)
    return _between(rows[..., low, :, :], rows[..., high, :, :], part[:, None, None])


def _places(given: int, wanted: int, legacy: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels on either side of each pixel of the result, and its place between them."""
    scale = np.float32(given) / np.float32(wanted)
    places = np.arange(wanted, dtype=np.float32)
    if not legacy:
        places = places + np.float32(0.5)
    places = places * scale
    if not legacy:
        places = places - np.float32(0.5)
    below = np.floor(places)
    low = np.maximum(below, 0).astype(int)
    high = np.minimum(np.ceil(places), given - 1).astype(int)
    return low, high, places - below


def _between(low: jax.Array, high: jax.Array, part: np.ndarray) -> jax.Array:
    part = part.reshape((1,) * (low.ndim - part.ndim) + part.shape)
    # The maximum changes nothing, but keeps the compiler from fusing product and sum, which would
    # then be rounded once, not twice.
    return low + lax.max((high - low) * part, -np.float32(1e30))


def short_side_and_crop(frames: jax.Array, side: int, antialias: bool = False) -> jax.Array:
    """Resizes the shorter side, rounds the longer one up, and cuts out the centre.

    Args:
      frames: f32 [..., H, W, C].
      side: of the result in pixels.
      antialias: whether a smaller result is smoothed by a wider triangle filter.

    Returns:
      f32 [..., side, side, C].
    """
    given = frames.shape[-3:-1]
    height, width = (
        side if each == min(given) else math.ceil(each * side / min(given)) for each in given
    )
    if antialias:
        shape = *frames.shape[:-3], height, width, frames.shape[-1]
        resized = jax.image.resize(frames, shape, "linear", antialias=True)
    else:
        resized = bilinear(frames, height, width, legacy=False)
    top, left = (height - side) // 2, (width - side) // 2
    return resized[..., top : top + side, left : left + side, :]


def same_resize(
    resize: str, resolution: int | None, height: int, width: int, side: int = SIDE
) -> tuple[str, int | None]:
    """The resize and the resolution that are equal for frames of a size, so that one is done once.

    Args:
      resize: one of RESIZES.
      resolution: see `network_input`.
      height: of the frames.
      width: of the frames.
      side: of the network's input.
    """
    if resolution is not None and (height, width) != (resolution, resolution):
        return resize, resolution
    if (height, width) == (side, side) or resize == "crop" and height == width:
        resize = "half-pixel"
    return resize, None


@functools.partial(jax.jit, static_argnames=("resize", "resolution", "side"))
def network_input(
    frames: jax.Array, *, resize: str, resolution: int | None = None, side: int = SIDE
) -> jax.Array:
    """Resizes frames and scales them to the network's input, f32 [..., side, side, 3] in [-1, 1].

    Args:
      frames: [..., H, W, 3], uint8, or floats from 0 to 255.
      resize: one of RESIZES.
      resolution: of frames that are made square before: short side antialiased, centre crop, and
        truncated to whole numbers, as cd-fvd's loader does. None: this is left out.
      side: of the network's input in pixels.
    """
    x = frames.astype(jnp.float32)
    if resolution is not None and x.shape[-3:-1] != (resolution, resolution):
        x = jnp.floor(jnp.clip(short_side_and_crop(x, resolution, antialias=True), 0, 255))
    if resize == "crop":
        x = short_side_and_crop(x, side)
    elif x.shape[-3:-1] != (side, side):
        x = bilinear(x, side, side, legacy=resize == "legacy")
    return 2 * x / 255 - 1
