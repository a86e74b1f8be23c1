"""Readers of TensorFlow's checkpoints that need no TensorFlow.

V2 (`NAME.index` + `NAME.data-00000-of-00001`): the index is a table (see tf_table) of protocol buffers, `BundleHeaderProto`
under the empty key, then `BundleEntryProto` by tensor name, that give each tensor's type, shape and place in the data file,
and its masked CRC-32C. Source: tensorflow/core/protobuf/tensor_bundle.proto.

V1 (one file, as of 2016): a table of `SavedTensorSlices`. The one under the empty key lists the tensors, their types and
shapes; each other has the values of a tensor, covered by the CRC-32C of its block. Source:
tensorflow/core/util/saved_tensor_slice.proto.
"""

import math
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import google_crc32c
import numpy as np

from i3d_jax.files import open_regular
from i3d_jax.weights.tf_table import DAMAGE, fields, read_table, unmask, varint

# By TensorFlow's data types; and the fields of TensorProto that hold their values, of those that V1 is read with.
DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    19: np.float16,
}
VALUES = {1: 5, 2: 6, 3: 7, 9: 10}

LARGEST_INDEX = 16 << 20  # Bytes; the release's have 10,000.
DIMENSIONS = 32  # Of a tensor; NumPy takes 64.
LARGEST_TENSOR = 1 << 48  # Elements.


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or no checkpoint; the message names the file and, where it can, the tensor."""


class Entry(NamedTuple):
    """Where one tensor lies."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    size: int
    crc32c: int  # Of the tensor's bytes, unmasked.


