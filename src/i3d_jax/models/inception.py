"""Inception-v1 for images and, inflated, for videos (I3D): one table serves both.

The table is from figure 3 of the paper and the release's `i3d.py`. The 2-D network drops the time
axis, so branch 2 is 3x3, not 5x5. Its variables have the same tree structure as the 3-D ones.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import convolution, streaming
from i3d_jax.models.network import IMAGE, VIDEO, Network, frames_as_images, images_as_frames
from i3d_jax.models.timing import Timing

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
STEP = 8  # Frames from one activation of the last layer to the next: time is halved three times.
MIN_FRAMES = STEP + 1  # AvgPool needs two activations in time.


class Inception(Network):
    """Inception-v1 in `dims` dimensions: 3 is I3D on videos, 2 is the image network.

    I3D takes videos of at least 9 frames and makes ceil(T / 8) - 1 predictions. The 2-D network
    takes images [B, H, W, C], or videos whose frames it treats as images.

    Attributes:
      num_classes: None leaves out the last layer. The averaged features f32 [B, C] then take the
        place of the logits; for videos they are [B, S, C].
      dims: 3 or 2.
      time_padding: "zeros", as released, or "edge", which repeats the first and last frame. With
        "edge" a video of one repeated image gives exactly the image's response at its ends too.
    """

    table: ClassVar[tuple[tuple, ...]] = LAYERS  # Experiments have others.
    dims: int = 3
    time_padding: str = "zeros"

    @property
    def timing(self) -> Timing:
        if self.dims == 2:
            return Timing()
        return Timing(step=STEP, lost=1, least=MIN_FRAMES, quantum=2 * STEP)

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False, endpoints: bool = False):
        """See `Network`.

        Raises:
          ValueError: wrong rank, too few frames, or an attribute with a wrong value.
        """
        if self.time_padding not in ("zeros", "edge"):
            raise ValueError(f"time_padding is {self.time_padding!r}, wanted 'zeros' or 'edge'")
        self.check_stream(
            video, f"{self.dims}-D Inception", VIDEO if self.dims == 3 else IMAGE | VIDEO, train
        )
        batch, length = streaming.values_of(video).shape[:2]
        streamed = isinstance(video, streaming.Chunk)
        if streamed and self.time_padding == "edge":
            raise ValueError("time_padding is 'edge', wanted 'zeros' for videos in chunks")
        if self.dims == 3 and length < MIN_FRAMES and not streamed:
            raise ValueError(
                f"I3D: {length} frames give no prediction (T frames give ceil(T / 8) - 1); "
                f"at least {MIN_FRAMES} are needed"
            )
        # The 2-D network's frames are images of one batch.
        of_frames = self.dims == 2 and (streamed or video.ndim == 5)
        x: Any = frames_as_images(video) if of_frames else video
        x = streaming.per_step(lambda x: x.astype(self.dtype), x)
        unit = self.unit(self.norm_groups(batch, train), time_padding=self.time_padding)
        ends = self.walk(self.table, x, train, unit, self.dims)
        # At 224x224 this pools 7x7 pixels. Other sizes are averaged over all of space too.
        x = ends["AvgPool"] = average_pool(self, "AvgPool", ends["Mixed_5c"], self.dims)
        if self.num_classes is not None:
            x = ends["Logits"] = streaming.per_step(
                lambda x: jnp.squeeze(self.classify(x, train, (1,) * self.dims), (-3, -2)), x
            )
        if of_frames:
            ends = images_as_frames(video, ends)
        if self.num_classes is None:
            x = streaming.per_step(
                lambda x: convolution.at_least_float32(jnp.squeeze(x, (-3, -2))), ends["AvgPool"]
            )
        elif of_frames or self.dims == 3:
            x = streaming.mean_over_time(ends["Logits"])
        return (x, ends) if endpoints else x


def average_pool(module: nn.Module, name: str, x: Any, dims: int) -> Any:
    """The last average pool: all of space and, in videos, pairs of frames; keeps the rank.

    Args:
      module: the module that keeps a chunk's past (`streaming.with_past`).
      name: of the variable there.
      x: an array, or a chunk of videos.
      dims: 3, or 2 for images.
    """

    def over_space(x):
        return convolution.at_least_float32(x).mean((-3, -2), keepdims=True).astype(x.dtype)

    x = streaming.per_step(over_space, x)
    if isinstance(x, streaming.Chunk):
        x = streaming.with_past(module, name, x, 2, fill=None)
    return streaming.per_step(lambda x: (x[:, :-1] + x[:, 1:]) / 2 if dims == 3 else x, x)
