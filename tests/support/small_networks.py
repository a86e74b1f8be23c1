"""Small networks of every kind, and clips of noise for them."""

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import models

# Options and clips of small networks.
SMALL = {
    "inception": ({}, {"rgb": (3, 1)}),
    "convnet_lstm": ({"norm_steps": 3}, {"rgb": (4, 1)}),
    "c3d": ({}, {"rgb": (16, 1)}),
    "two_stream": ({"snippet": 2}, {"rgb": (3, 1), "flow": (6, 1)}),
    "fused_two_stream": ({"snippet": 2}, {"rgb": (3, 1), "flow": (6, 1)}),
    "i3d": ({}, {"rgb": (16, 1)}),
    "two_stream_i3d": ({}, {"rgb": (16, 1), "flow": (16, 1)}),
    "resnet50": ({"depth": 14}, {"rgb": (3, 1)}),
    "i3d_r50": ({"depth": 14}, {"rgb": (8, 1)}),
}


def small(name, **options):
    """The small network of a name."""
    return models.build(name, num_classes=7, width=0.1, **SMALL[name][0] | options)


def clip(streams, batch=2, size=32, seed=0):
    """A batch of noise in [-1, 1]."""
    rng = np.random.default_rng(seed)
    shapes = models.input_shapes(streams, size, batch)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.uniform(-1, 1, shape.shape), jnp.float32), shapes
    )
