"""Inception-v1 for images and, inflated, for videos (I3D): one table, walked twice.

Source: figure 3 of the paper and the release's `i3d.py`. The 2-D network is the table with time dropped (so its branch 2
is 3x3, not 5x5), and its variables have the same tree structure as the 3-D network's.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import layers

# Windows and strides are (time, height, width).
# Mixed: channels of b0; of b1a, b1b; of b2a, b2b; of b3.
LAYERS: tuple[tuple, ...] = (
    ("conv", "Conv_1a", 64, (7, 7, 7), (2, 2, 2)),
    ("pool", "MaxPool_2a", (1, 3, 3), (1, 2, 2)),
    ("conv", "Conv_2b", 64, (1, 1, 1), (1, 1, 1)),
    ("conv", "Conv_2c", 192, (3, 3, 3), (1, 1, 1)),
    ("pool", "MaxPool_3a", (1, 3, 3), (1, 2, 2)),
    ("mixed", "Mixed_3b", 64, 96, 128, 16, 32, 32),
    ("mixed", "Mixed_3c", 128, 128, 192, 32, 96, 64),
    ("pool", "MaxPool_4a", (3, 3, 3), (2, 2, 2)),
    ("mixed", "Mixed_4b", 192, 96, 208, 16, 48, 64),
    ("mixed", "Mixed_4c", 160, 112, 224, 24, 64, 64),
    ("mixed", "Mixed_4d", 128, 128, 256, 24, 64, 64),
    ("mixed", "Mixed_4e", 112, 144, 288, 32, 64, 64),
    ("mixed", "Mixed_4f", 256, 160, 320, 32, 128, 128),
    ("pool", "MaxPool_5a", (2, 2, 2), (2, 2, 2)),
    ("mixed", "Mixed_5b", 256, 160, 320, 32, 128, 128),
    ("mixed", "Mixed_5c", 384, 192, 384, 48, 128, 128),
)
ENDPOINTS = tuple(name for _, name, *_ in LAYERS) + ("AvgPool", "Logits")
MIN_FRAMES = 9  # The table halves time three times, rounding up, and AvgPool needs two frames of what is left.


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
        b3 = self.unit(c3, one, one, name="b3")(layers.max_pool(x, three, one), train)
        return jnp.concatenate([b0, b1, b2, b3], -1)


class Inception(nn.Module):
    """Inception-v1 in `dims` dimensions: 3 is I3D on videos, 2 is the image network.

    Attributes:
      num_classes: K, the number of logits.
      dims: 3 for videos [B, T, H, W, C] of at least 9 frames; 2 for images [B, H, W, C], or for videos frame by frame.
      width: multiplies every layer's channels but the logits', for small machines.
      dropout: probability of dropping an averaged feature before the last convolution, in training.
      norm_groups: groups of clips with batch norm statistics of their own, in training (the release's replicas).
      norm_decay: of the running statistics, per step; 0.999 as released is for runs of many thousand steps.
      time_padding: "zeros", as released, or "edge": a video of one repeated image then gives exactly the image's
        response at its ends too.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    dims: int = 3
    width: float = 1.0
    dropout: float = 0.5
    norm_groups: int = 1
    norm_decay: float = 0.999
    time_padding: str = "zeros"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False, endpoints: bool = False):
        """Classifies clips; training needs the rng "dropout" and `mutable=["batch_stats"]`.

        Args:
          video: [B, T, H, W, C], or [B, H, W, C] for the 2-D network; RGB in [-1, 1] or flow / 20.
          train: normalise by the batch's statistics and drop out.
          endpoints: also return every layer's activations.

        Returns:
          logits f32 [B, K], averaged over time (over frames, if the 2-D network is given videos); with
          `endpoints=True` (logits, {layer name: activations}), where "Logits" are the logits per time step,
          [B, ceil(T / 8) - 1, K], for the 3-D network.

        Raises:
          ValueError: wrong rank, too few frames, or an attribute that is not one of its values.
        """
        if self.time_padding not in ("zeros", "edge"):
            raise ValueError(f"time_padding is {self.time_padding!r}, wanted 'zeros' or 'edge'")
        frames = video.shape[1] if self.dims == 2 and video.ndim == 5 else None
        if frames is not None:
            video = video.reshape(-1, *video.shape[2:])
        check_video(video, self.dims)
        ends = {}
        x = video.astype(self.dtype)
        unit = functools.partial(
            layers.ConvBN,
            groups=self.norm_groups,
            decay=self.norm_decay,
            time_padding=self.time_padding,
            dtype=self.dtype,
        )
        for kind, name, *spec in LAYERS:
            if kind == "pool":
                window, strides = spec
                x = layers.max_pool(x, window[-self.dims :], strides[-self.dims :])
            elif kind == "conv":
                features, window, strides = spec
                x = unit(self.scaled(features), window[-self.dims :], strides[-self.dims :], name=name)(x, train)
            else:
                x = Mixed(tuple(map(self.scaled, spec)), unit, self.dims, name=name)(x, train)
            ends[name] = x
        # Windows of 2 frames by 7x7 pixels at 224x224; any other size is averaged over all of its space, too.
        x = ends["AvgPool"] = average(x, self.dims)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        one = (1,) * self.dims
        x = layers.Conv(self.num_classes, one, one, use_bias=True, dtype=self.dtype, name="Logits")(x)
        x = ends["Logits"] = layers.at_least_float32(jnp.squeeze(x, (-3, -2)))
        if frames is not None:
            ends = {name: end.reshape(-1, frames, *end.shape[1:]) for name, end in ends.items()}
        logits = ends["Logits"].mean(1) if ends["Logits"].ndim == 3 else x
        return (logits, ends) if endpoints else logits

    def scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))


def average(x: jax.Array, dims: int) -> jax.Array:
    """The last average pool: all of space and, of a video, two frames at a time; keeps the rank."""
    x = layers.at_least_float32(x).mean((-3, -2), keepdims=True).astype(x.dtype)
    return (x[:, :-1] + x[:, 1:]) / 2 if dims == 3 else x


def check_video(video: jax.Array, dims: int) -> None:
    axes = "[B, T, H, W, C]" if dims == 3 else "[B, H, W, C] or [B, T, H, W, C]"
    if video.ndim != dims + 2:
        raise ValueError(f"{dims}-D Inception: got an array of shape {video.shape}, wanted {axes}")
    if dims == 3 and video.shape[1] < MIN_FRAMES:
        raise ValueError(
            f"I3D: {video.shape[1]} frames give no prediction (T frames give ceil(T / 8) - 1); at least {MIN_FRAMES} are needed"
        )
