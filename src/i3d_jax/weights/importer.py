"""What importers of other projects' weights share.

An importer knows the names that a project gives the tensors of one network. It is a row of
`importers.IMPORTERS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from i3d_jax import models
from i3d_jax.weights.metadata import Info
from i3d_jax.weights.published import WeightsError

MAX_NAMED = 20  # Tensors that one message names.


class Imported(NamedTuple):
    """Weights of another project as variables of our network.

    Attributes:
      info: their description.
      variables: float32 arrays by path ("params/Conv_1a/conv/kernel").
      notes: sentences on what was changed, and what the other project computes otherwise.
      doubts: sentences on what the names of tensors leave open. They are left out for files that
        are known by their bytes (`importers.KNOWN_FILES`).
    """

    info: Info
    variables: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class Importer(NamedTuple):
    """How the weights of one network are read from another project's tensors.

    Attributes:
      origin: the project and network, in words.
      matches: whether a file with these names of tensors is such a file. It may lack some.
      read: gives the weights from all tensors of the file. It raises a WeightsError that names
        every tensor that is missing, not wanted or of a wrong shape.
    """

    origin: str
    matches: Callable[[set[str]], bool]
    read: Callable[[Mapping[str, np.ndarray]], Imported]


def check_tensors(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Raises one WeightsError if tensors have other names or shapes than wanted, or are no floats.

    Args:
      tensors: the tensors, by their names in the file.
      wanted: the shapes wanted, by these names.
      what: the network's name for the message.
    """
    found = {
        name: tuple(value.shape) if value.dtype.kind == "f" else f"{value.dtype}{value.shape}"
        for name, value in tensors.items()
    }
    # Those that are missing first, then those that are not wanted, then wrong shapes.
    names = [
        *(name for name in wanted if name not in found),
        *(name for name in found if name not in wanted),
        *(name for name in wanted if name in found and found[name] != wanted[name]),
    ]
    wrong = [
        f"{name}: found {found.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in names
    ]
    if wrong:
        more = f"; and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise WeightsError(f"does not fit {what}: " + "; ".join(wrong[:MAX_NAMED]) + more)


def kernel_of(weight: np.ndarray) -> np.ndarray:
    """A convolution's or dense layer's weight [O, I, ...] as our kernel f32[..., I, O]."""
    return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)), np.float32)


def with_epsilon(info: Info, epsilon: float) -> Info:
    """The description with another epsilon of batch norm; the model's own needs no option."""
    options = {name: value for name, value in info.options.items() if name != "norm_epsilon"}
    if epsilon != models.MODELS[info.model].network.norm_epsilon:
        options["norm_epsilon"] = epsilon
    return dataclasses.replace(info, options=options)


def fold_scale(
    kernel: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes the scale of a batch norm into the kernel before it and into its mean.

    With g the scale, the kernel becomes g * kernel and the mean g * mean. Variance and offset stay:
    (g * x - g * mean) / sqrt(var + epsilon) = g * (x - mean) / sqrt(var + epsilon), for any g.

    Args:
      kernel: [..., I, O].
      mean: [O].
      scale: [O].

    Returns:
      the new kernel and mean.
    """
    return kernel * np.asarray(scale, np.float32), mean * np.asarray(scale, np.float32)
