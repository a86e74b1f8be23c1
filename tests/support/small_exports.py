"""Small networks with weights that tell layers apart, as files and as exported networks."""

import pathlib

import jax
import numpy as np

from i3d_jax import models, weights
from support import small_networks
from support.small_weights import INFO

IMAGES = "inception", "resnet50"


def save(folder: pathlib.Path, name: str, stream: str = "rgb", **options) -> str:
    """Saves a small network of random weights and statistics; returns its path.

    Args:
      folder: for the file.
      name: of the model.
      stream: "rgb" or "flow", for networks of one stream.
      **options: of the network.
    """
    own, clips = small_networks.SMALL[name]
    options = {"width": 0.1, **own, **options}
    if stream == "flow":
        clips = {"flow": clips["rgb"]}
    network = models.build(name, num_classes=7, **options)
    shapes = jax.eval_shape(network.init, jax.random.key(0), models.input_shapes(clips, 32))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            fan_in = leaf.size // leaf.shape[-1]
            return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)
        low = {"var": 0.5, "scale": 0.5}.get(kind, -0.3)
        return rng.uniform(low, low + 1, leaf.shape).astype(np.float32)

    footprint = models.MODELS[name].test if len(clips) > 1 else {stream: (250, 1)}
    path = folder / f"{name}.safetensors"
    info = weights.Info(
        name, INFO.classes, options, footprint, short_side=40, crop=32, source="a test"
    )
    weights.save(path, jax.tree_util.tree_map_with_path(draw, shapes), info)
    return str(path)
