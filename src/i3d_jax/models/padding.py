"""Padding at the borders of images and the ends of videos."""

from typing import Any

import jax
import numpy as np
from jax import lax

PADDINGS = "same", "symmetric", "valid"


def pads_of(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str = "same",
) -> tuple[tuple[int, int], ...]:
    """The padding (before, after) of each axis.

    Args:
      shape: sizes of the axes.
      window: of the convolution or pool.
      strides: of the convolution or pool.
      padding: "same" is TensorFlow's SAME. "symmetric" is PyTorch's `padding=window // 2` for odd
        windows: the first output is centred on the first position. Both give ceil(size / stride)
        outputs. They differ where a stride meets an even size. "valid" is none.
    """
    if padding == "same":
        return tuple(same_pads(shape, window, strides))
    assert padding in PADDINGS, padding
    if padding == "valid":
        return ((0, 0),) * len(window)
    befores = [(taps - 1) // 2 for taps in window]
    ends = [
        (-(-size // stride) - 1) * stride + taps
        for size, taps, stride in zip(shape, window, strides, strict=True)
    ]
    return tuple(
        (before, max(0, end - size - before)) for before, end, size in zip(befores, ends, shape)
    )


def pads_for_xla(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str = "same",
) -> Any:
    """`pads_of` in a form that XLA's operations also take for sizes that an export leaves open.

    Arguments are those of `pads_of`.
    """
    if all(isinstance(size, int) for size in shape):
        return pads_of(shape, window, strides, padding)
    if padding == "symmetric" and all(taps % 2 for taps in window):
        # What it has too much after the last window changes nothing.
        return tuple((taps // 2, taps // 2) for taps in window)
    assert padding != "symmetric" or max(window) <= 2, "larger even windows are centred otherwise"
    return "VALID" if padding == "valid" else "SAME"


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
