"""Convolution of images [B, H, W, C] and videos [B, T, H, W, C], in the form that the hardware runs fastest.

Windows and strides are (time, height, width), or (height, width) for images.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def compiler_options() -> dict[str, str] | None:
    """What to compile a whole network with, for `jax.jit`.

    On a CPU, these versions of XLA give convolutions to a library that is up to five times slower at kernel gradients
    than the one before it; the option, experimental by its name, gives them back.
    """
    if jax.default_backend() == "cpu" and (0, 10) <= jax.__version_info__[:2] <= (0, 12):
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return None


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def same_pads(shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """TensorFlow's SAME padding, (before, after) per axis: the odd pixel goes after."""
    return lax.padtype_to_pads(shape, window, strides, "SAME")


def conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], time_padding: str = "zeros") -> jax.Array:
    """SAME convolution of x [B, *positions, I] with kernel [*window, I, O].

    `time_padding="edge"` repeats a video's first and last frame instead of padding the time axis with zeros.
    """
    window, strides = kernel.shape[:-2], tuple(strides)
    if all(n == 1 for n in window + strides):
        y = jnp.dot(
            x, kernel.reshape(kernel.shape[-2:]), preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)
        )
        return y.astype(x.dtype)
    if len(window) == 2:
        return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if time_padding == "edge":
        return _conv3d(x, kernel, strides, "edge")
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_conv3d_as_2d, strides=strides),
        default=functools.partial(_conv3d, strides=strides),
    )


def _conv3d(x, kernel, strides, time_padding="zeros"):
    pads = same_pads(x.shape[1:-1], kernel.shape[:3], strides)
    if time_padding == "edge":
        x = jnp.pad(x, [(0, 0), pads[0], (0, 0), (0, 0), (0, 0)], mode="edge")
        pads[0] = (0, 0)
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


# Multiply-adds from which saving some of them is worth more operations to compile and run.
LARGE = 1.5e9


def _conv3d_as_2d(x, kernel, strides):
    """The same convolution as 2-D convolutions, which CPU backends run several times faster.

    Runs of `stride` frames are folded into input channels, so that the taps in time are a convolution of runs at stride 1.
    Half-precision numbers are computed with in float32, which is what XLA makes of their convolutions on a CPU, too.
    """
    dtype, x, kernel = x.dtype, at_least_float32(x), at_least_float32(kernel)
    batch, frames, height, width, inputs = x.shape
    taps, *window, _, outputs = kernel.shape
    stride = strides[0]
    (before, _), *_ = same_pads((frames,), (taps,), (stride,))
    # Whole runs only: zero frames in front until the padding is whole runs, zero frames and zero taps at the end.
    front = before % stride
    runs, taps = -(-(front + frames) // stride), -(-taps // stride)
    x = jnp.pad(x, ((0, 0), (front, runs * stride - front - frames), (0, 0), (0, 0), (0, 0)))
    kernel = jnp.pad(kernel, ((0, taps * stride - kernel.shape[0]), (0, 0), (0, 0), (0, 0), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, runs, stride, height, width, inputs), 2, 4)
    x = x.reshape(batch, runs, height, width, stride * inputs)
    kernel = jnp.moveaxis(kernel.reshape(taps, stride, *window, inputs, outputs), 1, 3)
    kernel = kernel.reshape(taps, *window, stride * inputs, outputs)
    over_runs = functools.partial(_conv2d_of_runs, strides=strides[1:])
    # How many outputs at once take the fewest products.
    step = min(range(1, 5), key=lambda step: (-(-runs // step) * (step + taps - 1), step))
    work = x.size * math.prod(kernel.shape[:-2]) * outputs / math.prod(strides[1:])
    if step > 1 and work >= LARGE:
        y = _toom_cook_over_time(x, kernel, before // stride, step, over_runs)
    else:
        y = _taps_as_channels(x, kernel, before // stride, over_runs)
    return y.astype(dtype)


def _conv2d_of_runs(x, kernel, strides):
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _taps_as_channels(x, kernel, before, conv2d):
    """Convolution over time by one 2-D convolution, to the outputs of every tap in time; their sum, shifted in time."""
    taps, outputs = kernel.shape[0], kernel.shape[-1]
    kernel = jnp.moveaxis(kernel, 0, 3)
    y = conv2d(x, kernel.reshape(*kernel.shape[:3], taps * outputs))
    y = y.reshape(*y.shape[:-1], taps, outputs)
    total: Any = 0.0
    for tap in range(taps):
        ahead = tap - before  # Output t takes this tap from run t + ahead.
        shift = [(0, 0, 0), (-ahead, ahead, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)]
        total += lax.pad(y[..., tap, :], jnp.zeros((), y.dtype), shift)
    return total


def _toom_cook_over_time(x, kernel, before, step, conv2d):
    """Convolution over time by Toom-Cook's (Winograd's) method: half of the multiplications, or less.

    `step` outputs of `taps` taps are not step * taps products but step + taps - 1, of sums of runs with sums of taps, by a
    2-D convolution each; outputs are sums of products. Exact but for rounding, which is up to four times the plain form's.
    """
    (batch, runs, *_), taps = x.shape, kernel.shape[0]
    steps = -(-runs // step)
    of_runs, of_taps, of_products = _toom_cook(step, taps)
    blocks = steps + -(-(taps - 1) // step)
    x = jnp.pad(x, ((0, 0), (before, blocks * step - runs - before), (0, 0), (0, 0), (0, 0)))
    x = _unstacked(x.reshape(batch, blocks, step, *x.shape[2:]), 2)
    places = [x[place % step][:, place // step : place // step + steps] for place in range(step + taps - 1)]
    kernel = _unstacked(kernel, 0)
    products = [
        conv2d(_weighted(places, run), _weighted(kernel, tap)) for run, tap in zip(of_runs, of_taps, strict=True)
    ]
    y = jnp.stack([_weighted(products, product) for product in of_products], 2)
    return y.reshape(batch, steps * step, *y.shape[3:])[:, :runs]


def _unstacked(x, axis):
    """The slices of x along an axis, as `jnp.unstack`, whose gradient adds up what it has padded; this one concatenates."""
    return [jnp.squeeze(each, axis) for each in lax.split(x, (1,) * x.shape[axis], axis)]


def _weighted(values, weights):
    """The sum of values, each times its weight."""
    return sum(float(weight) * value for value, weight in zip(values, weights, strict=True) if weight)


@functools.cache
def _toom_cook(step, taps):
    """The method's weights: of runs in the sums [products, products], of taps [products, taps], of products in the outputs
    [step, products].

    Toom-Cook multiplies polynomials of `step` and of `taps` terms by their values at as many points as the product has terms,
    the last at infinity; convolution's outputs are its transpose, inputs and outputs exchanged. The points are those of
    small rounding (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020).
    """
    products = step + taps - 1
    points = np.array([0, 1, -1, 1 / 2, -2, 2])[: products - 1]

    def powers(terms):
        at_infinity = np.eye(terms)[-1:]
        return np.concatenate([points[:, None] ** np.arange(terms), at_infinity])

    of_inputs = np.linalg.inv(powers(products)).T
    return np.where(abs(of_inputs) > 1e-12, of_inputs, 0), powers(taps), powers(step).T
