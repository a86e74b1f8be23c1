"""Reads tensors from PyTorch's files without PyTorch; runs nothing that is in a file.

There are three formats, told apart by their first bytes:

- `torch.save` of PyTorch 1.6 and later, a zip archive: `ROOT/data.pkl` is a pickle of the object,
  and `ROOT/data/KEY` are the raw elements of the storages that its tensors refer to.
- TorchScript, the same archive with objects of its own classes, whose state nests. Its code is
  never read.
- `torch.save` before, consecutive pickles: a magic number, a version, the system, the object, and
  the storages' keys. A count and the raw elements of each storage follow.

Pickles of NumPy arrays are read, too, such as Caffe2's.
"""

import math
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from i3d_jax.files import open_regular
from i3d_jax.weights.pickles import PARSE_ERRORS, Admitted, LongText, PickleError, PickleReader
from i3d_jax.weights.published import WeightsError
from i3d_jax.weights.zip_file import ZipError, stored_members

ZIP_MAGIC = b"PK\3\4"
# Of names. Pickles of protocol 0 have no first bytes of their own.
SUFFIXES = ".pt", ".pth", ".pyth", ".pkl"
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
# By the name of the storage's class. bfloat16, which NumPy lacks, becomes float32.
STORAGES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": "<u2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 48  # Of a tensor.
MAX_DEPTH = 32  # Of nested containers.
MAX_NAMES = 16 << 20  # Bytes of all names.
NODE_SIZE = 128  # Bytes of a name's other part.
MAX_MESSAGE = 500  # Characters.
SLACK = 1 << 20  # Bytes by which tensors may exceed twice the file.
# Where checkpoints have the state dict, in order; "blobs" is Caffe2's.
STATE_KEYS = (
    "state_dict",
    "model_state",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "blobs",
)
PREFIXES = "module.", "_orig_mod."  # Of DataParallel, and of compiled modules.


class Contents(NamedTuple):
    """What a file has.

    Attributes:
      form: the format, in words.
      tensors: read-only arrays by name.
    """

    form: str
    tensors: dict[str, np.ndarray]


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file begins as PyTorch's do: as a zip archive, or as a pickle of protocol 1 to 5.

    Raises:
      OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(4)
    return start == ZIP_MAGIC or start[:1] == b"\x80" and 1 <= int.from_bytes(start[1:2]) <= 5


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file's state dict; see `read`."""
    return read(path).tensors


