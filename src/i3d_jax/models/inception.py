"""Inception-v1 for images and, inflated, for videos (I3D): one table serves both.

The table is from figure 3 of the paper and the release's `i3d.py`. The 2-D network drops the time
axis, so branch 2 is 3x3, not 5x5. Its variables have the same tree structure as the 3-D ones.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import convolution, padding
from i3d_jax.models.network import IMAGE, VIDEO, Network
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

    dims: int = 3
    time_padding: str = "zeros"

    @property
    def timing(self) -> Timing:
        if self.dims == 2:
            return Timing()
        before, after = receptive_field(LAYERS)
        return Timing(
            1, 1, STEP, before, STEP + after + 1, lost=1, least=MIN_FRAMES, quantum=2 * STEP
        )

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
        if self.dims == 3 and video.shape[1] < MIN_FRAMES:
            raise ValueError(
                f"I3D: {video.shape[1]} frames give no prediction (T frames give ceil(T / 8) - 1); "
                f"at least {MIN_FRAMES} are needed"
            )
        groups = self.norm_groups(video.shape[0], train)
        frames = video.shape[1] if self.dims == 2 and video.ndim == 5 else None
        if frames is not None:
            video = video.reshape(-1, *video.shape[2:])
        unit = self.unit(groups, time_padding=self.time_padding)
        ends = self.walk(LAYERS, video.astype(self.dtype), train, unit, self.dims)
        # At 224x224 this pools 7x7 pixels. Other sizes are averaged over all of space too.
        x = ends["AvgPool"] = average_pool(ends["Mixed_5c"], self.dims)
        if self.num_classes is None:
            x = convolution.at_least_float32(jnp.squeeze(x, (-3, -2)))
            x = x if frames is None else x.reshape(-1, frames, x.shape[-1])
        else:
            x = ends["Logits"] = jnp.squeeze(self.classify(x, train, (1,) * self.dims), (-3, -2))
        if frames is not None:
            ends = {name: end.reshape(-1, frames, *end.shape[1:]) for name, end in ends.items()}
        if self.num_classes is not None:
            x = ends["Logits"].mean(1) if ends["Logits"].ndim == 3 else x
        return (x, ends) if endpoints else x


def average_pool(x: jax.Array, dims: int) -> jax.Array:
    """The last average pool: all of space and, in videos, pairs of frames; keeps the rank."""
    x = convolution.at_least_float32(x).mean((-3, -2), keepdims=True).astype(x.dtype)
    return (x[:, :-1] + x[:, 1:]) / 2 if dims == 3 else x


def receptive_field(table: tuple[tuple, ...]) -> tuple[int, int]:
    """How far an activation of the table's last layer sees in time.

    SAME padding puts up to half a window before the first frame. The exact number depends on
    whether a layer's length is even; both cases are covered.

    Returns:
      the most frames that it sees before its own frame, and the most after it.
    """
    before = after = 0
    jump = 1
    for kind, _, *spec in table:
        (window, *_), (stride, *_) = spec[-2:] if kind != "mixed" else ((3,), (1,))
        pads = [padding.same_pads((length,), (window,), (stride,))[0][0] for length in (100, 101)]
        before += jump * max(pads)
        after += jump * (window - 1 - min(pads))
        jump *= stride
    return before, after
