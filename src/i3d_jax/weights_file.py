"""Our file of weights: one safetensors file with a checksum per tensor and a description.

Its tensors are the leaves of the variables by path, "params/Conv_1a/conv/kernel", float32. Its metadata have one entry, "i3d_jax
weights 2": a JSON object of `info` (the fields of `Info`, as JSON in a string) and `crc32c` (the CRC-32C of each tensor's bytes by
path, and of `info` under "").
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import safetensors
import safetensors.numpy

from i3d_jax.files import replacing
from i3d_jax.inflate import named_leaves
from i3d_jax.published import WeightsError

FORMAT = "i3d_jax weights 2"


@dataclasses.dataclass(frozen=True)
class Info:
    """What it takes to use some weights.

    Attributes:
      model: its name in `models.MODELS`; `options` are its attributes but `num_classes`.
      classes: names of the logits, in their order.
      footprint: what it takes of a video, by stream ("rgb", "flow"): how many frames at most, and the step between
        them at `fps`.
      fps, short_side, crop: of the video it was trained on: frames per second, pixels, pixels.
      source: where the weights come from.
    """

    model: str
    classes: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    footprint: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=lambda: {"rgb": (250, 1)})
    fps: float = 25.0
    short_side: int = 256
    crop: int = 224
    source: str = ""

    def __post_init__(self):
        # JSON has lists, and our file sorted keys: RGB first.
        object.__setattr__(self, "classes", tuple(self.classes))
        footprint = {stream: (frames, stride) for stream, (frames, stride) in sorted(self.footprint.items())[::-1]}
        object.__setattr__(self, "footprint", footprint)

    @property
    def stream(self) -> str:
        """ "rgb", "flow" or "rgb+flow"."""
        return "+".join(self.footprint)


def save(path: str | os.PathLike, variables: Any, info: Info) -> None:
    """Writes variables in our format, atomically; the same bytes for the same input.

    Raises:
      ValueError: the file's name does not end in .safetensors, which it is known by when it is read.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: wanted a name that ends in .safetensors")
    tensors = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in sorted(named_leaves(variables).items())}
    text = json.dumps(dataclasses.asdict(info), sort_keys=True)
    crcs = {"": google_crc32c.value(text.encode())} | tensor_crcs(tensors)
    # One entry: safetensors writes several in an order of its own.
    metadata = {FORMAT: json.dumps({"info": text, "crc32c": crcs})}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Info]:
    """The tensors of a file of ours by path, every byte verified, and what is known of them.

    Raises:
      WeightsError: missing, damaged, or another kind of file.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    except (safetensors.SafetensorError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a safetensors file, or damaged: {error}") from None
    if FORMAT not in metadata:
        raise WeightsError(f"{path}: its metadata are {list(metadata)}, wanted {FORMAT!r}")
    try:
        description = json.loads(metadata[FORMAT])
        crcs, text = description["crc32c"], description["info"]
    except (KeyError, ValueError, TypeError):
        raise WeightsError(f"{path}: damaged metadata") from None
    found = {"": google_crc32c.value(text.encode())} | tensor_crcs(tensors)
    for name in {**crcs, **found}:
        if crcs.get(name) != found.get(name):
            raise WeightsError(f"{path}: {name or 'its description'}: damaged (its CRC-32C is not the one noted)")
    try:
        info = Info(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its description is not this version's: {error}") from None
    head = tensors.get("params/Logits/bias")
    if head is not None and len(head) != len(info.classes):
        raise WeightsError(f"{path}: {len(head)} logits, but names for {len(info.classes)} classes")
    return tensors, info


def tensor_crcs(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The CRC-32C of each tensor's bytes."""
    return {name: google_crc32c.value(value.tobytes()) for name, value in tensors.items()}
