"""What all networks of the zoo share: attributes, checks of inputs, and the walk along a table."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import convolution, initializers, layers, platforms, streaming
from i3d_jax.models.timing import Timing

CHANNELS = {"rgb": 3, "flow": 2}
VIDEO, IMAGE = {5: "[B, T, H, W, C]"}, {4: "[B, H, W, C]"}


class Mixed(nn.Module):
    """Four parallel branches, concatenated on channels.

    They are: 1x1 | 1x1, 3x3 | 1x1, 3x3 | max-pool, 1x1.
    """

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
        b3 = streaming.max_pool(self, "pool", x, three, one)
        b3 = self.unit(c3, one, one, name="b3")(b3, train)
        return streaming.concatenate(self, "waiting", [b0, b1, b2, b3])


class Network(nn.Module):
    """A network of the zoo.

    Networks are called with `(video, train=False, endpoints=False)`.

    `video` is [B, T, H, W, 3] for RGB in [-1, 1] and [B, T, H, W, 2] for flow / 20. Networks of
    two streams take {"rgb": ..., "flow": ...}.

    The result is the logits f32 [B, K]. In training ConvNet+LSTM returns [B, T, K], with a loss
    at each step. With `endpoints=True` the result is (logits, {layer name: activations}). Its
    "Logits" are those of every step in time, [B, S, K]; their average is the logits
    (ConvNet+LSTM: the last of them).

    Training needs the rng "dropout" and `mutable=["batch_stats"]`. For batches that are
    processed in parts see `layers.Dropout`.

    In the place of whole videos a network takes the next chunk of longer ones (`streaming.step`).

    Attributes:
      num_classes: K, the number of logits.
      width: multiplies the channels of every layer but the last; less than 1 suits small machines.
      dropout: probability of dropping a feature before the last layer, in training.
      norm_group_size: clips that share batch norm statistics in training (the release: 6 per
        replica); None is the whole batch.
      norm_decay: of the batch norm's running statistics, per step. The released 0.999 is for
        runs of many thousand steps.
      norm_epsilon: that batch norm adds to the variance. The release has 1e-3; most PyTorch ports
        have 1e-5, which changes the logits by about 0.1 %.
      dtype: of the computation. Parameters, statistics and logits are float32.
      freeze_backbone: trains only the last layer, a linear probe (table 4's "Fixed"). The layers
        before it compute as at test: with running statistics and without dropout. `dropout`
        still applies to the last layer's input; 0 turns it off.
      remat: computes convolutions and blocks again in the backward pass, one at a time, instead
        of keeping their activations.
    """

    num_classes: int | None
    width: float = 1.0
    dropout: float = 0.5
    norm_group_size: int | None = None
    norm_decay: float = 0.999
    norm_epsilon: float = 1e-3
    dtype: Any = jnp.float32
    freeze_backbone: bool = False
    remat: bool = False

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As Flax's `init`, with the same variables, but compiled in a quarter of the time.

        All kernels are drawn in one loop. Captured intermediates are therefore those of zero
        kernels. Layers have their plain forms, which trace the fastest.
        """
        with platforms.forms_of("plain"), initializers.batched_initialization() as draw_pending:
            variables = super().init(*args, **kwargs)
        return draw_pending(variables)

    @property
    def timing(self) -> Timing:
        """How the predictions lie in time."""
        raise NotImplementedError

    def shared_attributes(self) -> dict[str, Any]:
        """The attributes that a network passes on to the networks inside it."""
        names = (
            "width",
            "dropout",
            "norm_group_size",
            "norm_decay",
            "norm_epsilon",
            "dtype",
            "freeze_backbone",
            "remat",
        )
        return {name: getattr(self, name) for name in names}

    def scaled_channels(self, channels: int) -> int:
        """Channels of a layer after scaling by `width`."""
        return max(1, round(channels * self.width))

    def trains_backbone(self, train: bool) -> bool:
        """Whether the layers before the last one compute as in training."""
        return train and not self.freeze_backbone

    def norm_groups(self, batch: int, train: bool) -> int:
        """Number of groups of clips in a batch, each with its own batch norm statistics.

        Args:
          batch: number of clips.
          train: whether the network is called with `train=True`.

        Raises:
          ValueError: the batch cannot be divided into groups.
        """
        if not self.trains_backbone(train) or self.norm_group_size is None:
            return 1
        if batch % self.norm_group_size:
            raise ValueError(
                f"batch norm: a batch of {batch} cannot be divided into groups of "
                f"{self.norm_group_size} (norm_group_size)"
            )
        return max(1, batch // self.norm_group_size)

    def unit(self, groups: int, **options: Any) -> functools.partial:
        """Returns a constructor of convolutions with batch norm and ReLU, as this network has.

        Args:
          groups: number of groups of the batch (see `norm_groups`).
          **options: further attributes of `layers.ConvBN`.

        Returns:
          a function of channels, window and strides.
        """
        return functools.partial(
            layers.ConvBN,
            groups=groups,
            decay=self.norm_decay,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            **options,
        )

    def walk(
        self, table: tuple[tuple, ...], x: jax.Array, train: bool, unit: Any, dims: int
    ) -> dict[str, jax.Array]:
        """Applies the layers of a table in turn.

        Call it in a compact method: the layers become submodules of this one.

        Args:
          table: rows of kind, name and sizes, such as `inception.LAYERS`.
          x: input of the first layer.
          train: whether the network is called with `train=True`.
          unit: constructor of convolutions (see `unit`).
          dims: 3, or 2 to drop the time axis of windows and strides.

        Returns:
          the activations of every layer, by name.
        """
        train = self.trains_backbone(train)
        block = (
            functools.partial(nn.remat, static_argnums=(2,))
            if self.remat and train
            else lambda module: module
        )
        ends = {}
        for kind, name, *spec in table:
            if kind == "pool":
                window, strides = spec
                x = streaming.max_pool(self, name, x, window[-dims:], strides[-dims:])
            elif kind == "conv":
                features, window, strides = spec
                conv = functools.partial(block(unit.func), **unit.keywords)
                x = conv(
                    self.scaled_channels(features), window[-dims:], strides[-dims:], name=name
                )(x, train)
            else:
                x = block(Mixed)(tuple(map(self.scaled_channels, spec)), unit, dims, name=name)(
                    x, train
                )
            ends[name] = x = self.endpoint(name, x)
        return ends

    @nn.nowrap
    def endpoint(self, name: str, x: Any) -> Any:
        """The activations of a layer, plus what the collection "perturbations" adds to them.

        Without the collection this is x. The gradient by what is added is the gradient by the
        activations (`evaluation.saliency`).

        Args:
          name: of the layer.
          x: its activations.
        """
        if self.has_variable("perturbations", name):
            x = x + jnp.reshape(self.get_variable("perturbations", name), x.shape)
        return x

    @nn.nowrap
    def endpoint_path(self, name: str) -> tuple[str, ...]:
        """The place of a layer's perturbation in the collection "perturbations"."""
        return tuple(name.split("/"))

    @nn.nowrap
    def check_stream(self, video: Any, what: str, axes: dict[int, str], train: bool) -> None:
        """Raises a ValueError unless `video` is one array of floats with an allowed rank.

        Args:
          video: the network's input.
          what: the network's name, for the message.
          axes: the allowed ranks, each with its axes for the message.
          train: whether the network is called with `train=True`.
        """
        if isinstance(video, dict) or streaming.values_of(video).ndim not in axes:
            found = (
                f"the streams {sorted(video)}"
                if isinstance(video, dict)
                else f"an array of shape {streaming.values_of(video).shape}"
            )
            raise ValueError(f"{what}: got {found}, wanted {' or '.join(axes.values())}")
        self._check_array(video, what, train)

    @nn.nowrap
    def check_streams(self, video: Any, what: str, train: bool) -> None:
        """Raises a ValueError unless `video` has both streams, of floats and of equal size.

        Args:
          video: the network's input.
          what: the network's name, for the message.
          train: whether the network is called with `train=True`.
        """
        wanted = '{"rgb": [B, T, H, W, 3], "flow": [B, T, H, W, 2]}'
        if not isinstance(video, dict) or set(video) != set(CHANNELS):
            found = sorted(video) if isinstance(video, dict) else f"an array of shape {video.shape}"
            raise ValueError(f"{what}: got {found}, wanted {wanted}")
        rgb, flow = (streaming.values_of(video[stream]).shape for stream in CHANNELS)
        if len(rgb) != 5 or len(flow) != 5 or (rgb[0], *rgb[2:4]) != (flow[0], *flow[2:4]):
            raise ValueError(
                f"{what}: got rgb of shape {rgb} and flow of shape {flow}, wanted {wanted}"
            )
        for stream in video.values():
            self._check_array(stream, what, train)

    @nn.nowrap
    def _check_array(self, video: Any, what: str, train: bool) -> None:
        if isinstance(video, streaming.Chunk):
            if train:
                raise ValueError(f"{what}: got a chunk to train on, wanted whole clips")
            video = video.values
        # Integers are mostly pixels in bytes, which would give meaningless predictions.
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(
                f"{what}: got {video.dtype}, wanted floats, RGB in [-1, 1] or flow / 20: "
                "pixels.to_unit(video)"
            )
        # The statistics of nothing are NaN, and would spoil all running ones.
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
        """Applies dropout and the last layer.

        Args:
          x: the features [..., C].
          train: whether the network is called with `train=True`.
          window: window of the last layer's kernel, all ones: the kernel is [*window, C, K].

        Returns:
          the logits f32 [..., K].
        """
        assert self.num_classes is not None, "num_classes is None only inside another network"
        x = layers.Dropout(self.dropout)(
            jax.lax.stop_gradient(x) if self.freeze_backbone else x, train
        )
        x = layers.Conv(
            self.num_classes, window, window, use_bias=True, dtype=self.dtype, name="Logits"
        )(x)
        return convolution.at_least_float32(x)


def frames_as_images(video: Any) -> jax.Array:
    """The frames of videos [B, T, ...], or of a chunk, as one batch of images [B * T, ...]."""
    values = streaming.values_of(video)
    return values.reshape(-1, *values.shape[2:])


def images_as_frames(video: Any, ends: dict[str, jax.Array]) -> dict[str, Any]:
    """Undoes `frames_as_images` for activations.

    Args:
      video: what `frames_as_images` took.
      ends: the activations of its images, by name.
    """
    batch, length = streaming.values_of(video).shape[:2]
    return {
        name: streaming.steps_of(video, end.reshape(batch, length, *end.shape[1:]))
        for name, end in ends.items()
    }


def check_dtype(dtype: Any, what: str) -> None:
    """Raises a ValueError if JAX, as it is configured, would compute in float32 instead.

    Args:
      dtype: the type to compute in.
      what: what asks for it, for the message.
    """
    wanted = jnp.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"{what}: dtype is {wanted.name}, which JAX computes in only with JAX_ENABLE_X64=1 "
            'or jax.config.update("jax_enable_x64", True)'
        )