def read(path: str | os.PathLike) -> Contents:
    """Reads the state dict in a file of PyTorch, or arrays in a pickle.

    In a checkpoint, the state dict is what is under one of STATE_KEYS. Nested names are joined by
    dots. Prefixes that all names have, one of PREFIXES, are left out. Tensors are views of the
    memory-mapped file, but for those of bfloat16.

    Args:
      path: the file.

    Raises:
      WeightsError: the file cannot be read, is damaged, or has what tensors do not need. Nothing in
        it was run.
    """
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise PickleError("it is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        form, root, storages = _load(data)
        tensors = {
            name: leaf.array(storages) if isinstance(leaf, _Tensor) else leaf.array()
            for name, leaf in _strip(_leaves(_state_dict(root))).items()
        }
        if not tensors:
            frozen = "; frozen TorchScript has none" if form == "TorchScript" else ""
            raise PickleError(f"it has no tensors with names{frozen}")
        total = sum(each.nbytes for each in tensors.values())
        if total > 2 * len(data) + SLACK:
            raise PickleError(f"its tensors have {total:,} bytes, more than twice the file")
        return Contents(form, tensors)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (*PARSE_ERRORS, ArithmeticError) as error:
        # The message may have a long name from the file.
        text = str(error)
        text = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
        raise WeightsError(f"{path}: {text}") from None


# The formats.


def _load(data: memoryview) -> tuple[str, Any, "_Storages"]:
    """The format, the object and the storages of a file."""
    if bytes(data[:4]) == ZIP_MAGIC:
        return _load_zip(data)
    reader = PickleReader(data, _find_global)
    first = reader.read()
    if first == MAGIC and type(first) is int:
        return _load_old(data, reader.position)
    if reader.position != len(data):
        raise PickleError(f"{len(data) - reader.position:,} bytes follow the pickle")
    return "a pickle", first, _Storages({})


def _load_zip(data: memoryview) -> tuple[str, Any, "_Storages"]:
    members = stored_members(data)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ZipError("a zip archive, but not of PyTorch (it has no data.pkl)")
    (root,) = roots
    if bytes(members.get(f"{root}/byteorder", b"little")) != b"little":
        raise ZipError("it was written by a big-endian machine, which is not supported")
    value = PickleReader(members[f"{root}/data.pkl"], _find_global, _storage).read()
    form = "TorchScript" if f"{root}/constants.pkl" in members else "PyTorch's zip format"
    start = f"{root}/data/"
    return (
        form,
        value,
        _Storages(
            {
                name.removeprefix(start): member
                for name, member in members.items()
                if name.startswith(start)
            }
        ),
    )


def _load_old(data: memoryview, position: int) -> tuple[str, Any, "_Storages"]:
    values, sizes = [], {}

    def find_storage(identifier: Any) -> "_Storage":
        storage = _storage(identifier)
        sizes.setdefault(storage.key, storage.dtype.itemsize)
        return storage

    for _ in range(4):
        reader = PickleReader(data, _find_global, find_storage, position)
        values.append(reader.read())
        position = reader.position
    protocol, system, value, keys = values
    if protocol != PROTOCOL or not isinstance(system, dict) or not isinstance(keys, list):
        raise PickleError(f"it has PyTorch's magic number, but not its version {PROTOCOL}")
    if system.get("little_endian") is not True:
        raise PickleError("it was written by a big-endian machine, which is not supported")
    members = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes or key in members:
            raise PickleError("its list of storages is damaged")
        start = position + 8
        position = start + int.from_bytes(data[position:start], "little") * sizes[key]
        if position > len(data):
            raise PickleError(f"it is cut off at byte {len(data):,}, in storage {key}")
        members[key] = data[start:position]
    if position != len(data):
        raise PickleError(f"{len(data) - position:,} bytes follow the last storage")
    return "PyTorch's old format", value, _Storages(members)


# Storages and tensors. What a pickle refers to is kept until it is found to be of the state dict.


class _Storage(NamedTuple):
    """What a pickle says of a storage.

    Attributes:
      key: of its elements in the file.
      kind: a key of STORAGES.
      size: number of elements.
      start: the first of them, if this is a part of another storage.
      stop: the one after the last, likewise.
    """

    key: str
    kind: str
    size: int
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(STORAGES[self.kind])


class _StorageClass(NamedTuple):
    kind: str


def _storage(identifier: Any) -> _Storage:
    """The storage of a persistent id ("storage", class, key, location, elements[, view])."""
    match identifier:
        case ("storage", _StorageClass(kind), str(key), _, int(size), *rest):
            pass
        case _:
            raise PickleError("a storage is described in an unknown way")
    start, stop = 0, size
    match rest:
        case [] | [None]:
            pass
        case [(str(), int(start), int(length))]:
            stop = start + length
        case _:
            raise PickleError(f"storage {key} is described in an unknown way")
    if not 0 <= start <= stop <= size <= MAX_ELEMENTS:
        raise PickleError(f"storage {key} has elements {start} to {stop} of {size}")
    return _Storage(key, kind, size, start, stop)


class _Storages:
    """The elements of a file's storages."""

    def __init__(self, members: Mapping[str, memoryview]):
        self._members = members
        self._arrays: dict[str, tuple[str, np.ndarray]] = {}

    def array(self, storage: _Storage) -> np.ndarray:
        """The elements of a storage; bfloat16 becomes float32, once for all tensors."""
        if storage.key not in self._arrays:
            self._arrays[storage.key] = storage.kind, self._read(storage)
        kind, array = self._arrays[storage.key]
        if kind != storage.kind or len(array) != storage.size:
            raise PickleError(f"storage {storage.key} is described in two ways")
        return array[storage.start : storage.stop]

    def _read(self, storage: _Storage) -> np.ndarray:
        member = self._members.get(storage.key)
        if member is None:
            raise PickleError(f"storage {storage.key} is missing")
        if len(member) != storage.size * storage.dtype.itemsize:
            raise PickleError(
                f"storage {storage.key} has {len(member):,} bytes, wanted {storage.size:,} "
                f"elements of {storage.kind}"
            )
        array = np.frombuffer(member, storage.dtype)
        if storage.kind == "BFloat16":
            wide = array.astype(np.uint32)
            wide <<= 16
            array = wide.view(np.float32)
            array.flags.writeable = False
        return array


class _Tensor(NamedTuple):
    """What a pickle says of a tensor; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: _Storages) -> np.ndarray:
        """The tensor as a view of its storage."""
        elements = storages.array(self.storage)
        size, width = math.prod(self.shape), elements.itemsize
        last = self.offset + sum(
            (length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True)
        )
        # A tensor of repeated elements could have any size.
        if size and (last >= len(elements) or size > len(elements)):
            raise PickleError(
                f"a tensor of shape {self.shape} and strides {self.strides} at {self.offset} does "
                f"not fit its storage of {len(elements):,} elements"
            )
        if not size:
            return np.empty(self.shape, elements.dtype)
        view = np.ndarray(
            self.shape,
            elements.dtype,
            elements.data,
            self.offset * width,
            tuple(stride * width for stride in self.strides),
        )
        view.flags.writeable = False
        return view


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """The arguments of `torch._utils._rebuild_tensor` and, with more, of `_rebuild_tensor_v2`."""
    shape, strides = _sizes(shape), _sizes(strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise PickleError("a tensor is described in an unknown way")
    return _Tensor(storage, _sizes((offset,))[0], shape, strides)


def _sizes(values: Any) -> tuple[int, ...]:
    if (
        not isinstance(values, tuple | list)
        or len(values) > MAX_DIMENSIONS
        or not all(type(each) is int and 0 <= each <= MAX_ELEMENTS for each in values)
        or math.prod(each for each in values if each) > MAX_ELEMENTS
    ):
        raise PickleError("a tensor is described by what are no sizes")
    return tuple(values)


# NumPy's arrays.


class _Dtype:
    """A type of NumPy; `code` is None for types that weights do not have, such as objects."""

    def __init__(self, code: Any, *_: Any):
        known = isinstance(code, str) and re.fullmatch("[fiu][1248]|b1", code) and code != "f1"
        self.code = code if known else None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
            self.code = None


class _Array:
    """An array of NumPy."""

    def __init__(self, *_: Any):
        self._dtype, self._shape, self._columns, self._data = _Dtype(None), (), False, None

    def build(self, state: Any) -> None:
        _, shape, dtype, columns, data = state
        self.set(data, dtype, shape, "F" if columns else "C")

    def set(self, data: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise PickleError("an array is described in an unknown way")
        self._dtype, self._shape, self._columns, self._data = (
            dtype,
            _sizes(shape),
            order == "F",
            data,
        )
        return self

    def array(self) -> np.ndarray:
        """The array as a view of its bytes."""
        if self._dtype.code is None:
            raise PickleError("an array has no numbers, or those of a big-endian machine")
        dtype, data = np.dtype("<" + self._dtype.code), self._data
        if isinstance(data, LongText):
            data = data.latin1()
        elif isinstance(data, str):
            data = data.encode("latin-1")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise PickleError("an array has no bytes")
        if len(data) != math.prod(self._shape) * dtype.itemsize:
            raise PickleError(f"an array {dtype} of shape {self._shape} has {len(data):,} bytes")
        flat = np.frombuffer(data, dtype)
        array = flat.reshape(self._shape[::-1]).T if self._columns else flat.reshape(self._shape)
        array.flags.writeable = False
        return array


def _encode(text: Any, encoding: Any = "latin1") -> Any:
    """The arguments of `_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str | LongText):
        raise PickleError("bytes are described in an unknown way")
    return text if isinstance(text, LongText) else text.encode("latin-1")


# Names that pickles may have.


class _Inert:
    """An object of another class, of which only the state is kept."""

    def __init__(self, *_: Any):
        self.state: Any = {}

    def build(self, state: Any) -> None:
        self.state = state


def _ordered_dictionary(*arguments: Any) -> dict:
    match arguments:
        case ():
            return {}
        case (list(pairs),):
            return {key: value for key, value in pairs if isinstance(key, str | int)}
    raise PickleError("a dictionary is made of what are no pairs")


def _list(*values: Any) -> Any:
    return list(*values)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
    "torch.jit._pickle.restore_type_tag": lambda value, _: value,
    "torch.Size": lambda *values: tuple(*values),
    "collections.OrderedDict": _ordered_dictionary,
    "collections.defaultdict": lambda *_: {},
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": lambda *values: _Array().set(*values),
    "_codecs.encode": _encode,
}
# Names that checkpoints have beside tensors: of their optimizer, their log and their options. None
# of them is called.
INERT = {
    "argparse.Namespace",
    "collections.Counter",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray.scalar",
    "numpy.ndarray",
    "torch.device",
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("bool", "dict", "float", "getattr", "int", "list", "long", "set", "str")
    ),
}


def _find_global(module: str, name: str) -> Any:
    """What stands for a name.

    Raises:
      PickleError: a name that tensors do not need.
    """
    whole = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
    if found := re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", whole):
        if found[1] in STORAGES:
            return _StorageClass(found[1])
    elif whole in FUNCTIONS:
        return Admitted(whole, FUNCTIONS[whole])
    elif whole in INERT or re.fullmatch(
        r"__torch__\..*|torch\.(float|bfloat|half|double|u?int|long|short|bool)\d*", whole
    ):
        return Admitted(whole, _Inert)
    raise PickleError(
        f"it calls {whole}, which tensors do not need, so it was not read and nothing was run; "
        "save the state dict alone: torch.save(model.state_dict(), ...)"
    )


# The state dict.


def _state_dict(root: Any) -> Any:
    """The part of a checkpoint that has the network's tensors."""
    for _ in range(MAX_DEPTH):
        if not isinstance(root, dict):
            break
        found = [root[key] for key in STATE_KEYS if isinstance(root.get(key), dict | _Inert)]
        inner = next((each for each in found if next(_walk(each), None) is not None), None)
        if inner is None:
            break
        root = inner
    return root


def _leaves(root: Any) -> dict[str, Any]:
    """The tensors of nested containers by their names, which are joined by dots."""
    leaves = {}
    for name, leaf in _walk(root):
        if name in leaves:
            raise PickleError(f"it has two tensors called {name}")
        leaves[name] = leaf
    return leaves


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Yields names and tensors of nested containers."""
    size, pending = 0, [("", root, 0)]
    while pending:
        name, node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise PickleError(f"its containers are nested more than {MAX_DEPTH} deep")
        if isinstance(node, _Tensor | _Array):
            yield name, node
        node = node.state if isinstance(node, _Inert) else node
        below = []
        for key, value in node.items() if isinstance(node, dict) else ():
            if isinstance(value, dict | _Inert | _Tensor | _Array) and isinstance(key, str | int):
                below.append((f"{name}.{key}" if name else str(key), value, depth + 1))
                size += len(below[-1][0]) + NODE_SIZE
                if size > MAX_NAMES:
                    raise PickleError("its containers are too many")
        pending += below[::-1]


def _strip(leaves: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the prefixes that all names have."""
    while prefix := next((each for each in PREFIXES if leaves and _all_begin(leaves, each)), None):
        leaves = {name.removeprefix(prefix): leaf for name, leaf in leaves.items()}
    return leaves


def _all_begin(names: Mapping[str, Any], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)
