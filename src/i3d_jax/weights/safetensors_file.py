"""This project's format of weights: a safetensors file with checksums and a description.

Tensors are float32, named by their path in the variables: "params/Conv_1a/conv/kernel". The file's
metadata have one entry, "i3d_jax weights 3". Its value is a JSON object of two fields. `info` has
the fields of `Info`, as JSON in a string. `crc32c` has a CRC-32C per path, and that of `info`
under "". The CRC-32C of a tensor covers "float32 [7, 7, 7, 3, 64]" (its type and shape), a line
feed and its bytes. In older files, "i3d_jax weights 2", it covers the bytes only; all of their
tensors are float32, and their model determines the shapes.
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
from i3d_jax.weights.metadata import Info, from_json, parse_json_object, to_json
from i3d_jax.weights.published import WeightsError

FORMAT = "i3d_jax weights 3"
MAX_HEADER = 32 << 20  # Bytes of names, shapes and metadata; I3D has 40,000.
MAX_DIMENSIONS = 8  # Of a tensor.


def save(path: str | os.PathLike, variables: Any, info: Info) -> None:
    """Writes variables to a file, atomically. Equal input gives equal bytes.

    Args:
      path: a name that ends in .safetensors.
      variables: a pytree of arrays.
      info: their description.

    Raises:
      ValueError: `path` does not end in .safetensors, by which readers recognise the format.
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
    # A single entry, since safetensors writes several in an arbitrary order.
    metadata = {FORMAT: json.dumps({"info": text, "crc32c": crcs})}
    data = safetensors.numpy.save(tensors, metadata)
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise ValueError(f"{path}: its description has {len(text):,} bytes, which is too long")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Info]:
    """Reads a file of this project and verifies every byte.

    Returns:
      the tensors by path, and their description.

    Raises:
      WeightsError: the file is missing, damaged or of another kind.
    """
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise WeightsError(f"not a safetensors file, or damaged: its header has {size:,} bytes")
        with safetensors.safe_open(path, "np") as file:
            checksums_of, crcs, text = _read_metadata(file.metadata() or {})
            tensors = {name: _read_tensor(file, name) for name in file.keys()}  # noqa: SIM118
        found = {"": google_crc32c.value(text.encode(errors="backslashreplace"))} | checksums_of(
            tensors
        )
        for name in {**crcs, **found}:
            if crcs.get(name) != found.get(name):
                raise WeightsError(
                    f"{name or 'its description'}: damaged (its CRC-32C is not as recorded)"
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


def _read_metadata(metadata: Mapping[str, str]) -> tuple[Callable, dict[str, int], str]:
    """Returns the function that makes checksums, the checksums by path, and `info` as JSON."""
    version = next((version for version in CHECKSUMS if version in metadata), None)
    if version is None:
        raise WeightsError(
            f"its metadata are {[name[:80] for name in metadata][:4]}, wanted {FORMAT!r}"
        )
    entry = parse_json_object(metadata[version], "its entry of metadata")
    crcs, text = entry.get("crc32c"), entry.get("info")
    if not isinstance(crcs, dict) or not isinstance(text, str):
        raise WeightsError("damaged metadata")
    return CHECKSUMS[version], crcs, text


def _read_tensor(file: safetensors.safe_open, name: str) -> np.ndarray:
    view = file.get_slice(name)
    dtype, shape = view.get_dtype(), view.get_shape()
    # Checked before reading: NumPy lacks some of the types and shapes that a file may have.
    if dtype != "F32" or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise WeightsError(
            f"{name}: {dtype} {shape[: MAX_DIMENSIONS + 1]}, "
            f"wanted F32 of at most {MAX_DIMENSIONS} dimensions"
        )
    return file.get_tensor(name)


def tensor_crcs(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The CRC-32C of each tensor's bytes, as in files of version 2."""
    return {name: google_crc32c.value(value.tobytes()) for name, value in tensors.items()}


def checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The CRC-32C of each tensor's type, shape and bytes, as in files of version 3."""
    heads = {
        name: google_crc32c.value(f"{each.dtype} {list(each.shape)}\n".encode())
        for name, each in tensors.items()
    }
    return {
        name: google_crc32c.extend(heads[name], value.tobytes()) for name, value in tensors.items()
    }


CHECKSUMS = {FORMAT: checksums, "i3d_jax weights 2": tensor_crcs}
