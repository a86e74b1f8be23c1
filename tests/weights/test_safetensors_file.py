import json
import os
import random
import struct

import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import evaluate, models, predict, weights
from i3d_jax.inflate import named_leaves
from i3d_jax.training import loop
from i3d_jax.weights.__main__ import main

INFO = {
    "model": "c3d",
    "classes": ["a", "b", "c"],
    "options": {"width": 0.02},
    "short_side": 40,
    "crop": 32,
}


@pytest.fixture(scope="module")
def tensors():
    """The tensors of a small 3D-ConvNet."""
    network = models.build("c3d", num_classes=3, width=0.02)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in named_leaves(shapes).items()
    }


def file_of(tensors, info=INFO, version=3, header=(), description=None, **metadata):
    """The bytes of a file of our format, made by hand from its description, with right checksums.

    Args:
      tensors: arrays by path.
      info: the fields of `info`.
      version: of the format.
      header: changes to the entries of tensors, by name; None removes the entry.
      description: replaces `info` and the checksums.
      **metadata: further entries of metadata.
    """
    data, entries = b"", {}
    for name, value in tensors.items():
        raw = value.tobytes()
        entries[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    for name, change in dict(header).items():
        entries[name] = None if change is None else entries.get(name, {}) | change
    entries = {name: entry for name, entry in entries.items() if entry is not None}
    text = info if isinstance(info, str) else json.dumps(info)
    crcs = {"": google_crc32c.value(text.encode())}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        about = f"float32 {entry['shape']}\n".encode() if version == 3 else b""
        crcs[name] = google_crc32c.value(about + data[start:stop])
    if description is None:
        description = json.dumps({"info": text, "crc32c": crcs})
    entries["__metadata__"] = {f"i3d_jax weights {version}": description} | metadata
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def test_files_are_as_their_format_says(path, tensors):
    info = weights.Info(**INFO)
    weights.save(path, tensors, info)
    head = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    description = json.loads(head["__metadata__"]["i3d_jax weights 3"])
    name = "params/Logits/bias"
    about = b"float32 [3]\n" + tensors[name].tobytes()
    assert description["crc32c"][name] == google_crc32c.value(about)
    assert weights.Info(**json.loads(description["info"])) == info
    path.write_bytes(file_of(tensors))
    found, read = weights.read(path)
    assert read == info
    for name, value in named_leaves(found).items():
        np.testing.assert_array_equal(value, tensors[name])


def test_files_of_the_version_before_are_read_and_checked_against_their_model(path, tensors):
    path.write_bytes(file_of(tensors, version=2))
    found, info = weights.read(path)
    assert info == weights.Info(**INFO)
    for name, value in named_leaves(found).items():
        np.testing.assert_array_equal(value, tensors[name])
    kernel = "params/Logits/kernel"
    size, classes = tensors[kernel].shape
    for change, message in (
        ({"dtype": "I32"}, f"w.safetensors: {kernel}: I32 .*wanted F32"),
        (
            {"shape": [classes, size]},
            rf"{kernel}: found \({classes}, {size}\), wanted \({size}, {classes}\)",
        ),
    ):
        path.write_bytes(file_of(tensors, version=2, header={kernel: change}))
        with pytest.raises(weights.WeightsError, match=message):
            weights.read(path)


def test_another_type_or_shape_of_the_same_bytes_is_damage(path, tensors):
    good = file_of(tensors)
    size, classes = tensors["params/Logits/kernel"].shape
    for there, other in (
        (f'"shape": [{size}, {classes}]', f'"shape": [{classes}, {size}]'),
        ('"F32"', '"I32"'),
    ):
        assert good.count(there.encode())
        path.write_bytes(good.replace(there.encode(), other.encode(), 1))
        with pytest.raises(weights.WeightsError, match=r"damaged \(its CRC-32C|I32 .*, wanted F32"):
            weights.read(path)


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "change,message",
    [
        ({"fps": 0}, "fps: 0, wanted a number from 0.1 to 1000"),
        ({"fps": float("nan")}, "its description is not JSON: NaN is no number"),
        ({"fps": float("inf")}, "its description is not JSON: Infinity is no number"),
        ({"fps": True}, "fps: True, wanted"),
        ({"fps": "25"}, "fps: '25', wanted"),
        ({"short_side": 40.0}, "short_side: 40.0, wanted 1 to 4096 pixels"),
        ({"short_side": 10**9}, "short_side: 1000000000, wanted"),
        ({"crop": 41}, "crop: 41, wanted 1 to short_side, 40, pixels"),
        ({"crop": 0}, "crop: 0, wanted"),
        ({"crop": True}, "crop: True, wanted"),
        ({"footprint": {}}, "footprint: {}, wanted"),
        (
            {"footprint": {"rgb": [-16, 1]}},
            r"footprint: rgb: \[-16, 1\], wanted \(frames, step between them\)",
        ),
        ({"footprint": {"rgb": [16, 0.5]}}, "footprint: rgb: "),
        ({"footprint": {"rgb": 16}}, "footprint: rgb: 16, wanted"),
        ({"footprint": {"sound": [16, 1]}}, "footprint: 'sound', wanted rgb or flow"),
        ({"footprint": {"rgb": [15, 1]}}, "footprint: rgb: 15 frames, but c3d takes at least 16"),
        (
            {"footprint": {"rgb": [16, 1], "flow": [16, 1]}},
            r"footprint: rgb\+flow, but c3d takes rgb",
        ),
        ({"model": "two_stream"}, r"footprint: rgb, but two_stream takes rgb\+flow"),
        ({"model": "x3d"}, "no model is called 'x3d'"),
        ({"model": ["c3d"]}, r"model: \['c3d'\], wanted a name"),
        ({"classes": []}, r"classes: \[\], wanted names"),
        ({"classes": "abc"}, "classes: 'abc', wanted names"),
        ({"classes": ["a", "", "c"]}, "classes: .*, wanted names"),
        ({"classes": ["a", None, "c"]}, "classes: .*, wanted names"),
        ({"classes": ["a", "b"]}, "3 logits, but names for 2 classes"),
        ({"options": {"width": 0.03}}, "does not fit the model: "),
        ({"options": {"width": "wide"}}, "options: width: 'wide', wanted a number"),
        ({"options": {"width": 1e300}}, r"options: width: 1e\+300, wanted"),
        ({"options": {"depth": 3}}, "options: c3d has no option 'depth'"),
        ({"options": {"num_classes": 3}}, "options: c3d has no option 'num_classes'"),
        ({"options": {"name": "x"}}, "options: c3d has no option 'name'"),
        (
            {"options": {"freeze_backbone": 1}},
            "options: freeze_backbone: 1, wanted true or false",
        ),
        ({"options": {"fixed": 1}}, "options: freeze_backbone: 1, wanted true or false"),
        ({"options": {"dtype": "int8"}}, "options: .*dtype is 'int8'"),
        ({"options": {"dtype": [1]}}, r"options: dtype: \[1\], wanted"),
        ({"options": [1]}, r"options: \[1\], wanted values by name"),
        ({"source": 3}, "source: 3, wanted text"),
        ({"sauce": "x"}, "its description has 'sauce', which this version does not know"),
    ],
)
def test_a_description_that_cannot_be_is_refused_by_field(change, message, path, tensors):
    path.write_bytes(file_of(tensors, INFO | change))
    with pytest.raises(weights.WeightsError, match=f"w.safetensors: {message}"):
        weights.read(path)


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"info": "{}"}, "its description has no model"),
        ({"info": "[]"}, r"its description is \[\], wanted an object"),
        ({"info": DEEP}, "its description is nested too deep"),
        ({"description": DEEP}, "its entry of metadata is nested too deep"),
        ({"description": "{"}, "its entry of metadata is not JSON"),
        ({"description": '{"info": "{}", "crc32c": []}'}, "damaged metadata"),
        ({"description": "9" * 5000}, "its entry of metadata is not JSON"),
        ({"version": 4}, r"its metadata are \['i3d_jax weights 4'\], wanted 'i3d_jax weights 3'"),
        (
            {"header": {"params/Logits/bias": {"dtype": "BF16", "shape": [6]}}},
            r"bias: BF16 \[6\], wanted F32",
        ),
        (
            {"header": {"params/Logits/bias": {"shape": [3] + [1] * 70}}},
            "wanted F32 of at most 8 dimensions",
        ),
        ({"header": {"params/Logits/bias": None}}, "not a safetensors file, or damaged"),
    ],
)
def test_a_file_that_is_none_of_ours_is_one_error(bad, message, path, tensors):
    path.write_bytes(file_of(tensors, **bad))
    with pytest.raises(weights.WeightsError, match=f"w.safetensors: .*{message}"):
        weights.read(path)


