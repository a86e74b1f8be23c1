"""What convolutions and pools see beyond an image's borders and a video's ends."""

import jax
import numpy as np
from jax import lax


def same_pads(
    shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]
) -> list[tuple[int, int]]:
    """TensorFlow's SAME padding, (before, after) per axis: the odd pixel goes after."""
    return lax.padtype_to_pads(shape, window, strides, "SAME")


def pad(x: jax.Array, axis: int, before: int, after: int, value: float = 0) -> jax.Array:
    """x with so much of a value before and after it, along one axis. By `lax`: `jnp` takes several times longer to trace."""
    pads = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, np.asarray(value, x.dtype), pads)
