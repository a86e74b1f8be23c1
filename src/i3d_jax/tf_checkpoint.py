"""Reader of TensorFlow V2 checkpoints (`NAME.index` + `NAME.data-00000-of-00001`) that needs no TensorFlow.

The index is a LevelDB-style table: blocks of key-value pairs, keys sharing prefixes, each block followed by its type and
a masked CRC-32C; a footer of 48 bytes says where the block of blocks is. The values are protocol buffers
(`BundleHeaderProto` under the empty key, then `BundleEntryProto` by tensor name) that give each tensor's type, shape and
place in the data file, and its masked CRC-32C. Sources: tensorflow/core/lib/io/table_format.txt and
tensorflow/core/protobuf/tensor_bundle.proto.
"""

import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # Of a block: its type, its CRC.
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 6: np.int8, 9: np.int64, 10: np.bool_, 19: np.float16}


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or no checkpoint; the message names the file and, where it can, the tensor."""


class Entry(NamedTuple):
    """Where one tensor lies."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    size: int
    crc32c: int  # Of the tensor's bytes, unmasked.


class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name; read-only arrays, mapped into memory and verified when first asked for."""

    def __init__(self, path: str | os.PathLike):
        """Opens a checkpoint by its prefix, "model.ckpt", or by either file, and verifies all but the tensors.

        Raises:
          CheckpointError: a file is missing, truncated or damaged.
        """
        prefix = os.fspath(path).removesuffix(".index").removesuffix(".data-00000-of-00001")
        self.entries = read_index(prefix + ".index")
        self.data_path = pathlib.Path(prefix + ".data-00000-of-00001")
        wanted = max((entry.offset + entry.size for entry in self.entries.values()), default=0)
        try:
            self._data = np.memmap(self.data_path, mode="r") if wanted else np.empty(0, np.uint8)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.data_path}: cannot be read: {error}") from None
        if len(self._data) != wanted:
            cut = [name for name, entry in self.entries.items() if entry.offset + entry.size > len(self._data)]
            lost = f"; {len(cut)} tensors are cut off, the first is {cut[0]}" if cut else ""
            raise CheckpointError(f"{self.data_path}: {len(self._data)} bytes, wanted {wanted}{lost}")
        self._verified: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        data = self._data[entry.offset : entry.offset + entry.size]
        if name not in self._verified:
            if google_crc32c.value(data.tobytes()) != entry.crc32c:
                raise CheckpointError(f"{self.data_path}: {name}: damaged (its CRC-32C is not the index's)")
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
        table = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _parse(table)
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint index, or damaged: {error}") from None


def _parse(table: bytes) -> dict[str, Entry]:
    footer = table[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("it does not end as one")
    position, handles = 0, []
    for _ in range(2):
        offset, position = _varint(footer, position)
        size, position = _varint(footer, position)
        handles.append((offset, size))
    if any(footer[position:-8]):
        raise ValueError("its footer is not clean")
    meta, index = handles
    blocks = [(name, _handle(value)) for name, value in _block(table, *index)]
    # The blocks lie end to end; a byte between them would be one that nothing vouches for.
    position = 0
    for offset, size in [handle for _, handle in blocks] + [meta, index]:
        if offset != position:
            raise ValueError(f"a block starts at byte {offset}, wanted {position}")
        position = offset + size + TRAILER
    if position + FOOTER != len(table):
        raise ValueError(f"it has {len(table)} bytes, wanted {position + FOOTER}")
    _block(table, *meta)
    pairs = [pair for _, handle in blocks for pair in _block(table, *handle)]
    if not pairs or pairs[0][0] != b"":
        raise ValueError("it has no header")
    header = dict(_fields(pairs[0][1]))
    if header.get(1, 1) != 1 or header.get(2, 0) != 0:
        raise ValueError(f"{header.get(1)} data files, or big-endian; only one little-endian file is supported")
    entries = {name.decode(): _entry(name.decode(), value) for name, value in pairs[1:]}
    return dict(sorted(entries.items(), key=lambda item: item[1].offset))


def _block(table: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    """The key-value pairs of one block, its CRC verified."""
    end = offset + size + TRAILER
    if end > len(table):
        raise ValueError(f"a block ends at byte {end} of {len(table)}")
    block, kind = table[offset : offset + size], table[offset + size]
    (masked,) = struct.unpack("<I", table[end - 4 : end])
    if google_crc32c.value(table[offset : end - 4]) != _unmask(masked):
        raise ValueError(f"the block at byte {offset} does not match its CRC-32C")
    if kind != 0:
        raise ValueError(f"the block at byte {offset} is compressed, which is not supported")
    (restarts,) = struct.unpack("<I", block[-4:])
    position, limit = 0, size - 4 - 4 * restarts
    pairs, key = [], b""
    while position < limit:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        pairs.append((key, block[position : position + length]))
        position += length
    return pairs


def _entry(name: str, message: bytes) -> Entry:
    fields = dict(_fields(message))
    if fields.get(3, 0) or 7 in fields:
        raise ValueError(f"{name}: lies in another file or in slices, which is not supported")
    if fields.get(1) not in DTYPES:
        raise ValueError(f"{name}: TensorFlow's data type {fields.get(1)} is not supported")
    dtype = np.dtype(DTYPES[fields[1]])
    shape = tuple(dict(_fields(dim)).get(1, 0) for number, dim in _fields(fields.get(2, b"")) if number == 2)
    entry = Entry(dtype, shape, fields.get(4, 0), fields.get(5, 0), _unmask(fields.get(6, 0)))
    if int(np.prod(shape)) * dtype.itemsize != entry.size:
        raise ValueError(f"{name}: {entry.size} bytes for {dtype} of shape {shape}")
    return entry


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) pairs of a protocol buffer: varints, fixed32 and length-delimited values."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value, position = _varint(message, position)
        elif tag & 7 == 2:
            length, position = _varint(message, position)
            value, position = message[position : position + length], position + length
        elif tag & 7 == 5:
            (value,), position = struct.unpack("<I", message[position : position + 4]), position + 4
        else:
            raise ValueError(f"wire type {tag & 7} in a protocol buffer")
        yield tag >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            if byte == 0 and shift > 7:
                raise ValueError("a number has a byte too many")  # A flipped bit, in a footer that has no CRC.
            return value, position


def _handle(value: bytes) -> tuple[int, int]:
    offset, position = _varint(value, 0)
    return offset, _varint(value, position)[0]


def _unmask(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
