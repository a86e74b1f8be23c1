"""Files of PyTorch, from PyTorch itself (fixtures/torch_tensors.py) and from our own writer."""

import codecs
import os
import pathlib
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from support.torch_files import (
    FORMS,
    Tensor,
    as_old,
    as_zip,
    in_modules,
    pickled,
    written,
)

from i3d_jax.weights import WeightsError, pickles, torch_file, zip_file

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
GOLDEN = np.load(FIXTURES / "torch_tensors.npz")
# How many mutated files are read. More of them: I3D_JAX_TEST_MUTATIONS=20000.
MUTATIONS = int(os.environ.get("I3D_JAX_TEST_MUTATIONS", "400"))
SMALL_FILE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.count": np.array(7)}


@pytest.fixture
def read(tmp_path):
    """A function that reads the tensors of a file with some bytes."""

    def read(data):
        path = tmp_path / "x.pt"
        path.write_bytes(data)
        return torch_file.read_tensors(path)

    return read


def refuses(read, data, message):
    with pytest.raises(WeightsError, match=f"x.pt: .*{message}"):
        read(data)


@pytest.mark.parametrize(
    "file,part,form",
    [
        ("torch_zip.pt", "state/", "PyTorch's zip format"),
        ("torch_old.pt", "state/", "PyTorch's old format"),
        ("torch_script.pt", "script/", "TorchScript"),
    ],
)
def test_what_pytorch_wrote_is_read_bit_for_bit(file, part, form):
    contents = torch_file.read(FIXTURES / file)
    wanted = {
        name.removeprefix(part): GOLDEN[name] for name in GOLDEN.files if name.startswith(part)
    }
    assert contents.form == form and set(contents.tensors) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(contents.tensors[name], value, name, strict=True)
    assert torch_file.is_torch_file(FIXTURES / file)


@pytest.mark.parametrize("form", FORMS)
def test_own_writer_and_reader_agree(read, form):
    rng = np.random.default_rng(0)
    storage = rng.standard_normal(60).astype(np.float32)
    tensors = {
        "part": Tensor(storage, (3, 2), 5, (1, 7)),
        "whole": Tensor(storage),
        "half": rng.standard_normal((2, 2)).astype(np.float16),
        "low": Tensor(np.array([0x3F80, 0xC020], np.uint16), kind="BFloat16"),
        "count": Tensor(np.array([5]), ()),
        "none": Tensor(np.zeros(0, np.float32), (0, 4)),
    }
    found = read(written(form, tensors))
    wanted = {
        "part": storage[5:].reshape(-1)[np.arange(3)[:, None] + 7 * np.arange(2)],
        "whole": storage,
        "half": tensors["half"],
        "low": np.array([1, -2.5], np.float32),
        "count": np.array(5),
        "none": np.zeros((0, 4), np.float32),
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, name, strict=True)


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state", "model", "net", "model_state_dict", None]
)
@pytest.mark.parametrize("prefix", ["module.", "", "module._orig_mod."])
def test_state_dict_is_found_in_a_checkpoint(read, key, prefix):
    state = {prefix + name: value for name, value in SMALL_FILE.items()}
    checkpoint = {"epoch": 3, "optimizer": {"state": {0: {"momentum": np.zeros(3)}}}, key: state}
    data = as_zip(*pickled(checkpoint if key else state))
    assert set(read(data)) == set(SMALL_FILE)


def test_a_prefix_that_only_some_names_have_stays(read):
    names = {"module.a", "b"}
    assert set(read(as_zip(*pickled(dict.fromkeys(names, np.ones(1)))))) == names


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_arrays_are_read(read, protocol):
    rng = np.random.default_rng(0)
    blobs = {
        "conv1_w": rng.standard_normal((200, 200)).astype(np.float32),  # Long: stays in the file.
        "columns": np.asfortranarray(rng.standard_normal((3, 4))),
        "count": np.arange(3),
    }
    settings = "x" * 100_000
    if protocol == 0:  # Whose lines are for small values.
        del blobs["conv1_w"]
        settings = "x"
    found = read(pickle.dumps({"blobs": blobs, "lr": np.float32(1), "cfg": settings}, protocol))
    assert set(found) == set(blobs)
    for name, value in blobs.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_pickles_of_python_2_are_read(read):
    """As Caffe2's files are: names and bytes are strings without encoding."""
    values = np.arange(20_000, dtype=np.float32)  # Longer than 64 KiB.

    def text(value):
        return b"U" + bytes([len(value)]) + value

    raw = values.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + text(b"b") + b"tR"
        b"(K\1(M\x20\x4et" + b"cnumpy\ndtype\n(" + text(b"f4") + b"K\0K\1tR"
        b"(K\3" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    data = b"\x80\2}" + text(b"blobs") + b"}" + text(b"conv1_w") + array + b"ss."
    np.testing.assert_array_equal(read(data)["conv1_w"], values, strict=True)


