"""Heat maps of what a network looks at: Grad-CAM at any layer with a grid, for every network.

R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV 2017. The choices for videos are those of SlowFast and mmaction2: each step in
time has weights of its own, the means of the gradient over space.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from i3d_jax.models import CHANNELS, Network


def grad_cam(
    variables: Any,
    video: Any,
    classes: Any = None,
    *,
    network: Network,
    layers: Sequence[str] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns what speaks for a class, by place and time.

    The score is the class's logit, before the softmax. A layer's map is the sum of its channels,
    each times the mean of the score's gradient over space, per step in time; negative values are 0.
    It is pure, and works under `jit` with static `network` and `layers`. At the last layers it
    takes as long as a forward pass, at early ones up to 1.7 times as long (docs/performance.md).

    Args:
      variables: of the network.
      video: clips as the network takes them. A clip's maps do not depend on the others.
      classes: int [B], the class to explain in each clip; None: the likeliest one.
      network: any network of the zoo.
      layers: names of layers, as `endpoints=True` has them; None: `default_layers`.

    Returns:
      the logits f32 [B, K]; and by layer the maps, f32 [B, S, h, w], with S steps in time (1 for
      images). They are as large as the gradient is: for pictures see `normalised`.

    Raises:
      ValueError: a layer has no grid, or there is none of the name.
    """
    grids = _grids(network, variables, video)
    layers = _default(grids) if layers is None else tuple(layers)
    for name in layers:
        if name not in grids:
            raise ValueError(
                f"there is no layer {name!r} with a grid; there are {', '.join(grids)}"
            )
    zeros = {name: jnp.zeros(grids[name].shape, grids[name].dtype) for name in layers}

    def score(added: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, dict]]:
        nested = traverse_util.unflatten_dict(
            {network.endpoint_path(name): x for name, x in added.items()}
        )
        logits, ends = network.apply({**variables, "perturbations": nested}, video, endpoints=True)
        chosen = logits.argmax(-1) if classes is None else jnp.asarray(classes)
        picked = jnp.take_along_axis(logits, chosen[:, None], -1)
        return picked.sum(), (logits, {name: ends[name] for name in layers})

    gradients, (logits, activations) = jax.grad(score, has_aux=True)(zeros)
    return logits, {name: _cam(activations[name], gradients[name]) for name in layers}


def _cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """f32 [B, S, h, w] of arrays [B, ..., h, w, C], whose axes between are steps in time."""
    activations, gradients = (
        x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (activations, gradients)
    )
    weights = gradients.mean((-3, -2), keepdims=True)
    maps = jax.nn.relu((weights * activations).sum(-1))
    steps = math.prod(maps.shape[1:-2])
    return maps.reshape(maps.shape[0], steps, *maps.shape[-2:])


def default_layers(network: Network, variables: Any, video: Any) -> tuple[str, ...]:
    """The layers that `grad_cam` explains by: the last one that is no pool; of each stream its own.

    Args:
      network: any network of the zoo.
      variables: of the network, or their shapes.
      video: clips as the network takes them, or their shapes.

    Returns:
      ("Mixed_5c",) for I3D, ("rgb/Mixed_5c", "flow/Mixed_5c") for networks of two streams.
    """
    return _default(_grids(network, variables, video))


def _grids(network: Network, variables: Any, video: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of all layers with a grid, in order."""
    _, ends = jax.eval_shape(
        lambda variables, video: network.apply(variables, video, endpoints=True), variables, video
    )
    # Logits of images, of videos, and features of videos have fewer axes.
    return {name: end for name, end in ends.items() if end.ndim >= 4 and "AvgPool" not in name}


def _default(grids: Mapping[str, Any]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for name in grids:
        stream, _, layer = name.rpartition("/")
        if "pool" not in layer.lower():
            found[stream] = name
    streams = tuple(found[stream] for stream in CHANNELS if stream in found)
    return streams or (found[""],)


def stream_of(layer: str, streams: Sequence[str]) -> str:
    """The stream that a layer sees.

    Args:
      layer: its name.
      streams: of the network, in order; the first one stands for layers behind both.
    """
    stream, _, _ = layer.rpartition("/")
    return stream or streams[0]


def normalised(maps: jax.Array) -> jax.Array:
    """Scales the maps [B, S, h, w] of each clip to [0, 1]; maps that are equal everywhere are 0."""
    low = maps.min((1, 2, 3), keepdims=True)
    span = maps.max((1, 2, 3), keepdims=True) - low
    return (maps - low) / jnp.where(span > 0, span, 1)


def upsampled(maps: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """Interpolates maps to all frames and pixels, trilinear with half-pixel centres.

    Args:
      maps: f32 [B, S, h, w].
      size: (T, H, W).

    Returns:
      f32 [B, T, H, W].
    """
    return jax.image.resize(maps, (maps.shape[0], *size), "linear", antialias=False)
