import os
import re
import struct
import time
import tracemalloc

import numpy as np
import pytest
from support.tf_files import (
    NAMES,
    block,
    ended,
    entry,
    field,
    table,
    v1_pairs,
    varint,
    with_a_bit_flipped,
    write_checkpoint,
)

from i3d_jax.weights import tf_checkpoint


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "net/conv/w": rng.normal(size=(3, 3, 2, 4)),
        "net/conv/b": rng.normal(size=4),
        "step": np.float32(7),
    }


@pytest.fixture
def prefix(tmp_path, tensors):
    write_checkpoint(tmp_path / "model.ckpt", tensors)
    return tmp_path / "model.ckpt"


def test_tensors_come_back_by_name(prefix, tensors):
    checkpoint = tf_checkpoint.Checkpoint(prefix)
    assert set(checkpoint) == set(tensors)
    for name, value in tensors.items():
        assert checkpoint[name].shape == np.shape(value)
        np.testing.assert_array_equal(checkpoint[name], np.asarray(value, np.float32))
    assert isinstance(checkpoint["net/conv/w"].base, np.memmap) or isinstance(
        checkpoint["net/conv/w"], np.memmap
    )


def test_every_flipped_bit_of_the_index_is_an_error(prefix):
    path = prefix.with_name("model.ckpt.index")
    for bad in with_a_bit_flipped(path.read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(tf_checkpoint.CheckpointError, match="model.ckpt.index"):
            tf_checkpoint.read_index(path)


def test_every_truncation_of_the_index_is_an_error(prefix):
    path = prefix.with_name("model.ckpt.index")
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(tf_checkpoint.CheckpointError, match="model.ckpt.index"):
            tf_checkpoint.read_index(path)


def test_a_flipped_bit_of_the_data_names_file_and_tensor(prefix, tensors):
    path = prefix.with_name("model.ckpt.data-00000-of-00001")
    good = path.read_bytes()
    entries = tf_checkpoint.read_index(prefix.with_name("model.ckpt.index"))
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        (hit,) = [
            name
            for name, entry in entries.items()
            if entry.offset <= position < entry.offset + entry.size
        ]
        checkpoint = tf_checkpoint.Checkpoint(prefix)
        with pytest.raises(tf_checkpoint.CheckpointError, match=f"00000-of-00001: {hit}: damaged"):
            [checkpoint[name] for name in checkpoint]


@pytest.mark.parametrize("length", [0, 1, 200])
def test_truncated_data_names_what_is_cut_off(prefix, length):
    path = prefix.with_name("model.ckpt.data-00000-of-00001")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(tf_checkpoint.CheckpointError, match="00000-of-00001"):
        tf_checkpoint.Checkpoint(prefix)


def index_of(entries, packed=None):
    """An index file with a `BundleEntryProto` per name.

    `packed` is the block with the entries, without its end.
    """
    pairs = [(b"", field(1, 1)), *((name.encode(), value) for name, value in entries.items())]
    data = block(pairs) if packed is None else ended(packed)
    handles = [(b"\xff", varint(0) + varint(len(data) - 5))]
    out, footer = data, b""
    for index in (block([]), block(handles)):
        footer += varint(len(out)) + varint(len(index) - 5)
        out += index
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def keys_that_share_all_but_a_byte():
    """A block of 1 MB whose 41,000 keys have 800 MB."""
    value = entry(())
    keys = [
        varint(length) + varint(1) + varint(len(value)) + b"a" + value for length in range(41_000)
    ]
    return varint(0) + varint(0) + varint(2) + field(1, 1) + b"".join(keys)


@pytest.mark.parametrize(
    "index,named",
    [
        (index_of({"long": b"\x08" + b"\xff" * 2**20 + b"\1"}), "a number has more than 64 bits"),
        (index_of({"large": b"\x08" + b"\xff" * 9 + b"\x7f"}), "a number has more than 64 bits"),
        (
            index_of({}, keys_that_share_all_but_a_byte()),
            r"the block at byte 0 has \d+ bytes, but keys of \d+ and more",
        ),
        (index_of({"deep": entry([1] * 65)}), "deep: more than 32 dimensions or "),
        (index_of({"deep": entry([2**40] * 500_000)}), "deep: more than 32 dimensions or "),
        (index_of({"wide": entry([0, 2**60], size=0)}), "wide: more than 32 dimensions or "),
        (
            index_of({"a": entry([4], 0, 16), "b": entry([4], 12, 16)}),
            "b: starts at byte 12, within the tensor before",
        ),
        (index_of({"a": field(1, 1) + field(4, b"x") + field(5, 4)}), "not a checkpoint index"),
        (b"\0" * 2**25, "it has more than 16,777,216 bytes"),
    ],
    ids=[
        "long",
        "large",
        "keys",
        "65 dimensions",
        "500,000 dimensions",
        "empty",
        "overlap",
        "no number",
        "32 MB",
    ],
)
def test_an_index_that_would_take_time_or_memory_without_an_end_is_an_error_at_once(
    index, named, tmp_path
):
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(index)
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(tf_checkpoint.CheckpointError, match=f"model.ckpt.index: .*{named}"):
        tf_checkpoint.read_index(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20 and time.process_time() - began < 5


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001", "v1"])
def test_a_pipe_is_refused_and_not_waited_for(kind, prefix):
    name = prefix if kind == "v1" else prefix.with_name(f"model.ckpt.{kind}")
    if kind == "v1":
        prefix.with_name("model.ckpt.index").unlink()
    else:
        name.unlink()
    os.mkfifo(name)
    with pytest.raises(
        tf_checkpoint.CheckpointError, match=f"{name.name}.*is a FIFO, wanted a file"
    ):
        tf_checkpoint.open_checkpoint(prefix)


def test_missing_files_are_named(tmp_path, prefix):
    with pytest.raises(tf_checkpoint.CheckpointError, match="nothing.index: cannot be read"):
        tf_checkpoint.Checkpoint(tmp_path / "nothing")
    prefix.with_name("model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(tf_checkpoint.CheckpointError, match="00000-of-00001: cannot be read"):
        tf_checkpoint.Checkpoint(prefix)


@pytest.mark.parametrize("name", NAMES)
def test_the_releases_index_files_are_read(name, shared_data):
    entries = tf_checkpoint.read_index(
        shared_data / "kinetics-i3d" / "checkpoints" / name / "model.ckpt.index"
    )
    assert len(entries) == (346 if name == "rgb_scratch_kin600" else 230)


def test_the_releases_checkpoint_is_read_and_verified(shared_data):
    checkpoint = tf_checkpoint.Checkpoint(
        shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch" / "model.ckpt"
    )
    assert sum(value.size for value in checkpoint.values()) == 50_818_176 // 4


@pytest.fixture
def v1(tmp_path):
    tensors = {
        "net/b": np.array([-1.5, 2.25], np.float64),
        "net/w": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "step": np.int64(-(2**40)),
        "steps": np.array([[-1, 2**31 - 1]], np.int32),
    }
    (tmp_path / "v1.ckpt").write_bytes(table(v1_pairs(tensors)))
    return tmp_path / "v1.ckpt", tensors


def test_tensors_of_v1_come_back_by_name_type_and_shape(v1):
    path, tensors = v1
    checkpoint = tf_checkpoint.open_checkpoint(path)
    assert list(checkpoint) == sorted(tensors)
    for name, value in checkpoint.items():
        assert value.dtype == tensors[name].dtype and value.shape == tensors[name].shape
        np.testing.assert_array_equal(value, tensors[name])
        assert not value.flags.writeable and value.flags.aligned


def test_every_flipped_bit_of_v1_is_an_error(v1):
    path, _ = v1
    for bad in with_a_bit_flipped(path.read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(tf_checkpoint.CheckpointError, match="v1.ckpt"):
            tf_checkpoint.open_checkpoint(path)


def test_every_truncation_of_v1_is_an_error(v1):
    path, _ = v1
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(tf_checkpoint.CheckpointError, match="v1.ckpt"):
            tf_checkpoint.open_checkpoint(path)


def test_what_v1_is_not_read_with_is_named(v1, prefix):
    path, tensors = v1
    path.write_bytes(table(v1_pairs(tensors, slices=2)))
    with pytest.raises(tf_checkpoint.CheckpointError, match="v1.ckpt: .*net/b: lies in 2 slices"):
        tf_checkpoint.open_checkpoint(path)
    path.write_bytes(prefix.with_name("model.ckpt.index").read_bytes())
    with pytest.raises(tf_checkpoint.CheckpointError, match="v1.ckpt: .*no list of tensors"):
        tf_checkpoint.open_checkpoint(path)
    with pytest.raises(tf_checkpoint.CheckpointError, match="nothing.index: cannot be read"):
        tf_checkpoint.open_checkpoint(path.with_name("nothing"))
    prefix.with_name("model.ckpt.index").unlink()
    with pytest.raises(tf_checkpoint.CheckpointError, match="model.ckpt.index: cannot be read"):
        tf_checkpoint.open_checkpoint(prefix.with_name("model.ckpt.data-00000-of-00001"))


def test_a_list_that_is_not_what_is_there_is_named(v1):
    path, tensors = v1
    pairs = v1_pairs(tensors)
    for wrong, records in {
        "net/b: 3 values for float64 of shape (2,)": pairs[:1]
        + v1_pairs(tensors | {"net/b": np.zeros(3)})[1:],
        "steps: 1 values for int32 of shape (1, 2)": pairs[:1]
        + v1_pairs(tensors | {"steps": np.int32(1)})[1:],
        "steps: it is listed, but not there": pairs[:-1],
        "net/b: it is there, but not listed": v1_pairs({"step": tensors["step"]})[:1]
        + pairs[1:2]
        + pairs[3:4],
    }.items():
        path.write_bytes(table(records))
        with pytest.raises(tf_checkpoint.CheckpointError, match="v1.ckpt: .*" + re.escape(wrong)):
            tf_checkpoint.open_checkpoint(path)
