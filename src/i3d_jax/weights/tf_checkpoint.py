"""Reads TensorFlow checkpoints without TensorFlow.

V2 (`NAME.index` + `NAME.data-00000-of-00001`): the index is a table (see `tf_table.py`) of protocol
buffers. The empty key has a `BundleHeaderProto`. Each tensor's name has a `BundleEntryProto` with
the type, shape, place in the data file and masked CRC-32C. Source:
tensorflow/core/protobuf/tensor_bundle.proto.

V1 (one file, as of 2016): a table of `SavedTensorSlices`. The empty key lists the tensors, their
types and shapes. Every other key has the values of one tensor, covered by its block's CRC-32C.
Source: tensorflow/core/util/saved_tensor_slice.proto.
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
from i3d_jax.weights.tf_table import PARSE_ERRORS, parse_fields, read_table, read_varint, unmask_crc

# By number of TensorFlow's data type. VALUE_FIELDS has the field of TensorProto with a type's
# values, for the types that are supported in V1.
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
VALUE_FIELDS = {1: 5, 2: 6, 3: 7, 9: 10}

MAX_INDEX = 16 << 20  # Bytes; the release's index files have 10,000.
MAX_DIMENSIONS = 32  # Of a tensor; NumPy supports 64.
MAX_ELEMENTS = 1 << 48  # Of a tensor.


class CheckpointError(ValueError):
    """A damaged or missing checkpoint; the message names the file and, if known, the tensor."""


class Entry(NamedTuple):
    """Where a tensor lies in the data file.

    Attributes:
      dtype: its type.
      shape: its shape.
      offset: its first byte.
      size: its bytes.
      crc32c: of these bytes, unmasked.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    size: int
    crc32c: int


