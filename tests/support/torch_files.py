"""Writes files as PyTorch does, without PyTorch: from its format, by Python's own pickler.

The pickler finds the classes and functions that it names in stand-ins for PyTorch's modules, which
are there while a file is written.
"""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int32": "Int",
    "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def named(module, name):
    """A class that pickles have by name."""
    return type(name, (), {"__module__": module})


CLASSES = {
    (module, name): named(module, name)
    for module, name in [
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "BFloat16Storage"),
        ("torch", "ComplexFloatStorage"),
        *(("torch", f"{kind}Storage") for kind in STORAGES.values()),
        ("__torch__", "Module"),
    ]
}


class Tensor:
    """A tensor, as a part of a storage.

    Attributes:
      storage: a flat array, which tensors may share.
      shape, offset, strides: in elements; by default the whole storage.
      kind: name of the storage's class; by default the array's.
      size: what the file has as the storage's size.
    """

    def __init__(self, storage, shape=None, offset=0, strides=None, kind=None, size=None):
        self.storage = np.ascontiguousarray(storage)
        self.shape = np.shape(storage) if shape is None else shape
        self.offset, self.size = offset, self.storage.size if size is None else size
        self.kind = kind or STORAGES[str(self.storage.dtype)]
        self.strides = strides
        if strides is None:
            self.strides = tuple(
                int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape))
            )


class Storage:
    def __init__(self, tensor):
        self.tensor = tensor


@contextlib.contextmanager
def stand_ins():
    """Has stand-ins for PyTorch's modules, so that the pickler finds the classes there."""
    modules = {}
    for (module, name), each in CLASSES.items():
        modules.setdefault(module, types.ModuleType(module)).__dict__[name] = each
    before = {module: sys.modules.get(module) for module in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for module, each in before.items():
            if each is None:
                del sys.modules[module]
            else:
                sys.modules[module] = each


class Pickler(pickle.Pickler):
    """Pickles arrays and `Tensor`s as PyTorch's tensors; `storages` has their elements by key."""

    def __init__(self, file, old=False):
        super().__init__(file, protocol=2)
        self.old, self.keys, self.storages, self.kept = old, {}, {}, []

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            value = Tensor(value)
        if not isinstance(value, Tensor):
            return NotImplemented
        arguments = Storage(value), value.offset, value.shape, value.strides
        if self.old:
            return CLASSES["torch._utils", "_rebuild_tensor"], arguments
        return (
            CLASSES["torch._utils", "_rebuild_tensor_v2"],
            (*arguments, False, collections.OrderedDict()),
        )

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        tensor = value.tensor
        self.kept.append(tensor.storage)  # So that no other gets its id.
        key = self.keys.setdefault(id(tensor.storage), str(len(self.keys)))
        self.storages[key] = tensor.storage
        kind = CLASSES["torch", f"{tensor.kind}Storage"]
        return ("storage", kind, key, "cpu", tensor.size, *((None,) if self.old else ()))


def pickled(value, old=False):
    """A value's pickle, and the storages of its tensors by key."""
    file = io.BytesIO()
    pickler = Pickler(file, old)
    with stand_ins():
        pickler.dump(value)
    return file.getvalue(), pickler.storages


def as_zip(data, storages, root="archive", script=False, compression=zipfile.ZIP_STORED):
    """The zip format, from what `pickled` gives."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data)
        if script:
            archive.writestr(f"{root}/constants.pkl", pickle.dumps((), 2))
            archive.writestr(
                f"{root}/code/__torch__.py", "raise SystemExit\n" * 9, zipfile.ZIP_DEFLATED
            )
        archive.writestr(f"{root}/byteorder", "little")
        for key, storage in storages.items():
            archive.writestr(f"{root}/data/{key}", storage.tobytes())
        archive.writestr(f"{root}/version", "3\n")
    return file.getvalue()


def as_old(data, storages):
    """The format before PyTorch 1.6, from what `pickled` gives."""
    system = {
        "protocol_version": PROTOCOL,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = b"".join(pickle.dumps(each, 2) for each in (MAGIC, PROTOCOL, system))
    keys = sorted(storages)
    elements = [struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in keys]
    return head + data + pickle.dumps(keys, 2) + b"".join(elements)


def in_modules(tensors):
    """Tensors by dotted names as the state of nested objects, as TorchScript has them."""
    module = CLASSES["__torch__", "Module"]()
    module.training = True
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        inner = module
        for each in path:
            inner = inner.__dict__.setdefault(each, CLASSES["__torch__", "Module"]())
        inner.__dict__[leaf] = tensor
    return module


def written(form, tensors):
    """The bytes of a file of tensors by name; the form is "old", "zip" or "script"."""
    if form == "old":
        return as_old(*pickled(collections.OrderedDict(tensors), old=True))
    if form == "zip":
        return as_zip(*pickled(collections.OrderedDict(tensors)))
    return as_zip(*pickled(in_modules(tensors)), script=True)


FORMS = "old", "zip", "script"
