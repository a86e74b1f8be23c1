"""Layers that the networks share, for images [B, H, W, C] and videos [B, T, H, W, C] alike.

Kernels, windows and strides are (time, height, width), or (height, width) for images. Parameters keep the shapes of the
published checkpoints; how a layer computes is this file's business alone.
"""

import functools
import math
from typing import Any

import flax.linen as nn
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
    x = jnp.pad(x, ((0, 0), (before, steps * step - runs + taps - 1 - before), (0, 0), (0, 0), (0, 0)))
    places = [x[:, place : place + (steps - 1) * step + 1 : step] for place in range(step + taps - 1)]
    products = [
        conv2d(_weighted(places, run), _weighted(kernel, tap)) for run, tap in zip(of_runs, of_taps, strict=True)
    ]
    y = jnp.stack([_weighted(products, product) for product in of_products], 2)
    return y.reshape(batch, steps * step, *y.shape[3:])[:, :runs]


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


def max_pool(x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...]) -> jax.Array:
    """SAME max-pool of x [B, *positions, C]; padding never wins, not even over negative values. No forward-mode AD."""
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_separable_max_pool, window=window, strides=strides),
        default=functools.partial(nn.max_pool, window_shape=window, strides=strides, padding="SAME"),
    )


def _separable_max_pool(x, window, strides):
    # Innermost axis first: of equal values the first in memory then wins, as in XLA's own gradient.
    for axis in reversed(range(len(window))):
        if window[axis] > 1:
            x = _max_along(x, axis + 1, window[axis], strides[axis])
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x, axis, window, stride):
    return _max_and_winner(x, axis, window, stride)[0]


