"""What the networks of the zoo share: their common attributes, and the body, a table of layers that is walked."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import convolution, initializers, layers, platforms, pooling
from i3d_jax.models.timing import Timing

CHANNELS = {"rgb": 3, "flow": 2}
VIDEO, IMAGE = {5: "[B, T, H, W, C]"}, {4: "[B, H, W, C]"}


class Mixed(nn.Module):
    """Four parallel branches, concatenated on channels: 1x1 | 1x1, 3x3 | 1x1, 3x3 | max-pool, 1x1."""

    channels: tuple[int, ...]
    unit: Any
    dims: int

    @nn.compact
    def __call__(self, x, train: bool):
        c0, c1a, c1b, c2a, c2b, c3 = self.channels
        one, three = (1,) * self.dims, (3,) * self.dims
        b0 = self.unit(c0, one, one, name="b0")(x, train)
        b1 = self.unit(c1a, one, one, name="b1a")(x, train)
        b1 = self.unit(c1b, three, one, name="b1b")(b1, train)
        b2 = self.unit(c2a, one, one, name="b2a")(x, train)
        b2 = self.unit(c2b, three, one, name="b2b")(b2, train)
        b3 = pooling.max_pool(x, three, one)
        b3 = self.unit(c3, one, one, name="b3")(b3, train)
        return jnp.concatenate([b0, b1, b2, b3], -1)


class Network(nn.Module):
    """A network of the zoo.

    All take `(video, train=False, endpoints=False)`. `video` is [B, T, H, W, 3] for RGB in [-1, 1], [B, T, H, W, 2] for
    flow / 20 or, for networks of two streams, {"rgb": ..., "flow": ...}. They return logits f32 [B, K]; ConvNet+LSTM in
    training [B, T, K], every one of which is taught. With `endpoints=True` they return (logits, {layer name:
    activations}), where "Logits" are those of every step in time, [B, S, K], that the logits are the average of
    (ConvNet+LSTM: the last).
    Training needs the rng "dropout" and `mutable=["batch_stats"]`; see `layers.Dropout` for a batch in parts.

    Attributes:
      num_classes: K, the number of logits.
      width: multiplies every layer's channels but the logits', for small machines.
      dropout: probability of dropping a feature before the last layer, in training.
      norm_group_size: clips that share batch norm statistics in training (6 per replica in the release); None: the batch.
      norm_decay: of the running statistics, per step; 0.999 as released is for runs of many thousand steps.
      dtype: of the computation; parameters, statistics and logits are float32.
      freeze_backbone: nothing but the last layer is trained (table 4's "Fixed"). The layers before it compute as in a test: with the
        running statistics and without dropout. The last layer's own input is dropped as `dropout` says; 0 turns that off.
      remat: convolutions and blocks are computed once more in the backward pass, one at a time, and not kept until then.
    """

    num_classes: int | None
    width: float = 1.0
    dropout: float = 0.5
    norm_group_size: int | None = None
    norm_decay: float = 0.999
    dtype: Any = jnp.float32
    freeze_backbone: bool = False
    remat: bool = False

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Flax's, whose variables these are; compiled in a quarter of the time, since all kernels are drawn in one loop.

        Captured intermediates are of kernels that are zeros. Plain forms are the quickest to trace, and nothing but shapes is wanted.
        """
        with platforms.forms_of("plain"), initializers.batched_initialization() as drawn:
            variables = super().init(*args, **kwargs)
        return drawn(variables)

    @property
    def timing(self) -> Timing:
        """How the logits per step lie in time."""
        raise NotImplementedError

    def shared(self) -> dict[str, Any]:
        """The attributes that a network hands to the networks inside it."""
        names = (
            "width",
            "dropout",
            "norm_group_size",
            "norm_decay",
            "dtype",
            "freeze_backbone",
            "remat",
        )
        return {name: getattr(self, name) for name in names}

    def scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def trunk(self, train: bool) -> bool:
        """Whether what is before the last layer is to compute as in training."""
        return train and not self.freeze_backbone

    def norm_groups(self, batch: int, train: bool) -> int:
        """How many groups of clips a batch has, each with batch norm statistics of its own.

        Raises:
          ValueError: the batch cannot be divided into groups.
        """
        if not self.trunk(train) or self.norm_group_size is None:
            return 1
        if batch % self.norm_group_size:
            raise ValueError(
                f"batch norm: a batch of {batch} cannot be divided into groups of {self.norm_group_size} (norm_group_size)"
            )
        return max(1, batch // self.norm_group_size)

    def unit(self, groups: int, **options: Any) -> functools.partial:
        """Convolution, batch norm and ReLU as this network has them.

        Args:
          groups: groups of the batch (`norm_groups`).

        Returns:
          a class to be called with channels, window and strides.
        """
        return functools.partial(
            layers.ConvBN, groups=groups, decay=self.norm_decay, dtype=self.dtype, **options
        )

    def walk(
        self, table: tuple[tuple, ...], x: jax.Array, train: bool, unit: Any, dims: int
    ) -> dict[str, jax.Array]:
        """The activations of every layer of `table`; 2-D networks drop the first of three dimensions.

        Call it in a compact method: the layers become the module's own.
        """
        train = self.trunk(train)
        block = (
            functools.partial(nn.remat, static_argnums=(2,))
            if self.remat and train
            else lambda module: module
        )
        ends = {}
        for kind, name, *spec in table:
            if kind == "pool":
                window, strides = spec
                x = pooling.max_pool(x, window[-dims:], strides[-dims:])
            elif kind == "conv":
                features, window, strides = spec
                conv = functools.partial(block(unit.func), **unit.keywords)
                x = conv(self.scaled(features), window[-dims:], strides[-dims:], name=name)(
                    x, train
                )
            else:
                x = block(Mixed)(tuple(map(self.scaled, spec)), unit, dims, name=name)(x, train)
            ends[name] = x
        return ends

    @nn.nowrap
    def check_stream(self, video: Any, what: str, axes: dict[int, str], train: bool) -> None:
        """Raises a ValueError unless `video` is one array of floats with as many axes as one of `axes` has."""
        if isinstance(video, dict) or video.ndim not in axes:
            found = (
                f"the streams {sorted(video)}"
                if isinstance(video, dict)
                else f"an array of shape {video.shape}"
            )
            raise ValueError(f"{what}: got {found}, wanted {' or '.join(axes.values())}")
        self._check_array(video, what, train)

    @nn.nowrap
    def check_streams(self, video: Any, what: str, train: bool) -> None:
        """Raises a ValueError unless `video` has both streams, of floats and of one size in pixels."""
        wanted = '{"rgb": [B, T, H, W, 3], "flow": [B, T, H, W, 2]}'
        if not isinstance(video, dict) or set(video) != set(CHANNELS):
            found = sorted(video) if isinstance(video, dict) else f"an array of shape {video.shape}"
            raise ValueError(f"{what}: got {found}, wanted {wanted}")
        rgb, flow = video["rgb"].shape, video["flow"].shape
        if len(rgb) != 5 or len(flow) != 5 or (rgb[0], *rgb[2:4]) != (flow[0], *flow[2:4]):
            raise ValueError(
                f"{what}: got rgb of shape {rgb} and flow of shape {flow}, wanted {wanted}"
            )
        for stream in video.values():
            self._check_array(stream, what, train)

    @nn.nowrap
    def _check_array(self, video: Any, what: str, train: bool) -> None:
        # Bytes of pixels, mostly, of which a network would make nonsense.
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(
                f"{what}: got {video.dtype}, wanted floats, RGB in [-1, 1] or flow / 20: pixels.to_unit(video)"
            )
        # Their statistics would be NaN, and so would all running ones from then on.
        if train and 0 in video.shape:
            raise ValueError(
                f"{what}: got an array of shape {video.shape} to train on, wanted one clip at least"
            )
        if video.ndim == 5 and video.shape[1] == 0:
            raise ValueError(
                f"{what}: got an array of shape {video.shape}, wanted one frame at least"
            )
        check_dtype(self.dtype, what)
        platforms.check_axes(video, what)

    def classify(self, x: jax.Array, train: bool, window: tuple[int, ...] = ()) -> jax.Array:
        """Dropout and the last layer, f32 [..., K]; its kernel is [*window, C, K], and all of the window is 1."""
        assert self.num_classes is not None, "only an Inception inside another network has none"
        x = layers.Dropout(self.dropout)(
            jax.lax.stop_gradient(x) if self.freeze_backbone else x, train
        )
        x = layers.Conv(
            self.num_classes, window, window, use_bias=True, dtype=self.dtype, name="Logits"
        )(x)
        return convolution.at_least_float32(x)


def check_dtype(dtype: Any, what: str) -> None:
    """Raises a ValueError if JAX, as it is set, would compute in float32 instead."""
    wanted = jnp.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"{what}: dtype is {wanted.name}, which JAX computes in only with JAX_ENABLE_X64=1 "
            'or jax.config.update("jax_enable_x64", True)'
        )