@pytest.mark.parametrize("letter", ["x", "\u4e00"])
@pytest.mark.parametrize("length", [400, 400_000])
def test_bytes_as_texts_of_other_letters_are_refused(read, letter, length):
    """Python 3 writes bytes as texts in protocol 2; these stand in for an array's."""
    good = pickle.dumps({"blobs": {"w": np.zeros(length // 4, np.float32)}}, 2)
    zeros = b"\xc0\x80" if b"\xc0\x80" in good else b"\0"
    text = (letter * length).encode()
    at = good.index(b"X" + struct.pack("<I", length * len(zeros)) + zeros)
    data = (
        good[: at + 1] + struct.pack("<I", len(text)) + text + good[at + 5 + length * len(zeros) :]
    )
    if letter == "x":
        assert read(data)["w"].tobytes() == b"x" * length
    else:
        refuses(read, data, "latin-1|codec")


CALLS = {
    b"cos\nsystem\n": "os.system",
    b"cposix\nsystem\n": "posix.system",
    b"cbuiltins\neval\n": "builtins.eval",
    b"c__main__\nModel\n": "__main__.Model",
    b"ctorch.storage\n_load_from_bytes\n": "torch.storage._load_from_bytes",
    b"\x8c\x02os\x8c\x06system\x93": "os.system",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", ["old", "zip", "pickle"])
def test_a_pickle_that_calls_anything_else_is_refused_by_name(read, tmp_path, call, form):
    command = f"touch {tmp_path}/ran".encode()
    data = b"\x80\2" + call + b"(X" + struct.pack("<I", len(command)) + command + b"tR."
    wrapped = {"old": as_old(data, {}), "zip": as_zip(data, {}), "pickle": data}[form]
    refuses(read, wrapped, f"it calls {CALLS[call]}, which .*nothing was run")
    assert not (tmp_path / "ran").exists()


def test_names_that_stand_for_data_are_not_called(read):
    data = b"\x80\2(X\1\0\0\0acbuiltins\ngetattr\n(X\1\0\0\0bX\1\0\0\0ctRd."
    refuses(read, data, "it has no tensors")
    refuses(read, data[:-2] + b")Rd.", "a pickle calls a _Inert")


@pytest.mark.parametrize(
    "tensor,message",
    [
        (Tensor(np.zeros(6, np.float32), (2, 3), 1), "does not fit its storage of 6 elements"),
        (Tensor(np.zeros(6, np.float32), (2, 2), 0, (4, 1)), None),
        (Tensor(np.zeros(6, np.float32), (2, 2), 0, (5, 2)), "does not fit its storage"),
        (Tensor(np.zeros(6, np.float32), (1000,), 0, (0,)), "does not fit its storage"),
        (Tensor(np.zeros(6, np.float32), (2,), 0, (-1,)), "what are no sizes"),
        (Tensor(np.zeros(6, np.float32), (2,), -1), "what are no sizes"),
        (Tensor(np.zeros(6, np.float32), (2**40, 2**40)), "what are no sizes"),
        (Tensor(np.zeros(6, np.float32), (2.5,), 0, (1,)), "what are no sizes"),
        (Tensor(np.zeros(6, np.float32), (2, 3), 0, (1,)), "described in an unknown way"),
        (Tensor(np.zeros(6, np.float32), (1,) * 40), "what are no sizes"),
        (Tensor(np.zeros(6, np.float32), size=7), "wanted 7 elements"),
        (Tensor(np.zeros(6, np.float32), size=2**50), "elements 0 to"),
        (Tensor(np.zeros(6, np.float32), kind="Double"), "wanted 6 elements of Double"),
        (Tensor(np.zeros(6, np.float32), kind="ComplexFloat"), "calls torch.ComplexFloatStorage"),
    ],
)
def test_sizes_and_strides_are_checked_against_the_storage(read, tensor, message):
    data = as_zip(*pickled({"x": tensor}))
    if message is None:
        assert read(data)["x"].shape == tensor.shape
    else:
        refuses(read, data, message)


def test_tensors_of_many_times_the_file_are_refused(read):
    storage = np.zeros(100_000, np.float32)
    refuses(
        read,
        as_zip(*pickled({str(number): Tensor(storage) for number in range(20)})),
        "its tensors have 8,000,000 bytes, more than twice the file",
    )


def test_damaged_archives_are_named(read):
    good = written("zip", SMALL_FILE)
    data, storages = pickled(SMALL_FILE)
    refuses(read, as_zip(data, {}), "storage 0 is missing")
    refuses(read, as_zip(data, storages, compression=zipfile.ZIP_DEFLATED), "not of PyTorch")
    refuses(read, good[:-40], "it has no list of members|damaged list")
    at = good.index(storages["0"].tobytes())
    refuses(read, good[:at] + b"\1" + good[at + 1 :], "archive/data/0: damaged .its CRC-32")
    refuses(read, good.replace(b"little", b"bigger"), "damaged")
    refuses(read, b"PK\3\4", "has no list of members")
    refuses(read, b"", "it is empty")


def test_an_archive_without_crcs_is_read(read):
    """`torch.serialization.set_crc32_options(False)` writes zeros."""
    good, crcs = written("zip", SMALL_FILE), []
    for place in zip_file._places(memoryview(good)):
        crcs.append(struct.pack("<I", place.crc))
    for crc in crcs:
        good = good.replace(crc, bytes(4))
    assert set(read(good)) == set(SMALL_FILE)


def test_large_archives_are_read(read, monkeypatch):
    """Zip64 has places and sizes of 64 bits; the limits are those from which it is written."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = written("zip", SMALL_FILE)
    assert b"PK\6\6" in data and b"PK\6\7" in data
    found = read(data)
    np.testing.assert_array_equal(found["a.weight"], SMALL_FILE["a.weight"], strict=True)


def test_members_that_overlap_are_refused(read):
    good = written("zip", SMALL_FILE)
    start = good.index(b"PK\1\2")
    entries = good[start:].split(b"PK\1\2")[1:]
    # The entry of one storage has the place of another.
    (first,) = [entry for entry in entries if b"/data/0" in entry]
    (second,) = [entry for entry in entries if b"/data/1" in entry]
    refuses(
        read,
        good.replace(second, second[:38] + first[38:42] + second[42:]),
        "is there twice, or lies in another member",
    )


def test_damaged_old_files_are_named(read):
    good = written("old", SMALL_FILE)
    refuses(read, good[:-1], "it is cut off at byte .* in storage 1")
    refuses(read, good + b"x", "1 bytes follow the last storage")
    refuses(read, good[:40], "a pickle is cut off")
    refuses(read, good.replace(b"M\xe9\3", b"M\xe8\3", 1), "not its version 1001")


WIDE = b"X\xf0\xff\0\0" + "\U0001f600".encode() + b"x" * 65516  # Four bytes a character.
LONG_PICKLES = {
    "nested lists": b"\x80\2" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nested tuples as a key": b"\x80\2})" + b"\x85" * 100_000 + b"Ns.",
    "far memo": b"\x80\2]r\xff\xff\xff\xff.",
    "many memos": b"\x80\2]" + b"".join(b"r" + struct.pack("<I", n) for n in range(90_000)) + b".",
    "many lists": b"\x80\2" + b"]" * 300_000 + b".",
    "long frame": b"\x80\4\x95" + b"\xff" * 8 + b"].",
    "long text": b"\x80\4\x8d" + b"\xff" * 7 + b"\x7fx.",
    "long bytes": b"\x80\4\x8e" + b"\xff" * 7 + b"\x7fx.",
    "long number": b"\x80\2\x8b\xff\xff\xff\x7f" + b"\1" * 1000 + b".",
    "long decimal": b"L" + b"9" * 60_000 + b"L\n.",
    "wide texts": b"\x80\2" + WIDE * 200 + b".",
    # A list of lists of lists ..., each with ten times the same: ten to the 12th in all.
    "repeated dictionaries": b"\x80\2}"
    + b"".join(
        b"q\0}(" + b"".join(b"K" + bytes([n]) + b"h\0" for n in range(10)) + b"u"
        for _ in range(12)
    )
    + b".",
    "copies of a list": b"\x80\2](" + b"K\1K\2\x86" * 10_000 + b"eq\1"
    + b"ccollections\nOrderedDict\nq\2h\1\x85R0h\2" * 1_000
    + b".",
    "long names": b"\x80\2}(" + b"X\xf0\xff\0\0" + b"n" * 0xFFF0 + b"}("
    + b"".join(b"K" + bytes([n % 256]) + b"M" + struct.pack("<H", n) + b"\x86}" for n in range(9))
    + b"uu.",
}  # fmt: skip


@pytest.mark.parametrize("name", LONG_PICKLES)
def test_small_files_cannot_take_much_memory(read, name, monkeypatch):
    data, most = LONG_PICKLES[name], 8 << 20
    monkeypatch.setattr(pickles, "MAX_MEMORY", most)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(data) + 2 * most


def test_reading_takes_no_memory_for_tensors_but_for_bfloat16(tmp_path):
    values = np.zeros(4 << 20, np.uint16)
    for form in FORMS:
        for kind, wanted in ("Short", 0), ("BFloat16", 2):
            path = tmp_path / form
            path.write_bytes(written(form, {"x": Tensor(values.view(np.int16), kind=kind)}))
            tracemalloc.start()
            tensors = torch_file.read_tensors(path)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert tensors["x"].shape == values.shape
            assert peak < wanted * path.stat().st_size + (1 << 20)


def mutated(good, rng):
    """A copy of some bytes with a few changes at random places."""
    data = bytearray(good)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + rng.randrange(1, 9)]
            case 4:  # A number of a size, an index or a count.
                data[at : at + 4] = struct.pack("<i", rng.choice([-1, 0, 1, 255, 2**31 - 1]))
            case _:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + rng.randrange(1, 40)]
        data = data or bytearray(b"\x80")
    return bytes(data)


WATCHED = "exec", "compile", "import", "os.", "subprocess.", "pickle.", "socket.", "shutil."
HARMLESS = "os.open", "os.listdir", "os.scandir"
watching: list[str] = []


def watch(event, arguments):
    """An audit hook. Hooks stay for good; this one does something while `watching` has an item."""
    if watching and event.startswith(WATCHED) and event not in HARMLESS:
        watching.append(f"{event} {arguments!r:.200}")


def test_mutated_files_end_in_a_result_or_an_error_and_run_nothing(tmp_path):
    rng, path = random.Random(0), tmp_path / "x.pt"
    checkpoint = {"epoch": 3, "state_dict": SMALL_FILE, "none": None}
    pickles = [
        pickled(checkpoint),
        pickled(in_modules(SMALL_FILE)),
        pickled({"x": Tensor(np.zeros(9, np.uint16), (2, 2), 1, (4, 2), kind="BFloat16")}),
    ]
    files = [written(form, SMALL_FILE) for form in FORMS]
    files += [(FIXTURES / "torch_old.pt").read_bytes(), (FIXTURES / "torch_zip.pt").read_bytes()]
    files += [pickle.dumps({"blobs": {"w": np.ones((3, 2))}}, protocol) for protocol in (2, 5)]
    torch_file.read_tensors(FIXTURES / "torch_zip.pt")  # Imports are made before.
    codecs.lookup("raw-unicode-escape")
    sys.addaudithook(watch)
    results = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for number in range(MUTATIONS):
            if number % 2:  # Its CRC-32s would find nearly all.
                data, storages = rng.choice(pickles)
                wrap = rng.choice([as_zip, as_old])
                path.write_bytes(wrap(mutated(data, rng), storages))
            else:
                path.write_bytes(mutated(rng.choice(files), rng))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            watching.append("start")
            try:
                tensors = torch_file.read_tensors(path)
                results["read"] += 1
                # All elements can be read.
                assert all(len(each.tobytes()) == each.nbytes for each in tensors.values())
            except WeightsError as error:
                results["refused"] += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            ran, watching[:] = watching[1:], []
            assert ran == []
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 2 * path.stat().st_size + (1 << 20)
    finally:
        tracemalloc.stop()
        watching.clear()
    print(results)
    assert min(results.values()) > MUTATIONS / 50


def test_pickles_of_pythons_pickler_have_no_opcode_that_is_refused_without_need():
    """Those left out call classes, or refer to what is not in the file."""
    left_out = {code.name for code in pickletools.opcodes if ord(code.code) not in pickles.OPCODES}
    assert left_out == {
        "STOP", "PERSID", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4",
        "NEXT_BUFFER", "READONLY_BUFFER",
    }  # fmt: skip
