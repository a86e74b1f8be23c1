"""The model zoo: the paper's networks as Flax modules, made by name with `build`.

Here are the networks, each a table of layers (`inception.py`, `c3d.py`, ...), the layers
themselves with one implementation per hardware platform (`layers.py`, `convolution.py`,
`normalization.py`, `pooling.py`, `platforms.py`), the transfer of weights from one network to
another (`transfer.py`), and how predictions map to time in long videos (`timing.py`).
"""

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
from i3d_jax.models.platforms import small_rounding_errors as small_rounding_errors
from i3d_jax.models.resnet import ResNet
from i3d_jax.models.two_stream import FusedTwoStream, TwoStream


class Model(NamedTuple):
    """An entry of MODELS: a network and the paper's settings for it.

    A clip is a dictionary: stream -> (frames, step between them at 25 frames per second).

    Attributes:
      network: class of the network.
      attributes: arguments of the class that are fixed by the model's name.
      train: the paper's training clip (table 1).
      test: the paper's test clip (table 1).
      backbones: names of the submodules that are image networks, or such inflated; "" is the
        network itself.
      crop: height and width of the input in pixels.
    """

    network: type[Network]
    attributes: dict[str, Any]
    train: dict[str, tuple[int, int]]
    test: dict[str, tuple[int, int]]
    backbones: tuple[str, ...] = ("",)
    crop: int = 224


STREAMS = tuple(CHANNELS)
SNIPPETS = {"rgb": (25, 10), "flow": (250, 1)}
MODELS = {
    "inception": Model(Inception, {"dims": 2}, {"rgb": (1, 1)}, {"rgb": (250, 1)}),
    "convnet_lstm": Model(ConvNetLSTM, {}, {"rgb": (25, 5)}, {"rgb": (50, 5)}, ("inception",)),
    "c3d": Model(C3D, {}, {"rgb": (16, 1)}, {"rgb": (240, 1)}, (), 112),
    "two_stream": Model(TwoStream, {}, {"rgb": (1, 10), "flow": (10, 1)}, SNIPPETS, STREAMS),
    "fused_two_stream": Model(
        FusedTwoStream, {}, {"rgb": (5, 10), "flow": (50, 1)}, SNIPPETS, STREAMS
    ),
    "i3d": Model(Inception, {"dims": 3}, {"rgb": (64, 1)}, {"rgb": (250, 1)}),
    "two_stream_i3d": Model(
        TwoStream,
        {"dims": 3, "combine": "sum"},
        {"rgb": (64, 1), "flow": (64, 1)},
        {"rgb": (250, 1), "flow": (250, 1)},
        STREAMS,
    ),
    "resnet50": Model(ResNet, {"dims": 2}, {"rgb": (1, 1)}, {"rgb": (250, 1)}),
    "i3d_r50": Model(ResNet, {"dims": 3}, {"rgb": (8, 8)}, {"rgb": (32, 8)}),
}


FLOAT_DTYPES = "float64", "float32", "bfloat16", "float16"
# Allowed values of the options that all networks have.
OPTION_CHECKS = {
    "num_classes": (lambda value: operator.index(value) > 0, "a positive whole number"),
    "norm_group_size": (
        lambda value: value is None or operator.index(value) > 0,
        "a positive whole number",
    ),
    "width": (lambda value: 0 < value < math.inf, "a positive number"),
    "dropout": (lambda value: 0 <= value < 1, "a number from 0 to less than 1"),
    "norm_decay": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "norm_epsilon": (lambda value: 0 < value <= 1, "a positive number up to 1"),
    "dtype": (
        lambda value: value is not None and jnp.dtype(value).name in FLOAT_DTYPES,
        f"one of {', '.join(FLOAT_DTYPES)}",
    ),
}


def build(name: str, **options) -> Network:
    """Returns the model called `name`, ready for `init` and `apply`.

    Args:
      name: one of MODELS.
      **options: attributes of the network (see `Network`); `num_classes` is required.

    Raises:
      ValueError: unknown name or option, or a value that the option does not allow.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    model = MODELS[name]
    try:
        network = model.network(**model.attributes, **options)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from None
    for option, (fits, wanted) in OPTION_CHECKS.items():
        value = getattr(network, option)
        # Without a last layer an Inception returns features.
        if option == "num_classes" and value is None and model.network is Inception:
            continue
        with contextlib.suppress(TypeError):  # The value has a wrong type.
            if fits(value):
                continue
        raise ValueError(f"model {name!r}: {option} is {value!r}, wanted {wanted}")
    check_dtype(network.dtype, f"model {name!r}")
    return network


def input_shapes(clips: Mapping[str, tuple[int, int]], crop: int, batch: int = 1) -> Any:
    """Returns the shapes of a network's input.

    Args:
      clips: a clip as in `Model.train`: stream -> (frames, step between them).
      crop: height and width in pixels.
      batch: number of clips.

    Returns:
      the shape of an array [B, T, H, W, C]; for two streams, a dictionary of two such shapes.
    """
    shapes = {
        stream: jax.ShapeDtypeStruct((batch, frames, crop, crop, CHANNELS[stream]), jnp.float32)
        for stream, (frames, _) in clips.items()
    }
    return as_network_input(shapes)


def as_network_input(streams: dict[str, Any]) -> Any:
    """Returns the only stream's value; for two streams, the dictionary as it is."""
    return streams if len(streams) > 1 else next(iter(streams.values()))
