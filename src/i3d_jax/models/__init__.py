"""The model zoo: `build(name, ...)` makes a network, a Flax module of pure functions over pytrees."""

import flax.linen as nn

from i3d_jax.models.inception import Inception

# The class, and what the name says of its attributes.
MODELS = {
    "i3d": (Inception, {"dims": 3}),
    "inception": (Inception, {"dims": 2}),
}


def build(name: str, **options) -> nn.Module:
    """Returns the model called `name`, one of MODELS; `options` are its attributes, `num_classes` among them.

    Raises:
      ValueError: no such model, or an option that it does not take.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    network, attributes = MODELS[name]
    try:
        return network(**attributes, **options)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from None
