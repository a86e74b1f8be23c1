"""ResNet-50 for images and, inflated, for videos ("I3D ResNet-50"): one table serves both.

The 2-D network is He et al.'s (CVPR 2016) with the stride in the 3x3 convolution, as in
torchvision. Every second block of the 3-D network has a window of 3 in time (Wang et al.,
*Non-local Neural Networks*, CVPR 2018). The 2-D network drops the time axis; its variables have
the same tree structure as the 3-D ones.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.models import convolution, layers, pooling, streaming
from i3d_jax.models.network import (
    IMAGE,
    VIDEO,
    Network,
    frames_as_images,
    images_as_frames,
)
from i3d_jax.models.timing import Timing

# Windows and strides are (time, height, width). The ports agree in all but the stem.
STEMS: dict[str, tuple[tuple, ...]] = {
    # PyTorchVideo and SlowFast: clips of 8 frames.
    "8x8": (
        ("conv", "conv1", 64, (5, 7, 7), (1, 2, 2)),
        ("pool", "pool1", (1, 3, 3), (1, 2, 2), "symmetric"),
    ),
    # mmaction2: clips of 32 frames.
    "32x2": (
        ("conv", "conv1", 64, (5, 7, 7), (2, 2, 2)),
        ("pool", "pool1", (1, 3, 3), (2, 2, 2), "symmetric"),
    ),
    # video-nonlocal-net, which features for anomaly detection are from. Its pool is 2x3x3 without
    # padding: the same as one in space and one in time.
    "32x2_unpadded": (
        ("conv", "conv1", 64, (5, 7, 7), (2, 2, 2)),
        ("pool", "pool1", (1, 3, 3), (1, 2, 2), "valid"),
        ("pool", "pool1_time", (2, 1, 1), (2, 1, 1), "symmetric"),
    ),
}
# Stages: channels; windows in time of the blocks, in turn; stride in space.
BODY: tuple[tuple, ...] = (
    ("stage", "res2", 64, (3,), 1),
    ("pool", "pool2", (2, 1, 1), (2, 1, 1), "symmetric"),
    ("stage", "res3", 128, (3, 1), 2),
    ("stage", "res4", 256, (3, 1), 2),
    ("stage", "res5", 512, (1, 3), 2),
)
EXPANSION = 4  # Channels of a block's output, compared with those inside.
# Blocks of each stage.
DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Wang et al.'s five non-local blocks of ResNet-50 follow every second block of these stages.
NON_LOCAL_STAGES = "res3", "res4"
NON_LOCAL = "none", "softmax", "dot_product"
# Mean and standard deviation of RGB in [0, 1].
SCALINGS = {
    "none": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}


class ResNet(Network):
    """ResNet in `dims` dimensions: 3 is I3D-ResNet on videos, 2 is the image network.

    The 3-D network takes videos of any length and makes a prediction every 2 or 8 frames, by its
    stem. The 2-D network takes images [B, H, W, C], or videos whose frames it treats as images.

    Its input is RGB in [-1, 1], as all networks' is. It brings RGB to the mean and standard
    deviation that its weights know by itself (`input_scaling`), so that commands, exports and
    training need not know of these.

    A pool in time over an odd number of frames pools the last one alone, as SAME does. PyTorch
    leaves that frame out.

    Attributes:
      dims: 3 or 2.
      depth: 50; or 14, 26, 101 layers.
      stem: the first layers' strides in time, by the clips that they are for: "8x8", "32x2" or
        "32x2_unpadded" (see STEMS). The 2-D network takes their strides in space.
      non_local: "softmax" or "dot_product" adds Wang et al.'s non-local blocks; "none".
      input_scaling: "imagenet", "kinetics" (SlowFast's and PyTorchVideo's), or "none" to take
        RGB in [-1, 1] as it is. Other inputs than RGB are never scaled.
      pool_window: height and width of the average pool, which moves by single positions; its
        outputs are averaged. 0 is all of space. SlowFast and PyTorchVideo have 7, which differs
        for crops above 224.
    """

    norm_decay: float = 0.9
    norm_epsilon: float = 1e-5
    dims: int = 3
    depth: int = 50
    stem: str = "8x8"
    non_local: str = "none"
    input_scaling: str = "imagenet"
    pool_window: int = 0

    @property
    def timing(self) -> Timing:
        if self.dims == 2:
            return Timing()
        step = math.prod(row[-2][0] for row in self.table() if row[0] == "pool")
        step *= math.prod(row[-1][0] for row in self.table() if row[0] == "conv")
        return Timing(step=step, quantum=4 * step)

    @nn.nowrap
    def table(self) -> tuple[tuple, ...]:
        """The network's layers, as rows of kind, name and sizes.

        Raises:
          ValueError: an attribute has a wrong value.
        """
        for name, allowed in (
            ("dims", (2, 3)),
            ("depth", DEPTHS),
            ("stem", STEMS),
            ("non_local", NON_LOCAL),
            ("input_scaling", SCALINGS),
        ):
            if (value := getattr(self, name)) not in allowed:
                wanted = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} is {value!r}, wanted one of {wanted}")
        if self.pool_window < 0:
            raise ValueError(f"pool_window is {self.pool_window}, wanted 0 or more")
        return (*STEMS[self.stem], *BODY)

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False, endpoints: bool = False):
        """See `Network`.

        Raises:
          ValueError: wrong rank, or an attribute with a wrong value.
        """
        what, rows = f"{self.dims}-D ResNet", self.table()
        self.check_stream(video, what, VIDEO if self.dims == 3 else IMAGE | VIDEO, train)
        streamed = isinstance(video, streaming.Chunk)
        if streamed and self.non_local != "none":
            raise ValueError(
                f"{what}: non_local is {self.non_local!r}, which takes whole clips; wanted 'none' "
                "for videos in chunks"
            )
        of_frames = self.dims == 2 and (streamed or video.ndim == 5)
        x: Any = frames_as_images(video) if of_frames else video
        groups = self.norm_groups(streaming.values_of(video).shape[0], train)
        x = streaming.per_step(self._scaled_input, x)
        ends = self._blocks(rows, x, self.trains_backbone(train), groups)
        x = ends["AvgPool"] = streaming.per_step(self._average, ends["res5"])
        x = ends["Logits"] = streaming.per_step(
            lambda x: jnp.squeeze(self.classify(x, train, (1,) * self.dims), (-3, -2)), x
        )
        if of_frames:
            ends = images_as_frames(video, ends)
        if of_frames or self.dims == 3:
            x = streaming.mean_over_time(ends["Logits"])
        return (x, ends) if endpoints else x

    def _scaled_input(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] != 3 or self.input_scaling == "none":
            return x.astype(self.dtype)
        x = convolution.at_least_float32(x)
        mean, std = (
            np.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (3,))
            for values in SCALINGS[self.input_scaling]
        )
        return ((x * 0.5 + (0.5 - mean)) / std).astype(self.dtype)

    def _blocks(self, rows: tuple, x: Any, train: bool, groups: int) -> dict[str, Any]:
        """The activations of all layers before the average pool, by name.

        Args:
          rows: of `table`.
          x: input of the first layer.
          train: whether the layers compute as in training.
          groups: see `Network.unit`.
        """
        unit = self.unit(groups, padding="symmetric", initial_scale=1.0)
        remat: Any = (
            functools.partial(nn.remat, static_argnums=(2,))
            if self.remat and train
            else lambda module: module
        )
        conv = functools.partial(remat(unit.func), **unit.keywords)
        block, non_local = remat(Bottleneck), remat(NonLocal)
        depths, dims, ends = iter(DEPTHS[self.depth]), self.dims, {}
        for kind, name, *spec in rows:
            if kind == "conv":
                features, window, strides = spec
                features = self.scaled_channels(features)
                x = conv(features, window[-dims:], strides[-dims:], name=name)(x, train)
            elif kind == "pool":
                window, strides, padding = spec
                if math.prod(window[-dims:]) == 1:  # The 2-D network has no pools in time.
                    continue
                x = streaming.max_pool(self, name, x, window[-dims:], strides[-dims:], padding)
            else:
                channels, windows, stride = spec
                sizes = [self.scaled_channels(each) for each in (channels, EXPANSION * channels)]
                for number in range(next(depths)):
                    each, window = f"{name}_{number}", windows[number % len(windows)]
                    strides = 1 if number else stride
                    x = block(*sizes, window, strides, number == 0, unit, dims, name=each)(x, train)
                    if self.non_local != "none" and name in NON_LOCAL_STAGES and number % 2:
                        each = f"{each}_nonlocal"
                        x = non_local(self.non_local, unit, dims, name=each)(x, train)
            ends[name] = x = self.endpoint(name, x)
        return ends

    def _average(self, x: jax.Array) -> jax.Array:
        """Averages over space, and keeps the rank."""
        wide = convolution.at_least_float32(x)
        if self.pool_window == 0:
            return wide.mean((-3, -2), keepdims=True).astype(x.dtype)
        for axis in -3, -2:
            size = x.shape[axis]
            window = min(self.pool_window, size)
            # In how many windows each position is.
            counts = np.convolve(np.ones(window), np.ones(size - window + 1))
            shape = [1] * x.ndim
            shape[axis] = size
            weights = np.asarray(counts / counts.sum(), wide.dtype).reshape(shape)
            wide = (wide * weights).sum(axis, keepdims=True)
        return wide.astype(x.dtype)


class Bottleneck(nn.Module):
    """Three convolutions, added to the block's input or, with `project`, to its projection.

    They are: `window` in time, 3x3 in space, 1x1x1 to more channels.
    """

    channels: int
    outputs: int
    window: int
    stride: int
    project: bool
    unit: Any
    dims: int

    @nn.compact
    def __call__(self, x, train: bool):
        one, strides = (1,) * self.dims, (1, self.stride, self.stride)[-self.dims :]
        in_time, in_space = (self.window, 1, 1)[-self.dims :], (1, 3, 3)[-self.dims :]
        y = self.unit(self.channels, in_time, one, name="a")(x, train)
        y = self.unit(self.channels, in_space, strides, name="b")(y, train)
        y = self.unit(self.outputs, one, one, relu=False, name="c")(y, train)
        if self.project:
            x = self.unit(self.outputs, one, strides, relu=False, name="shortcut")(x, train)
        x, y = streaming.align(self, "waiting", [x, y])
        return streaming.per_step(lambda x, y: nn.relu(x + y), x, y)


class NonLocal(nn.Module):
    """A non-local block as in SlowFast: every position attends to all others of the clip.

    It starts as the identity, since the last batch norm's scale is 0. SlowFast's last convolution
    has a bias; batch norm takes it away again, and there is none here.
    """

    kind: str
    unit: Any
    dims: int

    @nn.compact
    def __call__(self, x, train: bool):
        batch, channels, one = x.shape[0], x.shape[-1], (1,) * self.dims
        inner = max(1, channels // 2)
        two = (1, 2, 2)[-self.dims :]
        fewer = pooling.max_pool(x, two, two, "valid")

        def projected(x, name):
            conv = layers.Conv(
                inner, one, one, use_bias=True, dtype=self.unit.keywords["dtype"], name=name
            )
            return conv(x).reshape(batch, math.prod(x.shape[1:-1]), inner)

        theta, phi, g = projected(x, "theta"), projected(fewer, "phi"), projected(fewer, "g")
        weights = convolution.at_least_float32(jnp.einsum("bpc,bqc->bpq", theta, phi))
        if self.kind == "softmax":
            weights = nn.softmax(weights * inner**-0.5)
        else:
            weights = weights / phi.shape[1]
        y = jnp.einsum("bpq,bqc->bpc", weights.astype(g.dtype), g)
        y = y.reshape(*x.shape[:-1], inner)
        return x + self.unit(channels, one, one, relu=False, initial_scale=0.0, name="out")(
            y, train
        )
