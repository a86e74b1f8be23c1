"""Layers that the networks share, for images [B, H, W, C] and videos [B, T, H, W, C] alike.

Kernels, windows and strides are (time, height, width), or (height, width) for images. Parameters
have the shapes of the published checkpoints, whatever a platform's implementation does. That is
in `convolution.py`, `normalization.py` and `pooling.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from i3d_jax.models import convolution, normalization, platforms, streaming
from i3d_jax.models.initializers import kernel_init


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], *others: Any
) -> jax.Array:
    """Returns a parameter as `module.param` does, but faster where it already exists.

    Flax traces `init` to compare shapes, which takes a tenth of a network's tracing time.

    Args:
      module: the module that owns the parameter.
      name: its name.
      init: function of a key, the shape and `others` that makes its initial value.
      shape: its shape.
      *others: further arguments of `init`.

    Raises:
      flax.errors.ScopeParamShapeError: the parameter exists and has another shape.
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
    """Convolution.

    Its float32 parameters are `kernel` [*window, I, O] and, with `use_bias`, `bias` [O].
    """

    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    use_bias: bool = False
    time_padding: str = "zeros"
    dtype: Any = jnp.float32
    padding: str = "same"

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        """Convolves x, with the factor and offset of a batch norm that follows, if given.

        Args:
          x: [B, *positions, I].
          scale: [O], multiplied into the kernel.
          shift: [O], added in the place of a bias.
        """
        assert scale is None or not self.use_bias, "a layer has a bias or a shift, not both"
        shape = (*self.window, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", kernel_init, shape)
        if scale is not None:
            kernel = kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,))
        x = convolution.conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            self.time_padding,
            self.padding,
        )
        if self.use_bias:
            shift = parameter(self, "bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return (
            x
            if shift is None
            else x + shift.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        )


class Dropout(nn.Module):
    """Dropout with a mask per clip, drawn from the rng "dropout" and the clip's number.

    A clip's number is its place in the global batch. A batch that is processed in parts
    therefore has the same masks as the whole. Pass the numbers as the variable "number" int32
    [B] of the collection "clips"; the default is 0, 1, ... x may have several consecutive rows
    per clip.
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
        # np.float32, since under JAX_ENABLE_X64 a Python float draws other masks.
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, np.float32(1 - self.rate), shape))(
            keys
        )
        return jnp.where(kept.reshape(x.shape), x / (1 - self.rate), 0).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch norm over `groups` groups of clips, with an offset and, by option, a scale.

    The release's checkpoints have no scale. In training the batch is cut into `groups` equal
    groups of consecutive clips. Each is normalised by its own statistics, as if it were on its
    own replica. Running statistics are averaged over the groups. One group is synchronised batch
    norm over the whole batch, however many devices hold it. Statistics are float32 and taken
    over all axes but channels. Forward-mode AD in training works only under
    `models.forms_of("plain")`.

    Attributes:
      features: channels.
      groups: number of groups.
      decay: of the running statistics, per step. 0.999 remembers more steps than a short run
        has: use less there.
      epsilon: added to the variance.
      relu: whether ReLU follows; both then share one gradient.
      initial_scale: None is a batch norm without scale.
    """

    features: int
    groups: int = 1
    decay: float = 0.999
    epsilon: float = 1e-3
    relu: bool = False
    initial_scale: float | None = None

    def setup(self):
        self.scale = None
        if self.initial_scale is not None:
            init = nn.initializers.constant(self.initial_scale)
            self.scale = parameter(self, "scale", init, (self.features,), jnp.float32)
        self.bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), jnp.float32)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,), jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.features,), jnp.float32)

    def __call__(self, x):
        """Normalises x [B, *positions, C] by its own statistics, as in training."""
        check_groups(x.shape[0], x.size // self.features, self.groups)
        clips = x.reshape(
            self.groups, x.shape[0] // self.groups, math.prod(x.shape[1:-1]), self.features
        )
        y, mean, var = normalization.normalize(
            clips, self.bias, self.epsilon, self.relu, self.scale
        )
        if not self.is_initializing():
            for running, value in ((self.mean, mean), (self.var, var)):
                running.value = moving_average(running.value, value.mean(0), self.decay)
        return y.reshape(x.shape)

    def inference_scale_and_shift(self) -> tuple[jax.Array, jax.Array]:
        """The factor and the offset [C] that the running statistics give."""
        return normalization.scale_and_shift(
            self.mean.value, self.var.value, self.bias, self.epsilon, self.scale
        )


def moving_average(old: Any, new: jax.Array, decay: float) -> jax.Array:
    """decay * old + (1 - decay) * new, in the type of `old`."""
    return (decay * old + (1 - decay) * new).astype(old.dtype)


def check_groups(batch: int, values: int, groups: int) -> None:
    """Raises a ValueError unless every group has a variance.

    Args:
      batch: number of clips.
      values: number of values per channel in the batch.
      groups: number of groups.
    """
    if batch == 0 or values == 0:
        raise ValueError(
            f"batch norm: {batch} clips with {values} values per channel have no statistics"
        )
    if batch % groups:
        raise ValueError(f"batch norm: a batch of {batch} cannot be cut into {groups} equal groups")
    if values == groups:
        raise ValueError(
            "batch norm: a group with one value per channel has no variance; "
            "use groups of more clips (norm_group_size)"
        )


class ConvBN(nn.Module):
    """Convolution, batch norm and, unless `relu` is False, ReLU: the release's `Unit3D`."""

    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int = 1
    decay: float = 0.999
    epsilon: float = 1e-3
    time_padding: str = "zeros"
    dtype: Any = jnp.float32
    padding: str = "same"
    initial_scale: float | None = None
    relu: bool = True

    @nn.compact
    def __call__(self, x, train: bool):
        if not isinstance(x, streaming.Chunk):
            return self._apply(x, train, self.time_padding)
        x = streaming.with_past(
            self, "past", x, self.window[0], self.strides[0], padding=self.padding
        )
        return x.replace(values=self._apply(x.values, train, "none"))

    def _apply(self, x, train: bool, time_padding: str):
        conv = Conv(
            self.features,
            self.window,
            self.strides,
            False,
            time_padding,
            self.dtype,
            self.padding,
            name="conv",
        )
        norm = BatchNorm(
            self.features,
            self.groups,
            self.decay,
            self.epsilon,
            self.relu,
            self.initial_scale,
            name="bn",
        )
        if train:
            return norm(conv(x))
        scale, shift = norm.inference_scale_and_shift()
        # A GPU's library fuses the bias and ReLU into the convolution. Dense layers are left out:
        # their kernel is larger than their output.
        if self.window and platforms.platform() == "cuda":
            y = conv(x, scale, shift)
            return nn.relu(y) if self.relu else y
        y = conv(x)
        flat = y.reshape(1, 1, -1, self.features)
        return normalization.apply_scale_and_shift(
            flat, scale[None], shift[None], relu=self.relu
        ).reshape(y.shape)