def open_checkpoint(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """The tensors of a checkpoint of either format by name, as read-only arrays.

    Args:
      path: a V1 file, which has no index beside it; or what `Checkpoint` takes.

    Raises:
      CheckpointError: a file is missing, truncated or damaged.
    """
    name = os.fspath(path)
    alone = os.path.exists(name) and not os.path.isdir(name) and not os.path.exists(name + ".index")
    # A file of a V2 checkpoint is never taken for V1's: the error is then about the one that is missing.
    return (
        CheckpointV1(name)
        if alone and not name.endswith((".index", ".data-00000-of-00001"))
        else Checkpoint(name)
    )


class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a V2 checkpoint by name; read-only arrays, mapped into memory and verified when first asked for."""

    def __init__(self, path: str | os.PathLike):
        """Opens a checkpoint by its prefix, "model.ckpt", or by either file, and verifies all but the tensors.

        Raises:
          CheckpointError: a file is missing, truncated or damaged.
        """
        prefix = os.fspath(path).removesuffix(".index").removesuffix(".data-00000-of-00001")
        self.entries = read_index(prefix + ".index")
        self.data_path = pathlib.Path(prefix + ".data-00000-of-00001")
        wanted = max((entry.offset + entry.size for entry in self.entries.values()), default=0)
        self._data = _mapped(self.data_path) if wanted else np.empty(0, np.uint8)
        if len(self._data) != wanted:
            cut = [
                name
                for name, entry in self.entries.items()
                if entry.offset + entry.size > len(self._data)
            ]
            lost = f"; {len(cut)} tensors are cut off, the first is {cut[0]}" if cut else ""
            raise CheckpointError(
                f"{self.data_path}: {len(self._data)} bytes, wanted {wanted}{lost}"
            )
        self._verified: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        data = self._data[entry.offset : entry.offset + entry.size]
        if name not in self._verified:
            if google_crc32c.value(data.tobytes()) != entry.crc32c:
                raise CheckpointError(
                    f"{self.data_path}: {name}: damaged (its CRC-32C is not the index's)"
                )
            self._verified.add(name)
        return data.view(entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_index(path: str | os.PathLike) -> dict[str, Entry]:
    """Reads and verifies an index file: every byte of it is covered by a check.

    Raises:
      CheckpointError: missing, truncated, damaged, or of a kind that is not supported.
    """
    try:
        with open_regular(path) as file:
            table = file.read(LARGEST_INDEX + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        if len(table) > LARGEST_INDEX:
            raise ValueError(f"it has more than {LARGEST_INDEX:,} bytes")
        return _index(memoryview(table))
    except DAMAGE as error:
        raise CheckpointError(f"{path}: not a checkpoint index, or damaged: {error}") from None


def _mapped(path: str | os.PathLike) -> np.memmap:
    try:
        with open_regular(path) as file:
            return np.memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def _index(table: memoryview) -> dict[str, Entry]:
    pairs = read_table(table)
    key, value = next(pairs, (None, b""))
    if key != b"":
        raise ValueError("it has no header")
    header = dict(fields(value))
    if header.get(1, 1) != 1 or header.get(2, 0) != 0:
        raise ValueError(
            "more than one data file, or big-endian; only one little-endian file is supported"
        )
    entries = {name.decode(): _entry(name.decode(), value) for name, value in pairs}
    entries = dict(sorted(entries.items(), key=lambda item: item[1].offset))
    end = 0
    for name, entry in entries.items():
        # Else a small file could have any number of large tensors.
        if entry.offset < end:
            raise ValueError(f"{name}: starts at byte {entry.offset}, within the tensor before it")
        end = entry.offset + entry.size
    return entries


def _entry(name: str, message: memoryview) -> Entry:
    entry = dict(fields(message))
    if entry.get(3, 0) or 7 in entry:
        raise ValueError(f"{name}: lies in another file or in slices, which is not supported")
    if entry.get(1) not in DTYPES:
        raise ValueError(f"{name}: TensorFlow's data type {entry.get(1)} is not supported")
    dtype, shape = np.dtype(DTYPES[entry[1]]), _shape(name, entry.get(2, b""))
    offset, size = entry.get(4, 0), entry.get(5, 0)
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name}: {size} bytes for {dtype} of shape {shape}")
    return Entry(dtype, shape, operator.index(offset), size, unmask(entry.get(6, 0)))


def _shape(name: str, message: bytes | memoryview) -> tuple[int, ...]:
    shape, size = (), 1
    for number, dimension in fields(message):
        if number == 2:
            shape += (dict(fields(dimension)).get(1, 0),)
            size *= max(1, shape[-1])
            if len(shape) > DIMENSIONS or size > LARGEST_TENSOR:
                raise ValueError(
                    f"{name}: more than {DIMENSIONS} dimensions or {LARGEST_TENSOR:,} elements"
                )
    return shape


class Packed(NamedTuple):
    """One tensor of a V1 checkpoint: floats as they are, integers as varints."""

    dtype: np.dtype
    shape: tuple[int, ...]
    values: bytes | memoryview


class CheckpointV1(Mapping[str, np.ndarray]):
    """The tensors of a V1 checkpoint by name; read-only arrays, decoded when asked for from the file mapped into memory."""

    def __init__(self, path: str | os.PathLike):
        """Opens a checkpoint and verifies every byte of it.

        Raises:
          CheckpointError: the file is missing, truncated, damaged, or of a kind that is not supported.
        """
        table = _mapped(path).data
        try:
            self.entries = _saved_tensors(table)
        except DAMAGE as error:
            raise CheckpointError(
                f"{path}: not a TensorFlow checkpoint, or damaged: {error}"
            ) from None

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, values = self.entries[name]
        if dtype.kind == "f":
            flat = np.frombuffer(
                values, dtype
            ).copy()  # The values lie at any byte: a copy is aligned.
        else:
            flat = np.fromiter(_varints(values), np.uint64).view(np.int64).astype(dtype)
        flat.flags.writeable = False
        return flat.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _saved_tensors(table: memoryview) -> dict[str, Packed]:
    pairs = read_table(table)
    key, value = next(pairs, (None, b""))
    meta = dict(fields(value)).get(1) if key == b"" else None
    if not isinstance(meta, memoryview):
        raise ValueError("it has no list of tensors")  # noqa: TRY004
    listed = dict(_listed(tensor) for number, tensor in fields(meta) if number == 1)
    saved = {}
    for _, value in pairs:
        data = dict(fields(dict(fields(value))[2]))
        saved[str(data[1], "utf-8")] = dict(fields(data.get(3, b"")))
    for name in sorted(listed.keys() ^ saved.keys()):
        raise ValueError(
            f"{name}: it is {'listed, but not there' if name in listed else 'there, but not listed'}"
        )
    return {name: _packed(name, kind, shape, saved[name]) for name, (kind, shape) in listed.items()}


def _listed(message: memoryview) -> tuple[str, tuple[int, tuple[int, ...]]]:
    """Name, data type and shape of a SavedSliceMeta."""
    pairs = list(fields(message))
    tensor, slices = dict(pairs), [value for number, value in pairs if number == 4]
    name = str(tensor[1], "utf-8")
    if len(slices) != 1:
        raise ValueError(f"{name}: lies in {len(slices)} slices, which is not supported")
    return name, (tensor.get(3, 0), _shape(name, tensor.get(2, b"")))


def _packed(name: str, kind: int, shape: tuple[int, ...], tensor: dict) -> Packed:
    if kind not in VALUES:
        raise ValueError(f"{name}: TensorFlow's data type {kind} is not supported")
    dtype, values = np.dtype(DTYPES[kind]), tensor.get(VALUES[kind], b"")
    size = len(values) / dtype.itemsize if dtype.kind == "f" else sum(1 for _ in _varints(values))
    if math.prod(shape) != size:
        raise ValueError(f"{name}: {size:g} values for {dtype} of shape {shape}")
    return Packed(dtype, shape, values)


def _varints(values: bytes | memoryview) -> Iterator[int]:
    position = 0
    while position < len(values):
        value, position = varint(values, position)
        yield value
