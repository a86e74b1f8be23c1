"""Layers that the networks share, for images [B, H, W, C] and videos [B, T, H, W, C] alike.

Kernels, windows and strides are (time, height, width), or (height, width) for images. Parameters keep the shapes of the
published checkpoints; how a layer computes is the business of this file, of `convolution.py`, `normalization.py` and
`pooling.py` alone.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from i3d_jax.models import convolution, normalization, platforms
from i3d_jax.models.initializers import kernel_init


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], *others: Any
) -> jax.Array:
    """As Flax's `param`, which traces `init` to compare the shapes of a parameter that is there: a tenth of the time that a network
    takes to trace.

    Raises:
      flax.errors.ScopeParamShapeError: it has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, *others)
    value = nn.unbox(module.get_variable("params", name))
    if jnp.shape(value) != shape:
        raise errors.ScopeParamShapeError(
            name, "/" + "/".join(module.path), jnp.shape(value), shape
        )
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
        x = convolution.conv(
            x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.time_padding
        )
        if self.use_bias:
            shift = parameter(self, "bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return (
            x
            if shift is None
            else x + shift.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        )


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
        # In float32: under JAX_ENABLE_X64 a Python float would draw other masks.
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, np.float32(1 - self.rate), shape))(
            keys
        )
        return jnp.where(kept.reshape(x.shape), x / (1 - self.rate), 0).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch norm with an offset and no scale (the published checkpoints have none), in `groups` independent groups.

    In training the batch is cut into `groups` equal runs of clips and each is normalised by its own statistics, as if
    every group sat on a replica of its own; running statistics are averaged over the groups. One group is batch norm
    over the whole batch, however many devices hold it. Statistics are float32 and taken over everything but channels.
    No forward-mode AD in training but under `models.forms_of("plain")`.
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
        clips = x.reshape(
            self.groups, x.shape[0] // self.groups, math.prod(x.shape[1:-1]), self.features
        )
        y, mean, var = normalization.normalize(clips, self.bias, self.epsilon, self.relu)
        if not self.is_initializing():
            for running, value in ((self.mean, mean), (self.var, var)):
                running.value = moving_average(running.value, value.mean(0), self.decay)
        return y.reshape(x.shape)

    def in_a_test(self) -> tuple[jax.Array, jax.Array]:
        """What it multiplies by and what it adds, [C], by its running statistics."""
        return normalization.scale_and_shift(
            self.mean.value, self.var.value, self.bias, self.epsilon
        )


def moving_average(old: Any, new: jax.Array, decay: float) -> jax.Array:
    """Of the type that the old one has, in whatever the new one was computed."""
    return (decay * old + (1 - decay) * new).astype(old.dtype)


def check_groups(batch: int, values: int, groups: int) -> None:
    """Raises a ValueError unless a batch can be cut into groups with more than one of so many values per channel each."""
    if batch == 0 or values == 0:
        raise ValueError(
            f"batch norm: {batch} clips with {values} values per channel have no statistics"
        )
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
        conv = Conv(
            self.features,
            self.window,
            self.strides,
            False,
            self.time_padding,
            self.dtype,
            name="conv",
        )
        norm = BatchNorm(self.features, self.groups, self.decay, relu=True, name="bn")
        if train:
            return norm(conv(x))
        scale, shift = norm.in_a_test()
        # A GPU's library adds and rectifies by itself, if nothing comes between; a dense layer's kernel is larger than its outputs.
        if self.window and platforms.platform() == "cuda":
            return nn.relu(conv(x, scale, shift))
        y = conv(x)
        flat = y.reshape(1, 1, -1, self.features)
        return normalization.scale_shift(flat, scale[None], shift[None], relu=True).reshape(y.shape)
