"""The networks of two streams, RGB and flow: Two-Stream, 3D-Fused Two-Stream, Two-Stream I3D (paper, sections 2.3 and 2.4).

Both streams are Inceptions: 2-D ones, which see one RGB frame and a snippet of ten flow frames, stacked as 20 channels, per step
in time; or inflated ones (`dims=3`), which see both as videos.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import convolution, pooling
from i3d_jax.models.inception import LAYERS, MIN_FRAMES, STEP, Inception, reach
from i3d_jax.models.network import Network
from i3d_jax.models.timing import Timing


class Streams(Network):
    """What the networks of two streams share.

    Attributes:
      dims: of both streams: 2, or 3 for the inflated ones.
      snippet: flow frames to one RGB frame, if the streams are 2-D: u and v of each in turn are its channels.
      time_padding: of the inflated streams, see `Inception`.
    """

    dims: int = 2
    snippet: int = 10
    time_padding: str = "zeros"

    @property
    def timing(self) -> Timing:
        if self.dims == 2:
            return Timing(flow=self.snippet)
        return Inception(None, dims=3).timing

    def streams(self, video: dict[str, jax.Array], train: bool, num_classes: int | None) -> dict:
        """The endpoints of both Inceptions, "rgb/Conv_1a" for one."""
        self.check_streams(video, type(self).__name__, train)
        rgb, flow = video["rgb"], video["flow"]
        if self.dims == 2:
            flow = stack_snippets(flow, self.snippet)
        if rgb.shape[1] != flow.shape[1]:
            frames = self.snippet if self.dims == 2 else 1
            raise ValueError(
                f"{type(self).__name__}: got {rgb.shape[1]} RGB frames and {video['flow'].shape[1]} of flow, "
                f"wanted {frames} of flow to each"
            )
        ends = {}
        for name, frames in (("rgb", rgb), ("flow", flow)):
            options = self.shared() | {"dims": self.dims, "time_padding": self.time_padding}
            _, its_ends = Inception(num_classes, **options, name=name)(
                frames, train, endpoints=True
            )
            ends |= {f"{name}/{layer}": end for layer, end in its_ends.items()}
        return ends


class TwoStream(Streams):
    """Two-Stream (section 2.3; Simonyan & Zisserman 2014) and, with `dims=3`, Two-Stream I3D (2.4).

    The 2-D one is trained end to end through the averaging of the two streams' predictions: of their logits here, which
    is also what the snippets of a test video are averaged in. Two-Stream I3D's streams are trained separately, each as
    the model "i3d", and their logits are added (release). The endpoints "rgb/Logits" and "flow/Logits" are the streams'
    own.

    Attributes:
      combine: "average" or "sum", of the streams' logits.
    """

    combine: str = "average"

    @nn.compact
    def __call__(self, video: dict[str, jax.Array], train: bool = False, endpoints: bool = False):
        """See `Network`."""
        if self.combine not in ("average", "sum"):
            raise ValueError(f"combine is {self.combine!r}, wanted 'average' or 'sum'")
        ends = self.streams(video, train, self.num_classes)
        total = ends["rgb/Logits"] + ends["flow/Logits"]
        ends["Logits"] = total / 2 if self.combine == "average" else total
        logits = ends["Logits"].mean(1)
        return (logits, ends) if endpoints else logits


class FusedTwoStream(Streams):
    """3D-Fused Two-Stream (section 2.3; Feichtenhofer et al. 2016): the streams meet before their last average pool.

    Their 7x7 grids of the snippets (5 in the paper's training clips), 1024 + 1024 channels, go through a 3x3x3
    convolution of 512, a 3x3x3 max-pool and, averaged, the last layer. What the paper leaves open: the convolution is
    followed by batch norm and ReLU, as every other one; the pool has stride 1, so that every snippet keeps a prediction
    and a test video of 25 is the same network, convolutional in time; the "Gaussian noise" that new layers start with is
    truncated at two standard deviations and has variance 1 / fan-in, as the release's initialiser. The average is
    over space per step, and over steps of the logits, which is the same as over both at once.
    """

    @property
    def timing(self) -> Timing:
        # The convolution and the pool look one step further each.
        if self.dims == 2:
            return super().timing._replace(before=2, after=3)
        before, after = reach(LAYERS)
        far = 2 * STEP
        return super().timing._replace(
            before=before + far, after=after + 1 + far, lost=0, least=MIN_FRAMES
        )

    @nn.compact
    def __call__(self, video: dict[str, jax.Array], train: bool = False, endpoints: bool = False):
        """See `Network`."""
        ends = self.streams(video, train, None)
        x = jnp.concatenate([ends["rgb/Mixed_5c"], ends["flow/Mixed_5c"]], -1)
        three, one = (3, 3, 3), (1, 1, 1)
        unit = self.unit(self.norm_groups(x.shape[0], train))
        x = ends["Conv_6a"] = unit(self.scaled(512), three, one, name="Conv_6a")(
            x, self.trunk(train)
        )
        x = ends["MaxPool_6a"] = pooling.max_pool(x, three, one)
        x = ends["AvgPool"] = convolution.at_least_float32(x).mean((2, 3))
        ends["Logits"] = self.classify(x.astype(self.dtype), train)
        logits = ends["Logits"].mean(1)
        return (logits, ends) if endpoints else logits


def stack_snippets(flow: jax.Array, snippet: int) -> jax.Array:
    """[B, S * snippet, H, W, 2] -> [B, S, H, W, 2 * snippet]: u and v of the snippet's first frame, of its second, ...

    Raises:
      ValueError: the frames are no whole snippets.
    """
    batch, frames, height, width, channels = flow.shape
    if frames % snippet or not frames:
        raise ValueError(f"two streams: got {frames} flow frames, wanted a multiple of {snippet}")
    flow = flow.reshape(batch, frames // snippet, snippet, height, width, channels)
    return jnp.moveaxis(flow, 2, 4).reshape(
        batch, frames // snippet, height, width, snippet * channels
    )
