"""Layers that the networks share, for images [B, H, W, C] and videos [B, T, H, W, C] alike.

Kernels, windows and strides are (time, height, width), or (height, width) for images. Parameters keep the shapes of the
published checkpoints; how a layer computes is the business of this file, of `convolution.py` and of `pooling.py` alone.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from jax import lax

from i3d_jax.models import convolution, platforms
from i3d_jax.models.initializers import kernel_init


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], *others: Any) -> jax.Array:
    """As Flax's `param`, which traces `init` to compare the shapes of a parameter that is there: a tenth of the time that a network
    takes to trace.

    Raises:
      flax.errors.ScopeParamShapeError: it has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, *others)
    value = nn.unbox(module.get_variable("params", name))
    if jnp.shape(value) != shape:
        raise errors.ScopeParamShapeError(name, "/" + "/".join(module.path), jnp.shape(value), shape)
    return value


class Conv(nn.Module):
    """SAME convolution; parameters `kernel` [*window, I, O] and, if asked for, `bias` [O], both float32."""

    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    use_bias: bool = False
    time_padding: str = "zeros"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        """With `scale` and `shift` [O], outputs are times the one, in the kernel, and plus the other, which takes a bias's place."""
        assert scale is None or not self.use_bias, "a layer with a bias takes no other"
        shape = (*self.window, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", kernel_init, shape)
        if scale is not None:
            kernel = kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,))
        x = convolution.conv(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.time_padding)
        if self.use_bias:
            shift = parameter(self, "bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x if shift is None else x + shift.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


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

    features: int
    groups: int = 1
    decay: float = 0.999  # A longer memory than a short run's whole length: lower it there.
    epsilon: float = 1e-3
    relu: bool = False  # ReLU follows; one gradient for both.

    def setup(self):
        self.bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), jnp.float32)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,), jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.features,), jnp.float32)

    def __call__(self, x):
        """In training, x [B, *positions, C]."""
        check_groups(x.shape[0], x.size // self.features, self.groups)
        y, mean, var = _normalised(x.reshape(self.groups, -1, self.features), self.bias, self.epsilon, self.relu)
        if not self.is_initializing():
            self.mean.value = self.decay * self.mean.value + (1 - self.decay) * mean.mean(0)
            self.var.value = self.decay * self.var.value + (1 - self.decay) * var.mean(0)
        return y.reshape(x.shape)

    def in_a_test(self) -> tuple[jax.Array, jax.Array]:
        """What it multiplies by and what it adds, [C], by its running statistics."""
        return _scale_and_shift(self.mean.value, self.var.value, self.bias, self.epsilon)


def _scale_and_shift(mean, var, bias, epsilon):
    scale = lax.rsqrt(var + epsilon)
    return scale, bias - mean * scale


def _scaled(x, scale, shift, relu):
    """x [groups, positions, C] times `scale` plus `shift` [groups, C], in float32 at least."""
    y = convolution.at_least_float32(x)
    scale, shift = (_over_positions(each.astype(y.dtype), y) for each in (scale, shift))
    y = lax.add(lax.mul(y, scale), shift)
    return (nn.relu(y) if relu else y).astype(x.dtype)


def _over_positions(values, x):
    """Values [groups, C] for each of the positions of x [groups, positions, C]."""
    return lax.broadcast_in_dim(values, x.shape, (0, 2))


def _mean(x):
    """Over the positions of x [groups, positions, C]. By `lax`, as what else there is for every value: `jnp` is slower to trace."""
    return lax.reduce(x, np.zeros((), x.dtype), lax.add, (1,)) / x.shape[1]


def _by_own_statistics(x, bias, epsilon, relu):
    """x [groups, positions, C] normalised by each group's own statistics, which are returned too, [groups, C]."""
    wide = convolution.at_least_float32(x)
    mean = _mean(wide)
    var = jnp.maximum(_mean(lax.square(wide)) - lax.square(mean), 0.0)
    return _scaled(x, *_scale_and_shift(mean, var, bias[None], epsilon), relu), mean, var


def _by_own_statistics_fwd(x, bias, epsilon, relu):
    y, mean, var = _by_own_statistics(x, bias, epsilon, relu)
    return (y, mean, var), (x, bias, mean, var)


def _by_own_statistics_bwd(epsilon, relu, residual, grads):
    """The statistics' own gradients are left out: they are for the running ones, which the loss does not depend on.

    Of what is kept for it, x alone is large. It ends in a division because XLA computes those once for all that use them: a product
    it would fuse, and compute, into each of the convolution's transposes.
    """
    x, bias, mean, var = residual
    deviation = lax.sqrt(var + epsilon)
    least = (-bias[None] * deviation).astype(mean.dtype)
    centre, spread, least = (_over_positions(each, x) for each in (mean, deviation, least))

    def masked(x, grad):
        centred, grad = lax.sub(convolution.at_least_float32(x), centre), convolution.at_least_float32(grad)
        return centred, lax.select(lax.gt(centred, least), grad, lax.full_like(grad, 0)) if relu else grad

    centred, grad = masked(x, grads[0])
    shift, stretch = _mean(grad), _mean(lax.mul(grad, centred)) / (var + epsilon)
    # The gradient where ReLU passed it is found out once more: seen as the same, XLA writes it, or the mask, to memory in between.
    x, grad, shift, stretch = lax.optimization_barrier((x, grads[0], shift, stretch))
    centred, grad = masked(x, grad)
    of_x = lax.sub(lax.sub(grad, _over_positions(shift, x)), lax.mul(centred, _over_positions(stretch, x)))
    of_x = lax.div(of_x, spread)
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
        conv = Conv(self.features, self.window, self.strides, False, self.time_padding, self.dtype, name="conv")
        norm = BatchNorm(self.features, self.groups, self.decay, relu=True, name="bn")
        if train:
            return norm(conv(x))
        scale, shift = norm.in_a_test()
        # A GPU's library adds and rectifies by itself, if nothing comes between; a dense layer's kernel is larger than its outputs.
        if self.window and platforms.platform() == "cuda":
            return nn.relu(conv(x, scale, shift))
        y = conv(x)
        return _scaled(y.reshape(1, -1, self.features), scale[None], shift[None], True).reshape(y.shape)
