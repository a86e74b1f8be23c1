"""Our file of weights: one safetensors file with a checksum per tensor and a description.

Its tensors are the leaves of the variables by path, "params/Conv_1a/conv/kernel", float32. Its metadata have one entry, "i3d_jax
weights 3": a JSON object of `info` (the fields of `Info`, as JSON in a string) and `crc32c` (a CRC-32C by path, and that of
`info` under ""). A tensor's is that of "float32 [7, 7, 7, 3, 64]", its type and shape, a line feed and its bytes. In files of
before, "i3d_jax weights 2", it is that of its bytes alone: these have no other types than float32, and the shapes that their model has.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import google_crc32c
import numpy as np
import safetensors
import safetensors.numpy

from i3d_jax.files import atomic_write, open_regular
from i3d_jax.inflate import named_leaves
from i3d_jax.weights.metadata import Info, from_json, parse, to_json
from i3d_jax.weights.published import WeightsError

FORMAT = "i3d_jax weights 3"
LARGEST_HEADER = 32 << 20  # Bytes, of names, shapes and metadata: I3D's has 40,000.
DIMENSIONS = 8  # Of a tensor.


def save(path: str | os.PathLike, variables: Any, info: Info) -> None:
    """Writes variables in our format, atomically; the same bytes for the same input.

    Raises:
      ValueError: the file's name does not end in .safetensors, which it is known by when it is read.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: wanted a name that ends in .safetensors")
    tensors = {
        name: np.ascontiguousarray(leaf, np.float32)
        for name, leaf in sorted(named_leaves(variables).items())
    }
    text = to_json(info)
    crcs = {"": google_crc32c.value(text.encode())} | checksums(tensors)
    # One entry: safetensors writes several in an order of its own.
    metadata = {FORMAT: json.dumps({"info": text, "crc32c": crcs})}
    data = safetensors.numpy.save(tensors, metadata)
    if int.from_bytes(data[:8], "little") > LARGEST_HEADER:
        raise ValueError(f"{path}: its description has {len(text):,} bytes, which is too long")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Info]:
    """The tensors of a file of ours by path, every byte verified, and what is known of them.

    Raises:
      WeightsError: missing, damaged, or another kind of file.
    """
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise WeightsError(f"not a safetensors file, or damaged: its header has {size:,} bytes")
        with safetensors.safe_open(path, "np") as file:
            checksums_of, crcs, text = _metadata(file.metadata() or {})
            tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118
        found = {"": google_crc32c.value(text.encode(errors="backslashreplace"))} | checksums_of(
            tensors
        )
        for name in {**crcs, **found}:
            if crcs.get(name) != found.get(name):
                raise WeightsError(
                    f"{name or 'its description'}: damaged (its CRC-32C is not the one noted)"
                )
        return tensors, from_json(text)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not a safetensors file, or damaged: {error}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _metadata(metadata: Mapping[str, str]) -> tuple[Callable, dict[str, int], str]:
    """How a file's checksums are made, what they are by path, and its description as JSON."""
    version = next((version for version in CHECKSUMS if version in metadata), None)
    if version is None:
        raise WeightsError(
            f"its metadata are {[name[:80] for name in metadata][:4]}, wanted {FORMAT!r}"
        )
    entry = parse(metadata[version], "its entry of metadata")
    crcs, text = entry.get("crc32c"), entry.get("info")
    if not isinstance(crcs, dict) or not isinstance(text, str):
        raise WeightsError("damaged metadata")
    return CHECKSUMS[version], crcs, text


def _tensor(file: safetensors.safe_open, name: str) -> np.ndarray:
    view = file.get_slice(name)
    dtype, shape = view.get_dtype(), view.get_shape()
    # Before it is read: NumPy does not have all types and shapes that a file can.
    if dtype != "F32" or len(shape) > DIMENSIONS or 0 in shape:
        raise WeightsError(
            f"{name}: {dtype} {shape[: DIMENSIONS + 1]}, wanted F32 of at most {DIMENSIONS} dimensions"
        )
    return file.get_tensor(name)


def tensor_crcs(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The CRC-32C of each tensor's bytes."""
    return {name: google_crc32c.value(value.tobytes()) for name, value in tensors.items()}


def checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The CRC-32C of each tensor's type, shape and bytes."""
    heads = {
        name: google_crc32c.value(f"{each.dtype} {list(each.shape)}\n".encode())
        for name, each in tensors.items()
    }
    return {
        name: google_crc32c.extend(heads[name], value.tobytes()) for name, value in tensors.items()
    }


CHECKSUMS = {FORMAT: checksums, "i3d_jax weights 2": tensor_crcs}
