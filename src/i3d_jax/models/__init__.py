"""The model zoo: `build(name, ...)` makes a network, a Flax module of pure functions over pytrees."""

import contextlib
import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from i3d_jax.models.c3d import C3D
from i3d_jax.models.convnet_lstm import ConvNetLSTM
from i3d_jax.models.inception import Inception
from i3d_jax.models.network import CHANNELS, Network, check_dtype
from i3d_jax.models.platforms import compiler_options as compiler_options
from i3d_jax.models.platforms import forms_of as forms_of
from i3d_jax.models.two_stream import FusedTwoStream, TwoStream


class Model(NamedTuple):
    """What a name stands for.

    Attributes:
      network: its class, and `attributes` what the name says of them.
      train, test: by stream, the frames of the paper's clips (table 1) and the step between them at 25 per second.
      trunks: where in its variables there are those of an Inception.
      crop: pixels.
    """

    network: type[Network]
    attributes: dict[str, Any]
    train: dict[str, tuple[int, int]]
    test: dict[str, tuple[int, int]]
    trunks: tuple[str, ...] = ("",)
    crop: int = 224


BOTH = tuple(CHANNELS)
SNIPPETS = {"rgb": (25, 10), "flow": (250, 1)}
MODELS = {
    "inception": Model(Inception, {"dims": 2}, {"rgb": (1, 1)}, {"rgb": (250, 1)}),
    "convnet_lstm": Model(ConvNetLSTM, {}, {"rgb": (25, 5)}, {"rgb": (50, 5)}, ("inception",)),
    "c3d": Model(C3D, {}, {"rgb": (16, 1)}, {"rgb": (240, 1)}, (), 112),
    "two_stream": Model(TwoStream, {}, {"rgb": (1, 10), "flow": (10, 1)}, SNIPPETS, BOTH),
    "fused_two_stream": Model(
        FusedTwoStream, {}, {"rgb": (5, 10), "flow": (50, 1)}, SNIPPETS, BOTH
    ),
    "i3d": Model(Inception, {"dims": 3}, {"rgb": (64, 1)}, {"rgb": (250, 1)}),
    "two_stream_i3d": Model(
        TwoStream,
        {"dims": 3, "combine": "sum"},
        {"rgb": (64, 1), "flow": (64, 1)},
        {"rgb": (250, 1), "flow": (250, 1)},
        BOTH,
    ),
}


FLOATING = "float64", "float32", "bfloat16", "float16"
# What options of all networks may be.
VALUES = {
    "num_classes": (lambda value: operator.index(value) > 0, "a positive whole number"),
    "norm_group_size": (lambda value: operator.index(value) > 0, "a positive whole number"),
    "width": (lambda value: 0 < value < math.inf, "a positive number"),
    "dropout": (lambda value: 0 <= value < 1, "a number from 0 to less than 1"),
    "norm_decay": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "dtype": (
        lambda value: value is not None and jnp.dtype(value).name in FLOATING,
        f"one of {', '.join(FLOATING)}",
    ),
}


def build(name: str, **options) -> Network:
    """Returns the model called `name`, one of MODELS; `options` are its attributes, `num_classes` among them.

    Raises:
      ValueError: no such model, or an option that it does not take, or not with that value.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    model = MODELS[name]
    try:
        network = model.network(**model.attributes, **options)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from None
    for option, (fits, wanted) in VALUES.items():
        value = getattr(network, option)
        if (
            option == "num_classes" and value is None and model.network is Inception
        ):  # It then gives features.
            continue
        if option == "norm_group_size" and value is None:
            continue
        with contextlib.suppress(TypeError):  # Of another type altogether.
            if fits(value):
                continue
        raise ValueError(f"model {name!r}: {option} is {value!r}, wanted {wanted}")
    check_dtype(network.dtype, f"model {name!r}")
    return network


def input_shapes(clips: Mapping[str, tuple[int, int]], crop: int, batch: int = 1) -> Any:
    """The shapes of a network's input: an array [B, T, H, W, C] or, for two streams, a dictionary of them.

    Args:
      clips: by stream, (frames, step between them), as in `Model.train`.
      crop: height and width.
    """
    shapes = {
        stream: jax.ShapeDtypeStruct((batch, frames, crop, crop, CHANNELS[stream]), jnp.float32)
        for stream, (frames, _) in clips.items()
    }
    return as_network_input(shapes)


def as_network_input(streams: dict[str, Any]) -> Any:
    """What a network takes: the one stream's value, or the dictionary of several."""
    return streams if len(streams) > 1 else next(iter(streams.values()))
