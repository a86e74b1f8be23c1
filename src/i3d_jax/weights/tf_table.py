"""TensorFlow's tables and protocol buffers, as far as checkpoints are made of them.

A table is LevelDB's: blocks of key-value pairs, keys sharing prefixes, each block followed by its type and a masked
CRC-32C; a footer of 48 bytes says where the block of blocks is. Source: tensorflow/core/lib/io/table_format.txt.
"""

import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # Of a block: its type, its CRC.
# TensorFlow writes every 16th key of a block whole, so that keys are at most so many times as long as their table.
RESTART_INTERVAL = 16
VARINT = 10  # Bytes of the longest: 64 bits.
DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
)  # What reading anything else may raise.


def read_table(table: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the key-value pairs of a whole file, the values as views of it: every byte of it is covered by a check.

    Raises:
      DAMAGE: it is truncated, damaged, or no table.
    """
    footer = table[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("it does not end as one")
    position, handles = 0, []
    for _ in range(2):
        offset, position = varint(footer, position)
        size, position = varint(footer, position)
        handles.append((offset, size))
    if any(footer[position:-8]):
        raise ValueError("its footer is not clean")
    meta, index = handles
    blocks = [_handle(value) for _, value in _block(table, *index)]
    # The blocks lie end to end; a byte between them would be one that nothing vouches for.
    position = 0
    for offset, size in [*blocks, meta, index]:
        if offset != position:
            raise ValueError(f"a block starts at byte {offset}, wanted {position}")
        position = offset + size + TRAILER
    if position + FOOTER != len(table):
        raise ValueError(f"it has {len(table)} bytes, wanted {position + FOOTER}")
    for _ in _block(table, *meta):
        pass
    for handle in blocks:
        yield from _block(table, *handle)


def _block(table: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the key-value pairs of one block, its CRC verified.

    Keys that share prefixes can be far longer than their block: more than TensorFlow writes are refused, for they could
    fill the memory.
    """
    end = offset + size + TRAILER
    if end > len(table):
        raise ValueError(f"a block ends at byte {end} of {len(table)}")
    block, kind = table[offset : offset + size], table[offset + size]
    (masked,) = struct.unpack("<I", table[end - 4 : end])
    if google_crc32c.value(bytes(table[offset : end - 4])) != unmask(masked):
        raise ValueError(f"the block at byte {offset} does not match its CRC-32C")
    if kind != 0:
        raise ValueError(f"the block at byte {offset} is compressed, which is not supported")
    (restarts,) = struct.unpack("<I", block[-4:])
    position, limit = 0, size - 4 - 4 * restarts
    key, total = b"", 0
    while position < limit:
        shared, position = varint(block, position)
        unshared, position = varint(block, position)
        length, position = varint(block, position)
        total += min(shared, len(key)) + unshared
        if total > RESTART_INTERVAL * size:
            raise ValueError(
                f"the block at byte {offset} has {size} bytes, but keys of {total} and more"
            )
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + length]
        position += length


def _handle(value: memoryview) -> tuple[int, int]:
    offset, position = varint(value, 0)
    return offset, varint(value, position)[0]


def fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """The (number, value) pairs of a protocol buffer: varints, fixed32 and length-delimited values."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        if tag & 7 == 0:
            value, position = varint(message, position)
        elif tag & 7 == 2:
            length, position = varint(message, position)
            value, position = message[position : position + length], position + length
        elif tag & 7 == 5:
            (value,), position = struct.unpack("<I", message[position : position + 4]), position + 4
        else:
            raise ValueError(f"wire type {tag & 7} in a protocol buffer")
        yield tag >> 3, value


def varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The number at a position, less than 2^64, and the position after it."""
    value = shift = 0
    for at in range(position, position + VARINT):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if byte == 0 and shift > 7:
                raise ValueError(
                    "a number has a byte too many"
                )  # A flipped bit, in a footer that has no CRC.
            if value >= 2**64:
                break
            return value, at + 1
    raise ValueError("a number has more than 64 bits")


def unmask(masked: int) -> int:
    """The CRC-32C that TensorFlow stores masked."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
