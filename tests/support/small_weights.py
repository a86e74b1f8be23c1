"""Variables of a small network, and their description."""

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import models, weights

INFO = weights.Info(
    "i3d", tuple("abcdefg"), {"width": 0.0625}, short_side=40, crop=32, source="a test"
)


def small_variables(seed=0, channels=3):
    """Variables of a tiny I3D, without running it."""
    model = models.build("i3d", num_classes=7, width=0.0625)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 32, 32, channels)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes)
