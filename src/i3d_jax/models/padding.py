"""Padding at the borders of images and the ends of videos."""

import jax
import numpy as np
from jax import lax


def same_pads(
    shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]
) -> list[tuple[int, int]]:
    """TensorFlow's SAME padding, (before, after) per axis: the odd pixel goes after."""
    return lax.padtype_to_pads(shape, window, strides, "SAME")


def pad(x: jax.Array, axis: int, before: int, after: int, value: float = 0) -> jax.Array:
    """Pads one axis of x with a constant. It uses `lax`, which traces faster than `jnp`.

    Args:
      x: any array.
      axis: the axis to pad.
      before: how many values to put before x.
      after: how many values to put after x.
      value: the constant.
    """
    pads = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, np.asarray(value, x.dtype), pads)
