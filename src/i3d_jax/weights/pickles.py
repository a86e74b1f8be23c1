"""Reads pickles without running them.

Python's own unpickler calls what a pickle names, so that a file can run any code. `PickleReader`
goes through the opcodes itself. It calls nothing but functions that its caller admits by name, and
refuses every other name.

It also bounds what a small file can take: long texts and bytes stay in the file until they are
used, and everything else is counted against a budget.
"""

import codecs
import struct
import sys
from collections.abc import Callable
from typing import Any

MAX_MEMORY = 64 << 20  # Bytes of all objects of a pickle; a state dict of I3D takes 1.8 MB.
OBJECT_SIZE = 128  # Bytes of an object of one opcode, about.
SHORT = 1 << 8  # Bytes of most lines.
LONG = 1 << 16  # Bytes from which a text stays in the file.
MAX_INTEGER = 255  # Bytes of an integer.
MAX_DIGITS = 1000
CHUNK = 1 << 20
SIZED = list, tuple, dict, set
SCALARS = str, bytes, int, float, bool, type(None)

# What reading a damaged file may raise, beside a PickleError.
PARSE_ERRORS = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error)


class PickleError(ValueError):
    """A pickle that is damaged, or has what is not admitted."""


class LongText:
    """A long text that stays in the file, as UTF-8."""

    def __init__(self, data: memoryview):
        self.data = data
        self._latin1: bytearray | None = None

    def latin1(self) -> bytearray:
        """The text in Latin-1. Python 3 writes bytes so in pickles of protocol 2."""
        if self._latin1 is None:
            decoder, encoded = codecs.getincrementaldecoder("utf-8")(), bytearray()
            for start in range(0, len(self.data), CHUNK):
                piece = self.data[start : start + CHUNK]
                encoded += decoder.decode(piece, start + CHUNK >= len(self.data)).encode("latin-1")
            self._latin1 = encoded
        return self._latin1