def open_checkpoint(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Opens a checkpoint of either version; its tensors are read-only arrays, by name.

    Args:
      path: a V1 file, which has no index beside it, or an argument of `Checkpoint`.

    Raises:
      CheckpointError: a file is missing, truncated or damaged.
    """
    name = os.fspath(path)
    alone = os.path.exists(name) and not os.path.isdir(name) and not os.path.exists(name + ".index")
    # One file of a V2 checkpoint is never read as V1, so that the error names the missing file.
    return (
        CheckpointV1(name)
        if alone and not name.endswith((".index", ".data-00000-of-00001"))
        else Checkpoint(name)
    )


class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a V2 checkpoint by name.

    The arrays are read-only and memory-mapped. Each is verified at its first use.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a checkpoint and verifies everything but the tensors.

        Args:
          path: its prefix ("model.ckpt"), or either file.

        Raises:
          CheckpointError: a file is missing, truncated or damaged.
        """
        prefix = os.fspath(path).removesuffix(".index").removesuffix(".data-00000-of-00001")
        self.entries = read_index(prefix + ".index")
        self.data_path = pathlib.Path(prefix + ".data-00000-of-00001")
        wanted = max((entry.offset + entry.size for entry in self.entries.values()), default=0)
        self._data = _memory_map(self.data_path) if wanted else np.empty(0, np.uint8)
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
                    f"{self.data_path}: {name}: damaged (its CRC-32C differs from the index)"
                )
            self._verified.add(name)
        return data.view(entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_index(path: str | os.PathLike) -> dict[str, Entry]:
    """Reads an index file; a checksum or comparison covers every byte of it.

    Raises:
      CheckpointError: the file is missing, truncated, damaged or of an unsupported kind.
    """
    try:
        with open_regular(path) as file:
            table = file.read(MAX_INDEX + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        if len(table) > MAX_INDEX:
            raise ValueError(f"it has more than {MAX_INDEX:,} bytes")
        return _parse_index(memoryview(table))
    except PARSE_ERRORS as error:
        raise CheckpointError(f"{path}: not a checkpoint index, or damaged: {error}") from None


def _memory_map(path: str | os.PathLike) -> np.memmap:
    try:
        with open_regular(path) as file:
            return np.memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def _parse_index(table: memoryview) -> dict[str, Entry]:
    pairs = read_table(table)
    key, value = next(pairs, (None, b""))
    if key != b"":
        raise ValueError("it has no header")
    header = dict(parse_fields(value))
    if header.get(1, 1) != 1 or header.get(2, 0) != 0:
        raise ValueError(
            "more than one data file, or big-endian; only one little-endian file is supported"
        )
    entries = {name.decode(): _parse_entry(name.decode(), value) for name, value in pairs}
    entries = dict(sorted(entries.items(), key=lambda item: item[1].offset))
    end = 0
    for name, entry in entries.items():
        # Overlaps are refused: with them a small file could have any number of large tensors.
        if entry.offset < end:
            raise ValueError(f"{name}: starts at byte {entry.offset}, within the tensor before it")
        end = entry.offset + entry.size
    return entries


def _parse_entry(name: str, message: memoryview) -> Entry:
    entry = dict(parse_fields(message))
    if entry.get(3, 0) or 7 in entry:
        raise ValueError(f"{name}: lies in another file or in slices, which is not supported")
    if entry.get(1) not in DTYPES:
        raise ValueError(f"{name}: TensorFlow's data type {entry.get(1)} is not supported")
    dtype, shape = np.dtype(DTYPES[entry[1]]), _parse_shape(name, entry.get(2, b""))
    offset, size = entry.get(4, 0), entry.get(5, 0)
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name}: {size} bytes for {dtype} of shape {shape}")
    return Entry(dtype, shape, operator.index(offset), size, unmask_crc(entry.get(6, 0)))


def _parse_shape(name: str, message: bytes | memoryview) -> tuple[int, ...]:
    shape, size = (), 1
    for number, dimension in parse_fields(message):
        if number == 2:
            shape += (dict(parse_fields(dimension)).get(1, 0),)
            size *= max(1, shape[-1])
            if len(shape) > MAX_DIMENSIONS or size > MAX_ELEMENTS:
                raise ValueError(
                    f"{name}: more than {MAX_DIMENSIONS} dimensions or {MAX_ELEMENTS:,} elements"
                )
    return shape


class PackedTensor(NamedTuple):
    """A tensor of a V1 checkpoint.

    Attributes:
      dtype: its type.
      shape: its shape.
      values: floats as their bytes, integers as varints.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    values: bytes | memoryview


class CheckpointV1(Mapping[str, np.ndarray]):
    """The tensors of a V1 checkpoint by name.

    The arrays are read-only. They are decoded at use from the memory-mapped file.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a checkpoint and verifies every byte of it.

        Raises:
          CheckpointError: the file is missing, truncated, damaged or of an unsupported kind.
        """
        table = _memory_map(path).data
        try:
            self.entries = _parse_saved_tensors(table)
        except PARSE_ERRORS as error:
            raise CheckpointError(
                f"{path}: not a TensorFlow checkpoint, or damaged: {error}"
            ) from None

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, values = self.entries[name]
        if dtype.kind == "f":
            # Copied, since the values are not aligned.
            flat = np.frombuffer(values, dtype).copy()
        else:
            flat = np.fromiter(_varints(values), np.uint64).view(np.int64).astype(dtype)
        flat.flags.writeable = False
        return flat.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _parse_saved_tensors(table: memoryview) -> dict[str, PackedTensor]:
    pairs = read_table(table)
    key, value = next(pairs, (None, b""))
    meta = dict(parse_fields(value)).get(1) if key == b"" else None
    if not isinstance(meta, memoryview):
        raise ValueError("it has no list of tensors")  # noqa: TRY004
    listed = dict(_parse_slice_meta(tensor) for number, tensor in parse_fields(meta) if number == 1)
    saved = {}
    for _, value in pairs:
        data = dict(parse_fields(dict(parse_fields(value))[2]))
        saved[str(data[1], "utf-8")] = dict(parse_fields(data.get(3, b"")))
    for name in sorted(listed.keys() ^ saved.keys()):
        raise ValueError(
            f"{name}: it is "
            f"{'listed, but not there' if name in listed else 'there, but not listed'}"
        )
    return {
        name: _pack_tensor(name, kind, shape, saved[name]) for name, (kind, shape) in listed.items()
    }


def _parse_slice_meta(message: memoryview) -> tuple[str, tuple[int, tuple[int, ...]]]:
    """The name, data type and shape in a SavedSliceMeta."""
    pairs = list(parse_fields(message))
    tensor, slices = dict(pairs), [value for number, value in pairs if number == 4]
    name = str(tensor[1], "utf-8")
    if len(slices) != 1:
        raise ValueError(f"{name}: lies in {len(slices)} slices, which is not supported")
    return name, (tensor.get(3, 0), _parse_shape(name, tensor.get(2, b"")))


def _pack_tensor(name: str, kind: int, shape: tuple[int, ...], tensor: dict) -> PackedTensor:
    if kind not in VALUE_FIELDS:
        raise ValueError(f"{name}: TensorFlow's data type {kind} is not supported")
    dtype, values = np.dtype(DTYPES[kind]), tensor.get(VALUE_FIELDS[kind], b"")
    size = len(values) / dtype.itemsize if dtype.kind == "f" else sum(1 for _ in _varints(values))
    if math.prod(shape) != size:
        raise ValueError(f"{name}: {size:g} values for {dtype} of shape {shape}")
    return PackedTensor(dtype, shape, values)


def _varints(values: bytes | memoryview) -> Iterator[int]:
    position = 0
    while position < len(values):
        value, position = read_varint(values, position)
        yield value
