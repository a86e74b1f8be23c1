"""Writes TensorFlow checkpoints without TensorFlow."""

import struct

import google_crc32c
import numpy as np

NAMES = "rgb_imagenet", "rgb_scratch", "flow_imagenet", "flow_scratch", "rgb_scratch_kin600"


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, value):
    return (
        varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, bytes)
        else varint(number << 3) + varint(value)
    )


def masked_crc(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def block(pairs):
    """A block of the table: keys share prefixes, one restart point, type 0, masked CRC."""
    out, last = b"", b""
    for key, value in pairs:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b),
            min(len(key), len(last)),
        )
        out += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        last = key
    return ended(out)


def ended(out):
    out += struct.pack("<II", 0, 1)
    return out + b"\0" + masked_crc(out + b"\0")


def table(pairs):
    """A table of two blocks."""
    half = len(pairs) // 2
    out, handles = b"", []
    for part in (pairs[:half], pairs[half:]):
        out, offset = out + block(part), len(out)
        handles.append((part[-1][0] + b"\0", varint(offset) + varint(len(out) - offset - 5)))
    footer = b""
    for index in (block([]), block(handles)):
        footer += varint(len(out)) + varint(len(index) - 5)
        out += index
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def shape_of(value):
    return b"".join(field(2, field(1, size)) for size in np.shape(value))


def write_checkpoint(prefix, tensors):
    """Writes the V2 checkpoint of float32 tensors, from TensorFlow's published formats."""
    pairs, data = [(b"", field(1, 1))], b""
    for name, value in sorted(tensors.items()):
        raw = np.ascontiguousarray(value, "<f4").tobytes()
        entry = field(1, 1) + field(2, shape_of(value)) + field(4, len(data)) + field(5, len(raw))
        pairs.append((name.encode(), entry + varint(6 << 3 | 5) + masked_crc(raw)))
        data += raw
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".index").write_bytes(table(pairs))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


def v1_pairs(tensors, slices=1):
    """The key-value pairs of a V1 checkpoint, from TensorFlow's published format."""
    listed, pairs = b"", []
    for name, value in sorted(tensors.items()):
        value = np.asarray(value)
        kind, number = {"float32": (1, 5), "float64": (2, 6), "int32": (3, 7), "int64": (9, 10)}[
            str(value.dtype)
        ]
        whole = field(1, b"") * value.ndim
        listed += field(
            1,
            field(1, name.encode())
            + field(2, shape_of(value))
            + field(3, kind)
            + field(4, whole) * slices,
        )
        packed = (
            [varint(int(v) % 2**64) for v in value.flat]
            if value.dtype.kind == "i"
            else [value.tobytes()]
        )
        saved = (
            field(1, name.encode()) + field(2, whole) + field(3, field(number, b"".join(packed)))
        )
        rank = bytes([1, value.ndim] if value.ndim else [0])
        pairs.append(
            (b"\0" + name.encode() + b"\0\1" + rank + b"\x80\x7f" * value.ndim, field(2, saved))
        )
    return [(b"", field(1, listed + field(2, field(1, 1)))), *pairs]


def with_a_bit_flipped(good):
    """Yields copies of some bytes, one for each bit, in which that bit is flipped."""
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            yield bytes(bad)


def entry(shape, offset=0, size=4):
    sizes = b"".join(field(2, field(1, length)) for length in shape)
    return (
        field(1, 1)
        + field(2, sizes)
        + field(4, offset)
        + field(5, size)
        + varint(6 << 3 | 5)
        + masked_crc(b"")
    )