class PickleReader:
    """Reads one pickle.

    Containers are dictionaries, lists, tuples and sets. Texts of Python 2 are decoded as Latin-1.
    Long texts are `LongText`, and long bytes are views of the file.

    Attributes:
      position: the byte after the pickle, once it is read.
    """

    def __init__(
        self,
        data: memoryview,
        find_global: Callable[[str, str], Any],
        find_persistent: Callable[[Any], Any] | None = None,
        position: int = 0,
    ):
        """Sets up the reader.

        Args:
          data: the file.
          find_global: gives the function or other value that stands for a module's name. It raises
            a PickleError for names that it does not admit. The result may have `build(state)`.
          find_persistent: gives the value of a persistent id; None refuses them.
          position: the first byte of the pickle.
        """
        self.data, self.position = data, position
        self._find_global, self._find_persistent = find_global, find_persistent
        self._stack: list = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._memory = 0

    def read(self) -> Any:
        """Returns the pickle's value.

        Raises:
          PickleError: the pickle is damaged, too large, or has what is not admitted.
        """
        start = self.position
        try:
            while (code := self._take(1)[0]) != ord("."):
                self._use(OBJECT_SIZE)
                if code not in OPCODES:
                    raise PickleError(f"a pickle has the opcode {code:#x}, which is not supported")
                OPCODES[code](self)
            if len(self._stack) != 1 or self._marks:
                raise PickleError("a pickle ends too early")
            return self._stack.pop()
        except PickleError:
            raise
        except PARSE_ERRORS as error:
            raise PickleError(
                f"the pickle at byte {start} is damaged at byte {self.position} ({error})"
            ) from None

    # The file.

    def _use(self, size: int) -> None:
        self._memory += size
        if self._memory > MAX_MEMORY:
            raise PickleError(f"a pickle needs more than {MAX_MEMORY >> 20} MiB of memory")

    def _take(self, size: int) -> memoryview:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise PickleError(f"a pickle is cut off at byte {len(self.data)}")
        taken, self.position = self.data[self.position : end], end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = -1
        for most in (SHORT, LONG):
            line = bytes(self.data[self.position : self.position + most])
            if (end := line.find(b"\n")) >= 0:
                break
        else:
            raise PickleError(f"a line has more than {LONG} bytes, or is cut off")
        self.position += end + 1
        self._use(end)
        return line[:end].decode("latin-1")

    def _text(self, size: int) -> Any:
        data = self._take(size)
        if size >= LONG:
            return LongText(data)
        text = str(data, "utf-8", "surrogatepass")
        self._use(sys.getsizeof(text))
        return text

    def _latin1(self, size: int) -> Any:
        data = self._take(size)
        if size >= LONG:
            return data
        self._use(size)
        return str(data, "latin-1")

    def _bytes(self, size: int) -> Any:
        data = self._take(size)
        if size >= LONG:
            return data
        self._use(size)
        return bytes(data)

    def _integer(self, size: int) -> int:
        if not 0 <= size <= MAX_INTEGER:
            raise PickleError(f"a pickle has an integer of {size} bytes")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _decimal(self) -> int | bool:
        line = self._line().removesuffix("L")
        if len(line) > MAX_DIGITS:
            raise PickleError(f"a pickle has an integer of {len(line)} digits")
        return {"00": False, "01": True}[line] if line in ("00", "01") else int(line)

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise PickleError("a pickle takes more than it has")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._push(value)
        return value

    def _pop_marked(self) -> list:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _pop_tuple(self, size: int) -> None:
        self._push(tuple([self._pop() for _ in range(size)][::-1]))

    def _get(self, index: int) -> None:
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    # What values do.

    def _append(self, values: list) -> None:
        target = self._top()
        if type(target) is not list:
            raise PickleError(f"a pickle appends to a {type(target).__name__}")
        target += values

    def _set_items(self, values: list) -> None:
        target = self._top()
        if type(target) is not dict:
            raise PickleError(f"a pickle sets items of a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_hashable(key)] = value

    def _add_items(self) -> None:
        values, target = self._pop_marked(), self._top()
        if type(target) is not set:
            raise PickleError(f"a pickle adds items to a {type(target).__name__}")
        target.update(_hashable(value) for value in values)

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("a pickle names what is no name")
        self._push(self._find_global(module, name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Admitted) or type(arguments) is not tuple:
            raise PickleError(f"a pickle calls a {type(function).__name__}")
        # The result may contain as much as an argument, which can be used any number of times.
        self._use(sum(OBJECT_SIZE * len(each) for each in arguments if isinstance(each, SIZED)))
        try:
            self._push(function.call(*arguments))
        except PickleError:
            raise
        except PARSE_ERRORS as error:
            raise PickleError(f"{function.name}: wrong arguments ({error})") from None

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if hasattr(target, "build"):
            target.build(state)
        elif type(target) is not dict:  # An OrderedDict's attributes, which are not weights.
            raise PickleError(f"a pickle sets the state of a {type(target).__name__}")

    def _persistent(self) -> None:
        if self._find_persistent is None:
            raise PickleError("a pickle refers to other data")
        self._push(self._find_persistent(self._pop()))


class Admitted:
    """A function that a pickle may call.

    Attributes:
      name: for messages.
      call: the function. It must check its arguments, which may be anything.
    """

    def __init__(self, name: str, call: Callable[..., Any]):
        self.name, self.call = name, call


def _hashable(key: Any) -> Any:
    # Python crashes when it hashes tuples that are nested deep.
    if isinstance(key, SCALARS) or type(key) is tuple and all(isinstance(k, SCALARS) for k in key):
        return key
    raise PickleError(f"a pickle has a {type(key).__name__} as a key")


def _dictionary(values: list) -> dict:
    return {_hashable(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _unescape(line: str) -> str:
    """A text of Python 2 from its quoted form."""
    if len(line) < 2 or line[0] != line[-1] or line[0] not in "\"'":
        raise PickleError("a text has no quotes")
    return codecs.escape_decode(line[1:-1].encode("latin-1"))[0].decode("latin-1")  # pyright: ignore


def _raw_unicode(line: str) -> str:
    return line.encode("latin-1").decode("raw-unicode-escape")


# By opcode. Source: pickletools.py of Python, and PEPs 307, 3154 and 574. Left out are those that
# call classes directly (INST, OBJ, NEWOBJ_EX), of copyreg's registry (EXT), of texts as persistent
# ids (PERSID), and of buffers outside of the pickle.
OPCODES: dict[int, Callable[[PickleReader], Any]] = {
    ord(code): action
    for code, action in {
        "\x80": lambda r: r._number("B"),  # PROTO
        "\x95": lambda r: r._number("<Q"),  # FRAME
        "(": lambda r: r._marks.append(len(r._stack)),
        "0": lambda r: r._pop(),
        "1": lambda r: r._pop_marked(),
        "2": lambda r: r._push(r._top()),
        "N": lambda r: r._push(None),
        "\x88": lambda r: r._push(True),
        "\x89": lambda r: r._push(False),
        "I": lambda r: r._push(r._decimal()),
        "L": lambda r: r._push(r._decimal()),
        "J": lambda r: r._push(r._number("<i")),
        "K": lambda r: r._push(r._number("<B")),
        "M": lambda r: r._push(r._number("<H")),
        "\x8a": lambda r: r._push(r._integer(r._number("<B"))),
        "\x8b": lambda r: r._push(r._integer(r._number("<i"))),
        "F": lambda r: r._push(float(r._line())),
        "G": lambda r: r._push(r._number(">d")),
        "S": lambda r: r._push(_unescape(r._line())),
        "T": lambda r: r._push(r._latin1(r._number("<i"))),
        "U": lambda r: r._push(r._latin1(r._number("<B"))),
        "V": lambda r: r._push(_raw_unicode(r._line())),
        "X": lambda r: r._push(r._text(r._number("<I"))),
        "\x8c": lambda r: r._push(r._text(r._number("<B"))),
        "\x8d": lambda r: r._push(r._text(r._number("<Q"))),
        "B": lambda r: r._push(r._bytes(r._number("<I"))),
        "C": lambda r: r._push(r._bytes(r._number("<B"))),
        "\x8e": lambda r: r._push(r._bytes(r._number("<Q"))),
        "\x96": lambda r: r._push(r._bytes(r._number("<Q"))),
        "]": lambda r: r._push([]),
        "a": lambda r: r._append([r._pop()]),
        "e": lambda r: r._append(r._pop_marked()),
        "l": lambda r: r._push(r._pop_marked()),
        ")": lambda r: r._push(()),
        "t": lambda r: r._push(tuple(r._pop_marked())),
        "\x85": lambda r: r._pop_tuple(1),
        "\x86": lambda r: r._pop_tuple(2),
        "\x87": lambda r: r._pop_tuple(3),
        "}": lambda r: r._push({}),
        "d": lambda r: r._push(_dictionary(r._pop_marked())),
        "s": lambda r: r._set_items([r._pop(), r._pop()][::-1]),
        "u": lambda r: r._set_items(r._pop_marked()),
        "\x8f": lambda r: r._push(set()),
        "\x90": lambda r: r._add_items(),
        "\x91": lambda r: r._push(frozenset(map(_hashable, r._pop_marked()))),
        "g": lambda r: r._get(int(r._decimal())),
        "h": lambda r: r._get(r._number("<B")),
        "j": lambda r: r._get(r._number("<I")),
        "p": lambda r: r._put(int(r._decimal())),
        "q": lambda r: r._put(r._number("<B")),
        "r": lambda r: r._put(r._number("<I")),
        "\x94": lambda r: r._put(len(r._memo)),
        "c": lambda r: r._global(r._line(), r._line()),
        "\x93": lambda r: r._stack_global(),
        "R": lambda r: r._call(),
        "\x81": lambda r: r._call(),  # NEWOBJ
        "b": lambda r: r._build(),
        "Q": lambda r: r._persistent(),
    }.items()
}  # fmt: skip
