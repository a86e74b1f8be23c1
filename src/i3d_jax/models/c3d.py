"""3D-ConvNet: the paper's variant of C3D (section 2.2; Tran et al. 2015).

Eight 3x3x3 convolutions, five max-pools, two dense layers of 4096; batch norm after every one of the ten. All pools are
2x2x2 with that stride: the paper gives the first one C3D's other pools' temporal stride 2 "to reduce the memory footprint".
"""

import math

import flax.linen as nn
import jax

from i3d_jax.models import layers
from i3d_jax.models.network import VIDEO, Network
from i3d_jax.models.timing import Timing

THREE, TWO, ONE = (3, 3, 3), (2, 2, 2), (1, 1, 1)
# SAME pools leave 1x4x4 of 16x112x112, which the paper's 79M parameters imply (C3D pads its last one to the same).
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
    """3D-ConvNet on windows of 16 frames; a longer video's windows lie end to end and their logits are averaged.

    Its dense layers take crops of one size only, the one it was made with (the paper's: 112). What the paper leaves
    open: dropout follows both dense layers, as in C3D.
    """

    @property
    def timing(self) -> Timing:
        return Timing(rgb=FRAMES, flow=FRAMES)

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False, endpoints: bool = False):
        """See `Network`.

        Raises:
          ValueError: wrong rank, or frames that are no whole windows.
        """
        self.check_stream(video, "3D-ConvNet", VIDEO, train)
        batch, frames = video.shape[:2]
        if frames % FRAMES or not frames:
            raise ValueError(f"3D-ConvNet: got {frames} frames, wanted a multiple of {FRAMES}")
        x = video.reshape(-1, FRAMES, *video.shape[2:]).astype(self.dtype)
        unit = self.unit(self.norm_groups(batch, train))
        ends = self.walk(LAYERS, x, train, unit, 3)
        x = ends["MaxPool_5"]
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for number, (name, features) in enumerate(DENSE):
            if number:
                x = layers.Dropout(self.dropout)(x, self.trunk(train))
            x = ends[name] = unit(self.scaled(features), (), (), name=name)(x, self.trunk(train))
        ends["Logits"] = self.classify(x, train)
        ends = {
            name: end.reshape(batch, frames // FRAMES, *end.shape[1:]) for name, end in ends.items()
        }
        logits = ends["Logits"].mean(1)
        return (logits, ends) if endpoints else logits