def test_options_of_earlier_versions_are_read(path, tensors):
    old = {"width": 0.02, "fixed": True, "norm_groups": 2}
    path.write_bytes(file_of(tensors, INFO | {"options": old}))
    network, _, info = weights.network(path)
    assert info.options == {"width": 0.02, "freeze_backbone": True}
    assert network.freeze_backbone and network.norm_group_size is None


def test_tensors_of_names_that_cannot_be_together_are_refused(path, tensors):
    path.write_bytes(
        file_of(
            tensors
            | {"params": np.zeros(1, np.float32), "params/a\n\x1b[2J": np.zeros(1, np.float32)}
        )
    )
    with pytest.raises(weights.WeightsError) as error:
        weights.read(path)
    assert r"params/a\n\x1b[2J: found (1,), wanted nothing" in str(error.value)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_a_header_of_a_gigabyte_is_not_read(path):
    path.write_bytes(struct.pack("<Q", 2**30) + b"{")
    with pytest.raises(
        weights.WeightsError, match="w.safetensors: .*its header has 1,073,741,824 bytes"
    ):
        weights.read(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.tar.gz", "w.ckpt"])
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(weights.WeightsError, match=f"{name}: .*is a FIFO, wanted a file"):
        weights.read(tmp_path / name)


def test_what_would_be_refused_is_not_written_either(path, tensors):
    with pytest.raises(
        weights.WeightsError, match="crop: 300, wanted 1 to short_side, 256, pixels"
    ):
        weights.Info("c3d", ("a",), crop=300)
    with pytest.raises(ValueError, match="its description has .* bytes, which is too long"):
        weights.save(path, tensors, weights.Info("c3d", ("a" * 2**25,)))
    assert not path.exists()


def test_every_command_that_loads_weights_says_one_line(path, tensors, capsys):
    path.write_bytes(file_of(tensors, INFO | {"crop": 400}))
    message = f"{path}: crop: 400, wanted 1 to short_side, 40, pixels"
    name = str(path)
    data = ["--dataset", "moving_shapes/videos", "--out", str(path.with_name("out"))]
    for run, status in (
        (lambda: predict.main(["--weights", name, "x.mp4"]), 2),
        (lambda: evaluate.main(["--weights", name, *data]), 2),
        (lambda: main(["verify", name]), 1),
        (lambda: main(["convert", name, str(path.with_name("other.safetensors"))]), 1),
        (lambda: main(["plan", "c3d", "--source", name]), 1),
    ):
        assert run() == status
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
    with pytest.raises(weights.WeightsError, match="crop: 400"):
        loop.initial_variables(
            "c3d", models.build("c3d", num_classes=3), jax.random.key(0), None, name
        )
    assert os.listdir(path.parent) == [path.name]


def test_names_from_a_file_are_printed_without_control_characters(path, tensors, capsys):
    path.write_bytes(
        file_of(
            tensors, INFO | {"classes": ["\x1b[2Ja", "b\nb", "c"], "source": "here\r\x1b]0;x\x07"}
        )
    )
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.endswith("; here\\r\\x1b]0;x\\x07\n")
    classes = weights.read(path)[1].classes
    report = predict._report("v.mp4", np.array([3.0, 2.0, 1.0]), 16, classes, 3, False)
    assert [line.split()[0] for line in report.splitlines()[1:]] == [r"\x1b[2Ja", r"b\nb", "c"]


VALUES = (
    None,
    True,
    0,
    -1,
    3,
    2**63,
    10**30,
    0.5,
    1e300,
    float("nan"),
    "",
    "c3d",
    "\x1b",
    [],
    [1, 2],
    [[]],
    {},
    "F16",
)


def changed(value, rng):
    """A copy of a JSON value in which one entry is changed, added, renamed or removed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        name = rng.choice(list(items))
        action = rng.choice(["change", "change", "change", "remove", "rename"])
        old = items.pop(name)
        if action == "change":
            items[name] = changed(old, rng)
        elif action == "rename":
            items[str(rng.choice(VALUES))] = old
        return items if isinstance(value, dict) else list(items.values())
    return rng.choice(VALUES)


def test_any_file_gives_right_values_or_an_error_of_one_line(path, tensors):
    good, read = file_of(tensors), 0
    start = 8 + struct.unpack("<Q", good[:8])[0]
    for seed in range(300):
        rng = random.Random(seed)
        version = rng.choice([2, 3])
        kind = rng.choice(["bit", "cut", "info", "info", "header", "header"])
        if kind == "bit":
            position = rng.randrange(rng.choice([start, len(good)]))
            bad = (
                good[:position]
                + bytes([good[position] ^ 1 << rng.randrange(8)])
                + good[position + 1 :]
            )
        elif kind == "cut":
            bad = good[: rng.randrange(len(good))]
        elif kind == "info":
            bad = file_of(tensors, changed(INFO, rng), version)
        else:
            name = rng.choice(list(tensors))
            entry = {"dtype": "F32", "shape": list(tensors[name].shape)}
            entry = changed(entry, rng)
            bad = file_of(
                tensors,
                INFO,
                version,
                {name: entry if isinstance(entry, dict) else {"shape": entry}},
            )
        path.write_bytes(bad)
        try:
            found, _ = weights.read(path)
        except weights.WeightsError as error:
            assert str(error).startswith(str(path)) and str(error).isprintable(), seed
        else:
            read += 1
            found = named_leaves(found)
            assert found.keys() == tensors.keys(), seed
            for name, value in tensors.items():
                np.testing.assert_array_equal(found[name], value)
    assert 10 < read < 100
