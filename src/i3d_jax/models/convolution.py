"""Convolution of images [B, H, W, C] and videos [B, T, H, W, C], in the form that the hardware runs fastest.

Windows and strides are (time, height, width), or (height, width) for images.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from i3d_jax.models import platforms, toom_cook
from i3d_jax.models.padding import pad, same_pads


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def conv(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], time_padding: str = "zeros"
) -> jax.Array:
    """SAME convolution of x [B, *positions, I] with kernel [*window, I, O].

    Args:
      time_padding: "edge" repeats a video's first and last frame instead of padding the time axis with zeros.
    """
    window, strides, platform = kernel.shape[:-2], tuple(strides), platforms.platform()
    if all(n == 1 for n in window + strides):
        kernel = kernel.reshape(kernel.shape[-2:])
        return _product(x, kernel) if platform == "cpu" else jnp.dot(x, kernel)
    if time_padding == "edge" and len(window) == 3:
        return _with_edges(x, kernel, strides)
    if platform == "cpu" and len(window) == 3:
        return _conv3d_as_2d(x, kernel, strides)
    if platform == "cuda" and x.shape[-1] % 8 and x.shape[-1] * math.prod(strides) <= FEW:
        return _conv_of_few_channels(x, kernel, strides)
    return _plain(x, kernel, strides)


def _product(x, kernel):
    """As a matrix's: of an array with more axes XLA transposes the gradient to find the kernel's. A CPU has products of half-precision
    numbers with results in float32, and is slow at others.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.dot(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), kernel, preferred_element_type=wide
    )
    return y.astype(x.dtype).reshape(*x.shape[:-1], kernel.shape[-1])


def _plain(x, kernel, strides, padding: Any = "SAME"):
    """XLA's own, of images or videos."""
    form = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=form)


def _with_edges(x, kernel, strides):
    in_time, *in_space = same_pads(x.shape[1:-1], kernel.shape[:3], strides)
    x = jnp.pad(x, [(0, 0), in_time, (0, 0), (0, 0), (0, 0)], mode="edge")
    return _plain(x, kernel, strides, [(0, 0), *in_space])


# Up to how many channels a GPU's convolution of few, as of colours or of flow, is given, and of what number multiples.
FEW, MULTIPLE = 96, 32


