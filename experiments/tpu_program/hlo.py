"""Reads the optimised HLO of a compiled TPU program: its buffers, collectives and donated state."""

import collections
import math
import re
from typing import Any, NamedTuple

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
CONTROL = "while", "call", "conditional"
FREE = "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


class Array(NamedTuple):
    """An array of a program, as the compiler lays it out.

    Attributes:
      text: type, shape and layout, as in the program.
      size: bytes without padding.
      padded: bytes with the padding of the tiles.
      fast: whether it lies in the chip's own memory, not in HBM.
    """

    text: str
    size: int
    padded: int
    fast: bool


class Instruction(NamedTuple):
    """An instruction of a program.

    Attributes:
      name: its name.
      kind: its opcode; for a fusion, the most telling opcode of those fused.
      arrays: its results.
      operands: names of the instructions whose results it takes.
      origin: the JAX operation that it comes from.
      loop: "" outside of loops, otherwise the computation that is repeated.
    """

    name: str
    kind: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    origin: str
    loop: str


def arrays_of(shapes: str) -> tuple[Array, ...]:
    """The arrays in a shape as HLO prints it, such as "(f32[2,3]{1,0:T(8,128)}, s32[])"."""
    return tuple(_array(*found) for found in _ARRAY.findall(shapes) if found[0] in BITS)


def _array(kind: str, dims: str, layout: str) -> Array:
    sizes = [int(n) for n in dims.split(",") if n]
    order = [int(n) for n in layout.partition(":")[0].split(",") if n] or [*range(len(sizes))][::-1]
    minor = [sizes[axis] for axis in order]  # From the innermost axis to the outermost.
    padded = list(minor)
    if tile := re.search(r"T\(([\d,]+)\)", layout):
        for place, block in enumerate(reversed([int(n) for n in tile[1].split(",")])):
            if place < len(padded):
                padded[place] = -(-padded[place] // block) * block
    bits = BITS[kind]
    text = f"{kind}[{dims}]" + (f"{{{layout}}}" if layout else "")
    size = [-(-math.prod(each) * bits // 8) for each in (minor, padded)]
    return Array(text, *size, re.search(r"S\([1-9]\)", layout) is not None)


def instructions(text: str) -> list[Instruction]:
    """The instructions of a program that run one after another: the entry's, and loops' bodies.

    Args:
      text: of the optimised HLO.
    """
    bodies = _computations(text)
    entry = next(name for name, (is_entry, _) in bodies.items() if is_entry)
    found, waiting = [], [(entry, "")]
    while waiting:
        name, loop = waiting.pop()
        for line in bodies[name][1]:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            of, shapes, opcode, rest = match.groups()
            called = re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", rest)
            if opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", rest)
                assert body is not None, line
                waiting.append((body[1], body[1]))
            elif opcode in ("call", "conditional"):
                waiting += [(each, loop) for each in called]
            origin = re.search(r'op_name="([^"]*)"', rest)
            found.append(
                Instruction(
                    of,
                    _kind([line for each in called for line in bodies[each][1]])
                    if opcode == "fusion"
                    else opcode,
                    arrays_of(shapes),
                    tuple(re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])),
                    origin[1] if origin else "",
                    loop,
                )
            )
    return found


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """The lines of each computation, and whether it is the entry."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = []
            found[match[2]] = bool(match[1]), lines
        elif line.startswith(" "):
            lines.append(line)
    return found


TELLING = (
    "convolution",
    "select-and-scatter",
    "reduce-window",
    "scatter",
    "gather",
    "sort",
    "reduce",
)
COPIES = {"copy", "transpose", "convert", "reshape"}
SLICES = {"pad", "slice", "concatenate", "dynamic-slice", "dynamic-update-slice", "broadcast"}


def _kind(fused: list[str]) -> str:
    """What a fusion is: the most telling opcode of those fused."""
    opcodes = {match[3] for line in fused if (match := _INSTRUCTION.match(line))} - {*FREE}
    for kind in TELLING:
        if kind in opcodes:
            return kind
    if opcodes <= COPIES:
        return "copy"
    return "pad, slice" if opcodes <= COPIES | SLICES else "elementwise"


def collectives(text: str) -> list[tuple[str, int]]:
    """The collectives of a program: for each its kind, and the bytes of what it sends.

    Args:
      text: of the optimised HLO.
    """
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        kind = match[3].removesuffix("-start")
        if kind in KINDS:
            # An asynchronous start returns its operands, too.
            arrays = arrays_of(match[2])
            if match[3].endswith("-start") and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]
            found.append((kind, sum(array.size for array in arrays)))
    return found


def donated(text: str) -> int:
    """How many outputs of a program take the place of an argument."""
    header = text.partition("\n")[0]
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry_computation", header)
    return 0 if aliases is None else aliases[1].count("-alias")


def bytes_moved(each: Instruction, results: dict[str, tuple[Array, ...]]) -> int:
    """Bytes of HBM that an instruction reads and writes, with padding.

    An operand counts as a whole, also where only a slice of it is read.

    Args:
      each: the instruction.
      results: of all instructions, by name.
    """
    if each.kind in FREE + CONTROL or each.kind.endswith("-done"):
        return 0
    operands = [array for name in each.operands for array in results.get(name, ())]
    written = list(each.arrays)
    if "dynamic-update-slice" in each.name:
        # It writes into its largest operand, and only what the others give.
        operands = written = sorted(operands, key=lambda array: array.padded)[:-1]
    if each.kind.endswith("-start"):
        operands = []  # They are among its results.
    return sum(array.padded for array in (*operands, *written) if not array.fast)


def traffic(found: list[Instruction]) -> dict[str, int]:
    """Bytes of HBM that a program's instructions read and write, by kind; loops count once.

    Args:
      found: of `instructions`.
    """
    results, moved = {each.name: each.arrays for each in found}, collections.Counter()
    for each in found:
        moved[each.kind] += bytes_moved(each, results)
    return {kind: size for kind, size in moved.most_common() if size}


def largest(found: list[Instruction], number: int) -> list[dict[str, Any]]:
    """The largest arrays that a program writes to HBM.

    Args:
      found: of `instructions`.
      number: of arrays.

    Returns:
      for each its "bytes" with padding, its "array" (type, shape, layout), the "kind" of the
      instruction, and its "origin" in JAX.
    """
    arrays = [
        {"bytes": array.padded, "array": array.text, "kind": each.kind, "origin": each.origin}
        for each in found
        for array in each.arrays
        if each.kind not in FREE + CONTROL and not array.fast
    ]
    return sorted(arrays, key=lambda array: -array["bytes"])[:number]


def memory_error(message: str) -> str:
    """What the compiler says of a program that does not fit: "needed of available"."""
    sizes = re.findall(r"([\d.]+[KMGT])\b", message)
    return " of ".join(sizes[:2]) or message.splitlines()[0]
