"""3D-ConvNet: the paper's variant of C3D (section 2.2; Tran et al. 2015).

Ten layers with parameters, each followed by batch norm: eight 3x3x3 convolutions and two dense
layers of 4096. Between them are five 2x2x2 max-pools with stride 2. C3D's first pool keeps the
time axis; the paper's variant halves it there too, "to reduce the memory footprint".
"""

import math

import flax.linen as nn
import jax

from i3d_jax.models import layers, streaming
from i3d_jax.models.network import VIDEO, Network
from i3d_jax.models.timing import Timing

THREE, TWO, ONE = (3, 3, 3), (2, 2, 2), (1, 1, 1)
# SAME pools reduce 16x112x112 to 1x4x4, which the paper's 79M parameters imply. C3D pads its
# last pool to the same size.
LAYERS: tuple[tuple, ...] = (
    ("conv", "Conv_1a", 64, THREE, ONE),
    ("pool", "MaxPool_1", TWO, TWO),
    ("conv", "Conv_2a", 128, THREE, ONE),
    ("pool", "MaxPool_2", TWO, TWO),
    ("conv", "Conv_3a", 256, THREE, ONE),
    ("conv", "Conv_3b", 256, THREE, ONE),
    ("pool", "MaxPool_3", TWO, TWO),
    ("conv", "Conv_4a", 512, THREE, ONE),
    ("conv", "Conv_4b", 512, THREE, ONE),
    ("pool", "MaxPool_4", TWO, TWO),
    ("conv", "Conv_5a", 512, THREE, ONE),
    ("conv", "Conv_5b", 512, THREE, ONE),
    ("pool", "MaxPool_5", TWO, TWO),
)
DENSE = (("Dense_6", 4096), ("Dense_7", 4096))
FRAMES = 16


class C3D(Network):
    """3D-ConvNet on windows of 16 frames.

    A longer video is cut into consecutive windows, and their logits are averaged. The dense
    layers fix the size of the crop to the one at initialisation (the paper's is 112). The paper
    does not say where dropout is; here it follows both dense layers, as in C3D.
    """

    @property
    def timing(self) -> Timing:
        return Timing(rgb=FRAMES, flow=FRAMES)

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False, endpoints: bool = False):
        """See `Network`.

        Raises:
          ValueError: wrong rank, or a number of frames that is no multiple of 16.
        """
        self.check_stream(video, "3D-ConvNet", VIDEO, train)
        values = streaming.values_of(video)
        batch, frames = values.shape[:2]
        if frames % FRAMES or not frames:
            raise ValueError(f"3D-ConvNet: got {frames} frames, wanted a multiple of {FRAMES}")
        x = values.reshape(-1, FRAMES, *values.shape[2:]).astype(self.dtype)
        unit = self.unit(self.norm_groups(batch, train))
        ends = self.walk(LAYERS, x, train, unit, 3)
        x = ends["MaxPool_5"]
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for number, (name, features) in enumerate(DENSE):
            if number:
                x = layers.Dropout(self.dropout)(x, self.trains_backbone(train))
            x = ends[name] = unit(self.scaled_channels(features), (), (), name=name)(
                x, self.trains_backbone(train)
            )
        ends["Logits"] = self.classify(x, train)
        ends = {
            name: streaming.steps_of(
                video, end.reshape(batch, frames // FRAMES, *end.shape[1:]), FRAMES
            )
            for name, end in ends.items()
        }
        logits = streaming.mean_over_time(ends["Logits"])
        return (logits, ends) if endpoints else logits