def _max_and_winner(x, axis, window, stride):
    """The maximum of each window along one axis, and the place of its first occurrence in the window (int8)."""
    size = x.shape[axis]
    (before, after), *_ = same_pads((size,), (window,), (stride,))
    pads = [(before, after) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    last = x.shape[axis] - window + 1
    best = lax.slice_in_dim(x, 0, last, stride, axis)
    winner = jnp.zeros(best.shape, jnp.int8)
    for place in range(1, window):
        value = lax.slice_in_dim(x, place, last + place, stride, axis)
        better = (value > best) | jnp.isnan(value)  # NaN wins, as in XLA's own.
        winner = jnp.where(better, jnp.int8(place), winner)
        best = jnp.where(better, value, best)
    return best, winner


def _max_along_fwd(x, axis, window, stride):
    best, winner = _max_and_winner(x, axis, window, stride)
    return best, (winner, x.shape[axis])


def _max_along_bwd(axis, window, stride, residual, grad):
    winner, size = residual
    (before, _), *_ = same_pads((size,), (window,), (stride,))
    reach = (grad.shape[axis] - 1) * stride + 1
    total = 0.0
    for place in range(window):
        low = place - before
        pads = [(low, size - low - reach, stride - 1) if i == axis else (0, 0, 0) for i in range(grad.ndim)]
        total += lax.pad(jnp.where(winner == place, grad, 0), jnp.zeros((), grad.dtype), pads)
    return (total,)


_max_along.defvjp(_max_along_fwd, _max_along_bwd)


def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Truncated normal of variance 1 / fan-in, as the release's (Sonnet's) default.

    Drawn in a loop over small chunks: XLA compiles a random generator anew for every shape, a third of a second each.
    """
    size, chunk = math.prod(shape), 4096
    # 0.8796 is the standard deviation of a standard normal truncated to [-2, 2].
    scale = 1 / (0.87962566 * math.sqrt(math.prod(shape[:-1])))
    keys = jax.random.split(key, -(-size // chunk))
    draws = lax.map(lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (chunk,), dtype), keys)
    return scale * draws.reshape(-1)[:size].reshape(shape)


class Conv(nn.Module):
    """SAME convolution; parameters `kernel` [*window, I, O] and, if asked for, `bias` [O], both float32."""

    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    use_bias: bool = False
    time_padding: str = "zeros"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        x = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.time_padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return x


class Dropout(nn.Module):
    """Dropout whose masks are made clip by clip, from the rng "dropout" and the clip's number in the global batch.

    A batch that is taken in parts then drops what the whole one does. The numbers are the variable "number" int32 [B] of the
    collection "clips", if it is given, and 0, 1, ... if it is not; x may have several rows per clip, one after the other.
    """

    rate: float

    @nn.compact
    def __call__(self, x, train: bool):
        if not train or self.rate == 0:
            return x
        assert self.scope is not None, "a module that is called has a scope"
        numbers = self.scope.root.get_variable("clips", "number", jnp.arange(x.shape[0]))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), numbers)
        shape = (x.shape[0] // len(numbers), *x.shape[1:])
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(kept.reshape(x.shape), x / (1 - self.rate), 0).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch norm with an offset and no scale (the published checkpoints have none), in `groups` independent groups.

    In training the batch is cut into `groups` equal runs of clips and each is normalised by its own statistics, as if
    every group sat on a replica of its own; running statistics are averaged over the groups. One group is batch norm
    over the whole batch, however many devices hold it. Statistics are float32 and taken over everything but channels.
    No forward-mode AD in training.
    """

    groups: int = 1
    decay: float = 0.999  # A longer memory than a short run's whole length: lower it there.
    epsilon: float = 1e-3
    relu: bool = False  # ReLU follows; one gradient for both.

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if not train:
            stats = running_mean.value[None], running_var.value[None]
            return _normalise(x.reshape(1, -1, channels), *stats, bias, self.epsilon, self.relu).reshape(x.shape)
        check_groups(x.shape[0], x.size // channels, self.groups)
        y, mean, var = _normalised(x.reshape(self.groups, -1, channels), bias, self.epsilon, self.relu)
        if not self.is_initializing():
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean.mean(0)
            running_var.value = self.decay * running_var.value + (1 - self.decay) * var.mean(0)
        return y.reshape(x.shape)


def _normalise(x, mean, var, bias, epsilon, relu):
    """x [groups, positions, C] by statistics [groups, C]."""
    scale = lax.rsqrt(var + epsilon)
    y = at_least_float32(x) * scale[:, None] + (bias[None] - mean * scale)[:, None]
    return (nn.relu(y) if relu else y).astype(x.dtype)


def _by_own_statistics(x, bias, epsilon, relu):
    """x [groups, positions, C] normalised by each group's own statistics, which are returned too, [groups, C]."""
    wide = at_least_float32(x)
    mean = wide.mean(1)
    var = jnp.maximum(jnp.square(wide).mean(1) - jnp.square(mean), 0.0)
    return _normalise(x, mean, var, bias, epsilon, relu), mean, var


def _by_own_statistics_fwd(x, bias, epsilon, relu):
    y, mean, var = _by_own_statistics(x, bias, epsilon, relu)
    return (y, mean, var), (x, bias, mean, var)


def _by_own_statistics_bwd(epsilon, relu, residual, grads):
    """The statistics' own gradients are left out: they are for the running ones, which the loss does not depend on.

    Of what is kept for it, x alone is large. It ends in a division because XLA computes those once for all that use them:
    a product it would fuse, and compute, into each of the convolution's transposes.
    """
    x, bias, mean, var = residual
    deviation = jnp.sqrt(var + epsilon)[:, None]
    unit = (at_least_float32(x) - mean[:, None]) / deviation
    grad = at_least_float32(grads[0])
    if relu:
        grad = jnp.where(unit + bias[None, None] > 0, grad, 0.0)
    shift, stretch = grad.mean(1), (grad * unit).mean(1)
    of_x = (grad - shift[:, None] - unit * stretch[:, None]) / deviation
    return of_x.astype(x.dtype), (shift * x.shape[1]).sum(0).astype(bias.dtype)


_normalised = jax.custom_vjp(_by_own_statistics, nondiff_argnums=(2, 3))
_normalised.defvjp(_by_own_statistics_fwd, _by_own_statistics_bwd)


def check_groups(batch: int, values: int, groups: int) -> None:
    """Raises a ValueError unless a batch can be cut into groups with more than one of so many values per channel each."""
    if batch % groups:
        raise ValueError(f"batch norm: a batch of {batch} cannot be cut into {groups} equal groups")
    if values == groups:
        raise ValueError(
            "batch norm: a group with one value per channel has no variance; it takes groups of more clips"
        )


class ConvBN(nn.Module):
    """Convolution, batch norm, ReLU: the release's `Unit3D`."""

    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int = 1
    decay: float = 0.999
    time_padding: str = "zeros"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(self.features, self.window, self.strides, False, self.time_padding, self.dtype, name="conv")(x)
        return BatchNorm(self.groups, self.decay, relu=True, name="bn")(x, train)
