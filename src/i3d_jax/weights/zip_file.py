"""Finds the members of a zip archive that are not compressed, as views of the file.

The standard library's `zipfile` copies members, and takes a list of any length into memory.
Source: PKWARE's APPNOTE 6.3, sections 4.3.7 to 4.3.16.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAX_MEMBERS = 100_000
END, END_64, LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
END_SIZE, MAX_COMMENT = 22, 65_535
FULL = 0xFFFFFFFF  # A size or offset that is in the entry's extra field.


class ZipError(ValueError):
    """An archive that is damaged, or of an unsupported kind."""


def stored_members(data: memoryview) -> dict[str, memoryview]:
    """The members of an archive by name, without those that are compressed.

    Each is verified by its CRC-32. PyTorch can leave out the CRC-32s; then all are 0.

    Raises:
      ZipError: the archive is damaged, or members overlap.
    """
    try:
        places = sorted(_places(data), key=lambda place: place.start)
    except (struct.error, UnicodeDecodeError) as error:
        raise ZipError(f"a damaged list of members ({error})") from None
    members: dict[str, memoryview] = {}
    verified, end = any(place.crc for place in places), 0
    for place in places:
        # Overlaps are refused: with them a small file could have any number of large members.
        if place.start < end or place.name in members:
            raise ZipError(f"{place.name}: is there twice, or lies in another member")
        end = place.stop
        member = members[place.name] = data[place.stop - place.size : place.stop]
        if verified and not place.compressed and zlib.crc32(member) != place.crc:
            raise ZipError(f"{place.name}: damaged (its CRC-32 is not as recorded)")
    for place in places:
        if place.compressed:
            del members[place.name]
    return members


class _Place(NamedTuple):
    """Where a member lies.

    Attributes:
      name: of the member.
      start: its first byte, that of its header.
      stop: the byte after it.
      size: bytes of its data, which are the last before `stop`.
      crc: CRC-32 of the data.
      compressed: whether the data are compressed or encrypted.
    """

    name: str
    start: int
    stop: int
    size: int
    crc: int
    compressed: bool


def _places(data: memoryview) -> Iterator[_Place]:
    """Yields the entries of the archive's list of members."""
    count, size, position = _directory(data)
    if count > MAX_MEMBERS or position + size > len(data):
        raise ZipError(f"a damaged list of {count:,} members; at most {MAX_MEMBERS:,} are read")
    for _ in range(count):
        entry = struct.unpack("<4s4xHH4xIIIHHH8xI", data[position : position + 46])
        signature, flags, method, crc, stored, full, *lengths, start = entry
        if signature != b"PK\1\2":
            raise ZipError("a damaged list of members")
        name_size, extra_size, comment_size = lengths
        position += 46
        name = str(data[position : position + name_size], "utf-8")
        extra = data[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        full, stored, start = _full_sizes(extra, [full, stored, start])
        header = struct.unpack("<4s22xHH", data[start : start + 30])
        stop = start + 30 + header[1] + header[2] + stored
        if header[0] != b"PK\3\4" or stop > len(data):
            raise ZipError(f"{name}: cut off, or not where the archive has it")
        compressed = bool(flags & 1 or method or stored != full)
        yield _Place(name, start, stop, stored, crc, compressed)


def _full_sizes(extra: memoryview, sizes: list[int]) -> list[int]:
    """Takes what is FULL from the extra field of Zip64."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1:
            rest = iter(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            return [next(rest, each) if each == FULL else each for each in sizes]
        extra = extra[4 + length :]
    return sizes


def _directory(data: memoryview) -> tuple[int, int, int]:
    """The number of members, and the size and place of their list."""
    start = max(0, len(data) - END_SIZE - MAX_COMMENT)
    end = bytes(data[start:]).rfind(END)
    if end < 0:
        raise ZipError("a zip archive that is cut off: it has no list of members")
    end += start
    count, size, position = struct.unpack("<10xHII", data[end : end + 20])
    if FULL in (size, position) or count == 0xFFFF:
        signature, place = struct.unpack("<4s4xQ", data[max(0, end - 20) : max(0, end - 4)])
        if signature != LOCATOR_64:
            raise ZipError("a damaged list of members")
        signature, count, size, position = struct.unpack("<4s28xQQQ", data[place : place + 56])
        if signature != END_64:
            raise ZipError("a damaged list of members")
    return count, size, position