def _conv_of_few_channels(x, kernel, strides):
    """The same convolution with more channels, as a GPU's matrix units want them, and less taps.

    Blocks of pixels as large as the strides become channels, and then, as long as these stay few, all taps along one axis after
    another. What is left is a convolution of videos, of images if the axis of time has one tap, or a product if all have.
    """
    sizes, window, axes = x.shape[1:-1], kernel.shape[:-2], range(x.ndim - 2)
    outputs = [-(-size // stride) for size, stride in zip(sizes, strides)]
    taps = [-(-size // stride) for size, stride in zip(window, strides)]
    befores = [before for before, _ in same_pads(sizes, window, strides)]
    # Whole blocks: zeros after the last pixel, and taps of zeros after the last.
    afters = [(outputs[i] - 1 + taps[i]) * strides[i] - sizes[i] - befores[i] for i in axes]
    x = jnp.pad(x, [(0, 0), *zip(befores, afters), (0, 0)])
    kernel = jnp.pad(
        kernel, [*((0, taps[i] * strides[i] - window[i]) for i in axes), (0, 0), (0, 0)]
    )
    x = _blocks_as_channels(x, strides, 1)
    kernel = _blocks_as_channels(kernel, strides, 0)
    for i in axes:
        if x.shape[-1] * taps[i] > FEW:
            break
        x = jnp.concatenate(
            [lax.slice_in_dim(x, tap, tap + outputs[i], axis=1 + i) for tap in range(taps[i])], -1
        )
        kernel = jnp.concatenate(
            [lax.slice_in_dim(kernel, tap, tap + 1, axis=i) for tap in range(taps[i])], -2
        )
    more = -x.shape[-1] % MULTIPLE
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
    kernel = jnp.pad(kernel, [(0, 0)] * len(axes) + [(0, more), (0, 0)])
    if math.prod(kernel.shape[:-2]) == 1:
        return jnp.dot(x, kernel.reshape(kernel.shape[-2:]))
    if kernel.shape[0] == 1 and len(axes) == 3:
        return toom_cook.conv2d_of_runs(x, kernel[0], (1, 1), "VALID")
    return _plain(x, kernel, (1,) * len(axes), "VALID")


def _blocks_as_channels(x, blocks, axis):
    """x [..., *positions, C, ...], the positions from `axis` on, with the positions of every block as channels before C."""
    number = len(blocks)
    before, positions, after = (
        x.shape[:axis],
        x.shape[axis : axis + number],
        x.shape[axis + number :],
    )
    shape = [n for size, block in zip(positions, blocks) for n in (size // block, block)]
    x = x.reshape(*before, *shape, *after)
    inner = [axis + 1 + 2 * i for i in range(number)]
    x = jnp.moveaxis(x, inner, range(axis + number, axis + 2 * number))
    return x.reshape(
        *before, *x.shape[axis : axis + number], math.prod(blocks) * after[0], *after[1:]
    )


# Multiply-adds from which saving some of them is worth more operations to compile and run, and positions from which it is worth
# the sums of kernels, forward and back.
LARGE, MANY = 1.5e9, 1000


def _conv3d_as_2d(x, kernel, strides):
    """The same convolution as 2-D convolutions, which CPU backends run several times faster.

    Half-precision numbers are computed with in float32, which is what XLA makes of their convolutions on a CPU, too.
    """
    dtype, x, kernel, stride = x.dtype, at_least_float32(x), at_least_float32(kernel), strides[0]
    frames = -(-x.shape[1] // stride)
    ((before, _),) = same_pads(x.shape[1:2], kernel.shape[:1], strides[:1])
    if stride > 1:
        x, kernel = _runs_as_channels(x, kernel, before, stride)
        before //= stride
    runs, taps, outputs = x.shape[1], kernel.shape[0], kernel.shape[-1]
    # How many outputs at once take the fewest products.
    steps = range(1, min(4, toom_cook.most_outputs(taps)) + 1)
    step = min(steps, key=lambda step: (-(-runs // step) * (step + taps - 1), step))
    # Where it is not known how many clips there are, as in an export for any number, it is for one.
    clips = x.shape[0] if isinstance(x.shape[0], int) else 1
    work = clips * math.prod((*x.shape[1:], *kernel.shape[:-2])) * outputs / math.prod(strides[1:])
    y: Any
    if step > 1 and work >= max(LARGE, MANY * kernel.size):
        y = toom_cook.conv_over_time(x, kernel, before, step, strides[1:])
    else:
        y = _taps_as_channels(x, kernel, before, strides[1:])
    # With padding in front, runs can be more than outputs.
    return (y if y.shape[1] == frames else lax.slice_in_dim(y, 0, frames, axis=1)).astype(dtype)


@functools.partial(jax.jit, static_argnames=("before", "stride"))
def _runs_as_channels(x, kernel, before, stride):
    """A video and a kernel for the same convolution at stride 1 in time, where a frame is a run of `stride` of them."""
    batch, frames, height, width, inputs = x.shape
    taps, *window, _, outputs = kernel.shape
    # Whole runs only: zero frames in front until the padding is whole runs, zero frames and zero taps at the end.
    front = before % stride
    runs, taps = -(-(front + frames) // stride), -(-taps // stride)
    x = jnp.pad(x, ((0, 0), (front, runs * stride - front - frames), (0, 0), (0, 0), (0, 0)))
    kernel = jnp.pad(kernel, ((0, taps * stride - kernel.shape[0]), (0, 0), (0, 0), (0, 0), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, runs, stride, height, width, inputs), 2, 4)
    x = x.reshape(batch, runs, height, width, stride * inputs)
    kernel = jnp.moveaxis(kernel.reshape(taps, stride, *window, inputs, outputs), 1, 3)
    return x, kernel.reshape(taps, *window, stride * inputs, outputs)


@functools.partial(jax.jit, static_argnames=("before", "strides"))
def _taps_as_channels(x, kernel, before, strides):
    """Convolution over time by one 2-D convolution, of runs that have those of the other taps in time beside them.

    It is the inputs that are repeated and not, with a sum of them, the outputs: these XLA would compute, and go back through, again
    wherever they are used.
    """
    runs, taps = x.shape[1], kernel.shape[0]
    x = pad(x, 1, before, taps - 1 - before)
    x = jnp.concatenate([lax.slice_in_dim(x, tap, tap + runs, axis=1) for tap in range(taps)], -1)
    kernel = jnp.moveaxis(kernel, 0, 2)
    kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
    return toom_cook.conv2d_of_runs(x, kernel, strides)
