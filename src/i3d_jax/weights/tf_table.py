"""Reads the tables and protocol buffers of TensorFlow checkpoints.

A table has LevelDB's format. Blocks contain key-value pairs, and keys share prefixes. Each block is
followed by its type and a masked CRC-32C. A footer of 48 bytes gives the place of the index block.
Source: tensorflow/core/lib/io/table_format.txt.
"""

import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48
TRAILER_SIZE = 5  # Of a block: its type and its CRC-32C.
# TensorFlow writes every 16th key of a block in full, so keys are at most 16 times as long as it.
RESTART_INTERVAL = 16
MAX_VARINT = 10  # Bytes of the longest varint, which has 64 bits.
# What reading a file of another kind may raise.
PARSE_ERRORS = (ValueError, IndexError, KeyError, TypeError, struct.error)


def read_table(table: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the key-value pairs of a whole file; a check covers every byte of it.

    Values are views of the file.

    Raises:
      PARSE_ERRORS: the file is truncated, damaged or no table.
    """
    footer = table[-FOOTER_SIZE:]
    if len(footer) < FOOTER_SIZE or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("it does not end as a table")
    position, handles = 0, []
    for _ in range(2):
        offset, position = read_varint(footer, position)
        size, position = read_varint(footer, position)
        handles.append((offset, size))
    if any(footer[position:-8]):
        raise ValueError("its footer has stray bytes")
    meta, index = handles
    blocks = [_parse_handle(value) for _, value in _read_block(table, *index)]
    # The blocks must lie end to end: no checksum would cover a byte between them.
    position = 0
    for offset, size in [*blocks, meta, index]:
        if offset != position:
            raise ValueError(f"a block starts at byte {offset}, wanted {position}")
        position = offset + size + TRAILER_SIZE
    if position + FOOTER_SIZE != len(table):
        raise ValueError(f"it has {len(table)} bytes, wanted {position + FOOTER_SIZE}")
    for _ in _read_block(table, *meta):
        pass
    for handle in blocks:
        yield from _read_block(table, *handle)


def _read_block(table: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the key-value pairs of one block after verifying its CRC-32C.

    Keys that share prefixes can be far longer than their block, and fill the memory. Blocks with
    longer keys than TensorFlow writes are refused.
    """
    end = offset + size + TRAILER_SIZE
    if end > len(table):
        raise ValueError(f"a block ends at byte {end} of {len(table)}")
    block, kind = table[offset : offset + size], table[offset + size]
    (masked,) = struct.unpack("<I", table[end - 4 : end])
    if google_crc32c.value(bytes(table[offset : end - 4])) != unmask_crc(masked):
        raise ValueError(f"the block at byte {offset} does not match its CRC-32C")
    if kind != 0:
        raise ValueError(f"the block at byte {offset} is compressed, which is not supported")
    (restarts,) = struct.unpack("<I", block[-4:])
    position, limit = 0, size - 4 - 4 * restarts
    key, total = b"", 0
    while position < limit:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        total += min(shared, len(key)) + unshared
        if total > RESTART_INTERVAL * size:
            raise ValueError(
                f"the block at byte {offset} has {size} bytes, but keys of {total} and more"
            )
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + length]
        position += length


def _parse_handle(value: memoryview) -> tuple[int, int]:
    offset, position = read_varint(value, 0)
    return offset, read_varint(value, position)[0]


def parse_fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Yields (field number, value) of a protocol buffer's varints, fixed32s and bytes."""
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        if tag & 7 == 0:
            value, position = read_varint(message, position)
        elif tag & 7 == 2:
            length, position = read_varint(message, position)
            value, position = message[position : position + length], position + length
        elif tag & 7 == 5:
            (value,), position = struct.unpack("<I", message[position : position + 4]), position + 4
        else:
            raise ValueError(f"wire type {tag & 7} in a protocol buffer")
        yield tag >> 3, value


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Reads the number at a position; returns it and the position after it.

    Raises:
      ValueError: it is not less than 2^64.
    """
    value = shift = 0
    for at in range(position, position + MAX_VARINT):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            # A flipped bit in the footer, which has no CRC, can leave a needless byte.
            if byte == 0 and shift > 7:
                raise ValueError("a number has a byte too many")
            if value >= 2**64:
                break
            return value, at + 1
    raise ValueError("a number has more than 64 bits")


def unmask_crc(masked: int) -> int:
    """Recovers a CRC-32C from the masked form in which TensorFlow stores it."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
