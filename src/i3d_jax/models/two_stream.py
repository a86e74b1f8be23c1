"""Networks of two streams, RGB and flow (paper, sections 2.3 and 2.4).

They are Two-Stream, 3D-Fused Two-Stream and Two-Stream I3D. Each stream is an Inception. In 2-D,
each step in time has one RGB frame and a snippet of ten flow frames, stacked as 20 channels. In
3-D (`dims=3`), both streams are videos.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from i3d_jax.models import convolution, streaming
from i3d_jax.models.inception import Inception
from i3d_jax.models.network import Network
from i3d_jax.models.timing import Timing


class Streams(Network):
    """Base class of the networks of two streams.

    Attributes:
      dims: dimensions of both streams: 2, or 3 for inflated ones.
      snippet: flow frames per RGB frame in 2-D; the channels are u and v of each in turn.
      time_padding: as in `Inception`, in 3-D.
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
        """Applies both Inceptions; returns their endpoints, such as "rgb/Conv_1a"."""
        self.check_streams(video, type(self).__name__, train)
        rgb, flow = video["rgb"], video["flow"]
        if self.dims == 2:
            stacked = stack_snippets(streaming.values_of(flow), self.snippet)
            flow = streaming.steps_of(flow, stacked, self.snippet)
        frames, snippets = (streaming.values_of(x).shape[1] for x in (rgb, flow))
        if frames != snippets:
            of_flow = self.snippet if self.dims == 2 else 1
            raise ValueError(
                f"{type(self).__name__}: got {frames} RGB frames and "
                f"{snippets * of_flow} of flow, wanted {of_flow} of flow to each"
            )
        ends = {}
        for name, frames in (("rgb", rgb), ("flow", flow)):
            options = self.shared_attributes() | {
                "dims": self.dims,
                "time_padding": self.time_padding,
            }
            _, its_ends = Inception(num_classes, **options, name=name)(
                frames, train, endpoints=True
            )
            ends |= {f"{name}/{layer}": end for layer, end in its_ends.items()}
        return ends


class TwoStream(Streams):
    """Two-Stream (section 2.3; Simonyan & Zisserman 2014) and Two-Stream I3D (2.4, `dims=3`).

    Two-Stream is trained end to end on the average of the two streams' logits. At test the
    logits of a video's snippets are averaged too. The streams of Two-Stream I3D are trained
    separately, each as the model "i3d", and their logits are added, as in the release. The
    endpoints "rgb/Logits" and "flow/Logits" are those of the streams.

    Attributes:
      combine: how to combine the streams' logits: "average" or "sum".
    """

    combine: str = "average"

    @nn.compact
    def __call__(self, video: dict[str, jax.Array], train: bool = False, endpoints: bool = False):
        """See `Network`."""
        if self.combine not in ("average", "sum"):
            raise ValueError(f"combine is {self.combine!r}, wanted 'average' or 'sum'")
        ends = self.streams(video, train, self.num_classes)
        share = 2 if self.combine == "average" else 1
        ends["Logits"] = streaming.per_step(
            lambda rgb, flow: (rgb + flow) / share, ends["rgb/Logits"], ends["flow/Logits"]
        )
        logits = streaming.mean_over_time(ends["Logits"])
        return (logits, ends) if endpoints else logits


class FusedTwoStream(Streams):
    """3D-Fused Two-Stream (section 2.3; Feichtenhofer et al. 2016), fused before the last pool.

    Both streams give 7x7 grids per snippet (5 in the paper's training clips), 1024 + 1024
    channels together. A 3x3x3 convolution of 512 channels, a 3x3x3 max-pool, an average and the
    last layer follow.

    The paper leaves some choices open. Here the convolution has batch norm and ReLU, as all
    others. The pool has stride 1, so that each snippet has a prediction and a test video of 25
    snippets can use the same network. New layers start with the initialiser of the release: a
    normal of variance 1 / fan-in, truncated at two standard deviations (the paper: "Gaussian
    noise"). Features are averaged over space and logits over time, which equals averaging over
    both at once.
    """

    @property
    def timing(self) -> Timing:
        return super().timing._replace(lost=0)

    @nn.compact
    def __call__(self, video: dict[str, jax.Array], train: bool = False, endpoints: bool = False):
        """See `Network`."""
        ends = self.streams(video, train, None)
        x = streaming.concatenate(self, "waiting", [ends["rgb/Mixed_5c"], ends["flow/Mixed_5c"]])
        three, one = (3, 3, 3), (1, 1, 1)
        unit = self.unit(self.norm_groups(streaming.values_of(x).shape[0], train))
        x = unit(self.scaled_channels(512), three, one, name="Conv_6a")(
            x, self.trains_backbone(train)
        )
        x = ends["Conv_6a"] = self.endpoint("Conv_6a", x)
        x = streaming.max_pool(self, "MaxPool_6a", x, three, one)
        x = ends["MaxPool_6a"] = self.endpoint("MaxPool_6a", x)
        x = ends["AvgPool"] = streaming.per_step(
            lambda x: convolution.at_least_float32(x).mean((2, 3)), x
        )
        ends["Logits"] = streaming.per_step(lambda x: self.classify(x.astype(self.dtype), train), x)
        logits = streaming.mean_over_time(ends["Logits"])
        return (logits, ends) if endpoints else logits


def stack_snippets(flow: jax.Array, snippet: int) -> jax.Array:
    """Stacks each snippet's flow frames as channels.

    Args:
      flow: [B, S * snippet, H, W, 2].
      snippet: frames in a snippet.

    Returns:
      [B, S, H, W, 2 * snippet]: u and v of the snippet's first frame, of its second, ...

    Raises:
      ValueError: the number of frames is no multiple of `snippet`.
    """
    batch, frames, height, width, channels = flow.shape
    if frames % snippet or not frames:
        raise ValueError(f"two streams: got {frames} flow frames, wanted a multiple of {snippet}")
    flow = flow.reshape(batch, frames // snippet, snippet, height, width, channels)
    return jnp.moveaxis(flow, 2, 4).reshape(
        batch, frames // snippet, height, width, snippet * channels
    )
