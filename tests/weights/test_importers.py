"""Weights of PyTorch ports of I3D, in our network."""

import dataclasses

import jax
import numpy as np
import pytest
from support.torch_files import FORMS, as_zip, pickled, written

from i3d_jax import labels, models, weights
from i3d_jax.inflate import named_leaves
from i3d_jax.weights import importer, importers, metadata
from i3d_jax.weights.__main__ import main
from i3d_jax.weights.i3d_names import KINETICS_I3D_PYTORCH, MODULES, PYTORCH_I3D, Names

PORTS = {
    "pytorch_i3d": Names(PYTORCH_I3D, "bn"),
    "kinetics_i3d_pytorch": Names(KINETICS_I3D_PYTORCH, "batch3d"),
}
ORIGINS = {
    "pytorch_i3d": "I3D of pytorch-i3d",
    "kinetics_i3d_pytorch": "I3D of kinetics_i3d_pytorch",
}
# Logits of PyTorch 2.13.0, from experiments/benchmarks/import_parity.py: width 1/32, 5 classes,
# flow, epsilon 1e-5, and the weights of `draw` with seed 0.
GOLDEN = [1.200070, 3.690706, 2.710037, -0.497326, 1.981159]
SMALL = weights.Info("i3d", tuple("abcde"), {"width": 1 / 32}, {"flow": (250, 1)})


def names_and_shapes(port, info):
    """The tensors of a port's file, by our network's shapes."""
    found = {}
    for path, shape in metadata.variable_shapes(info).items():
        is_kernel = path.endswith("kernel")
        found[port.tensor(path)] = (shape[4], shape[3], *shape[:3]) if is_kernel else shape
        if path.endswith("conv/kernel"):
            found[port.scale(path)] = shape[-1:]
    return found


def draw(shapes, seed):
    """As in experiments/benchmarks/import_parity.py."""
    rng, drawn = np.random.RandomState(seed), {}
    for name, shape in sorted(shapes.items()):
        if len(shape) == 5:
            value = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith("var"):
            value = rng.uniform(0.5, 2, shape)
        elif name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape) * rng.choice([1, 1, 1, -1], shape)
        else:
            value = rng.uniform(-0.3, 0.7, shape)
        drawn[name] = value.astype(np.float32)
    return drawn


@pytest.fixture(scope="module")
def drawn():
    return draw(names_and_shapes(PORTS["pytorch_i3d"], SMALL), 0)


def unscaled(port, info, seed=0):
    """Tensors of a port whose scales are ones, as those of converted files."""
    drawn = draw(names_and_shapes(port, info), seed)
    return {
        name: np.ones_like(value) if name.endswith(f"{port.norm}.weight") else value
        for name, value in drawn.items()
    }


def as_port(port, variables):
    """Variables of ours as a port's tensors, with scales of ones."""
    tensors = {}
    for path, leaf in named_leaves(variables).items():
        is_kernel = path.endswith("kernel")
        tensors[port.tensor(path)] = leaf.transpose(4, 3, 0, 1, 2) if is_kernel else leaf
        if path.endswith("conv/kernel"):
            tensors[port.scale(path)] = np.ones(leaf.shape[-1], np.float32)
    return tensors


@pytest.mark.parametrize("port", PORTS)
def test_names_are_those_of_the_ports(port, shared_data):
    lines = (shared_data / "states" / f"{port}.txt").read_text().splitlines()
    listed = dict(line.split(" ", 1) for line in lines)
    info = weights.Info("i3d", labels.names("kinetics_400"))
    ours = {name: str(tuple(shape)) for name, shape in names_and_shapes(PORTS[port], info).items()}
    counters = {name for name in listed if name.endswith("num_batches_tracked")}
    assert len(counters) == 57 and {name: listed[name] for name in set(listed) - counters} == ours
    matching = [row for row in importers.IMPORTERS if row.matches(set(listed))]
    assert [row.origin for row in matching] == [ORIGINS[port]]


def test_logits_are_those_of_pytorch(tmp_path, drawn):
    path = tmp_path / "x.pt"
    path.write_bytes(written("old", drawn))
    variables, info, notes = weights.read_with_notes(path)
    assert (info.stream, len(info.classes)) == ("flow", 5)
    assert any("57 of 57 batch norms have a trained scale" in note for note in notes)
    clip = np.random.RandomState(1).uniform(-1, 1, (1, 17, 40, 33, 2)).astype(np.float32)
    info = importer.with_epsilon(info, 1e-5)
    model = models.build("i3d", num_classes=5, **info.options)
    logits = jax.jit(model.apply)(variables, clip)[0]
    np.testing.assert_allclose(logits, GOLDEN, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", [[1.5, -0.5, 0, 1e-3]])
def test_a_folded_scale_gives_the_outputs_of_the_scale(scale):
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((3, 4)), rng.standard_normal((10, 3))
    mean, var, bias = rng.standard_normal((3, 4)) ** 2
    root = np.sqrt(var + 1e-3)
    wanted = np.array(scale) * (x @ kernel - mean) / root + bias
    kernel, mean = importer.fold_scale(kernel, mean, np.array(scale))
    np.testing.assert_allclose((x @ kernel - mean) / root + bias, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("port", PORTS)
def test_files_of_all_formats_give_the_same_variables(tmp_path, form, port):
    port = PORTS[port]
    tensors = unscaled(port, SMALL)
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.array(3)
        for name in tensors
        if name.endswith("running_mean")
    }
    (tmp_path / "x.pt").write_bytes(written(form, tensors | counters))
    variables, info, notes = weights.read_with_notes(tmp_path / "x.pt")
    assert not any("scale" in note for note in notes)
    leaves = named_leaves(variables)
    for path, leaf in leaves.items():
        wanted = tensors[port.tensor(path)]
        if path.endswith("kernel"):
            wanted = wanted.transpose(2, 3, 4, 1, 0)
        np.testing.assert_array_equal(leaf, wanted, path)
    network, again, _ = weights.network(tmp_path / "x.pt")
    assert network.num_classes == 5 and info.classes == tuple(f"class {n}" for n in range(5))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_all_that_is_wrong_is_one_error(tmp_path, drawn):
    wrong = dict(drawn)
    del wrong["Mixed_3b.b0.bn.bias"], wrong["Mixed_5c.b3b.conv3d.weight"]
    wrong["extra"] = np.zeros(2, np.float32)
    wrong["Conv3d_2b_1x1.bn.weight"] = np.zeros(7, np.float32)
    wrong["Conv3d_2c_3x3.bn.weight"] = np.zeros(6, np.int32)
    (tmp_path / "x.pt").write_bytes(written("zip", wrong))
    with pytest.raises(weights.WeightsError) as caught:
        weights.read(tmp_path / "x.pt")
    text = str(caught.value)
    assert "x.pt (I3D of pytorch-i3d): does not fit I3D: " in text
    for part in (
        "Mixed_3b.b0.bn.bias: found nothing, wanted (2,)",
        "Mixed_5c.b3b.conv3d.weight: found nothing, wanted (4, 26, 1, 1, 1)",
        "extra: found (2,), wanted nothing",
        "Conv3d_2b_1x1.bn.weight: found (7,), wanted (2,)",
        "Conv3d_2c_3x3.bn.weight: found int32(6,), wanted (6,)",
    ):
        assert part in text


def test_without_its_first_or_last_layer_a_file_is_compared_with_the_release(tmp_path, drawn):
    for missing in "Conv3d_1a_7x7.conv3d.weight", "logits.conv3d.bias":
        tensors = {name: value for name, value in drawn.items() if name != missing}
        (tmp_path / "x.pt").write_bytes(written("zip", tensors))
        with pytest.raises(weights.WeightsError, match=f"{missing}: found nothing"):
            weights.read(tmp_path / "x.pt")


def test_unknown_networks_are_named_with_those_that_are_known(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(written("zip", {"fc.weight": np.ones((2, 2), np.float32)}))
    assert main(["verify", str(tmp_path / "x.pt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "its 1 tensors (fc.weight, ...) are of no network known here" in line
    assert "I3D of pytorch-i3d; I3D of kinetics_i3d_pytorch" in line


def test_the_format_is_told_by_the_first_bytes_and_only_then_by_the_name(tmp_path, drawn):
    (tmp_path / "weights").write_bytes(written("old", drawn))
    (tmp_path / "x.ckpt").write_bytes(written("zip", drawn))
    for name in "weights", "x.ckpt":
        assert weights.read(tmp_path / name)[1].model == "i3d"
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(weights.WeightsError, match="x.pth: .*pickle"):
        weights.read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "port,epsilon", [("pytorch_i3d", "0.001"), ("kinetics_i3d_pytorch", "1e-5")]
)
def test_epsilon_is_the_projects_and_said(tmp_path, capsys, port, epsilon):
    path = tmp_path / "x.pt"
    path.write_bytes(written("zip", unscaled(PORTS[port], SMALL)))
    network, _, _ = weights.network(path)
    assert network.norm_epsilon == float(epsilon)
    assert main(["verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"norm_epsilon is {epsilon}, as in" in out and "--norm-epsilon" in out
    assert ("Padding here is TensorFlow's" in out) == (port == "kinetics_i3d_pytorch")


def test_convert_takes_epsilon_and_class_names(tmp_path, capsys):
    source, target = tmp_path / "x.pt", tmp_path / "x.safetensors"
    source.write_bytes(written("zip", unscaled(PORTS["pytorch_i3d"], SMALL)))
    names = tmp_path / "classes.txt"
    names.write_text("one\ntwo\nthree\nfour\nfive\n")
    arguments = ["convert", str(source), str(target), "--classes", str(names)]
    assert main([*arguments, "--norm-epsilon", "1e-5"]) == 0
    found = capsys.readouterr()
    assert found.out == f"{target}\n"
    assert "norm_epsilon is 1e-05, as --norm-epsilon has it." in found.err
    assert "--classes" not in found.err
    network, _, info = weights.network(target)
    assert network.norm_epsilon == 1e-5
    assert info.classes == ("one", "two", "three", "four", "five")
    names.write_text("one\n\n")
    assert main(arguments) == 1
    assert "has 1 names in 2 lines, wanted 5, one per line" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--norm-epsilon", "0"])
    assert exit.value.code == 2


def test_known_files_have_the_epsilon_of_their_project(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    path.write_bytes(written("zip", unscaled(PORTS["pytorch_i3d"], SMALL)))
    known = importers.KNOWN_FILES["a867b87ac3a9097d200598b1d48a1b890d8ec744"]
    monkeypatch.setitem(importers.KNOWN_FILES, importers.git_blob_sha1(path), known)
    _, info, notes = weights.read_with_notes(path)
    assert info.options["norm_epsilon"] == 1e-5
    assert info.source == "i3d_pretrained_400.pt of songweige/TATS: rgb_scratch"
    assert not any("--norm-epsilon" in note for note in notes)


def test_a_blobs_hash_is_gits(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")  # `git hash-object` of this file.
    assert importers.git_blob_sha1(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize("number,named", [(400, True), (600, True), (157, False)])
def test_class_names_are_kinetics_for_its_numbers(number, named, tmp_path):
    info = dataclasses.replace(SMALL, classes=tuple(map(str, range(number))))
    tensors = unscaled(PORTS["pytorch_i3d"], info)
    (tmp_path / "x.pt").write_bytes(written("zip", tensors))
    _, found, notes = weights.read_with_notes(tmp_path / "x.pt")
    wanted = (
        labels.names(f"kinetics_{number}") if named else tuple(f"class {n}" for n in range(157))
    )
    assert found.classes == wanted
    assert any("see --classes" in note for note in notes)


def test_tensors_of_float16_are_read_as_float32(tmp_path, drawn):
    half = {name: value.astype(np.float16) for name, value in drawn.items()}
    (tmp_path / "x.pt").write_bytes(as_zip(*pickled({"state_dict": half})))
    variables, _, notes = weights.read_with_notes(tmp_path / "x.pt")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert any("float16" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("port", PORTS)
def test_rgb_scratch_comes_back_bit_for_bit_from_every_format(shared_data, tmp_path, form, port):
    wanted, release = weights.read(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")
    (tmp_path / "x.pt").write_bytes(written(form, as_port(PORTS[port], wanted)))
    variables, info, notes = weights.read_with_notes(tmp_path / "x.pt")
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)
    assert info == release
    assert any("those of rgb_scratch of deepmind/kinetics-i3d, bit for bit" in n for n in notes)


@pytest.mark.parametrize("scales", [True, False])
def test_a_published_checkpoint_is_known_by_its_tensors_whatever_their_names(
    tmp_path, monkeypatch, scales
):
    port, info = PORTS["pytorch_i3d"], dataclasses.replace(SMALL, footprint={"rgb": (250, 1)})
    tensors = unscaled(port, info)
    listed = [f"{port.module(module)}." for module in ("Logits", *MODULES[:-1])]
    other = {}
    for number, module in enumerate(listed):
        for name, value in tensors.items():
            if name.startswith(module) and (scales or not name.endswith("bn.weight")):
                other[f"m{number}.{name.removeprefix(module)}"] = value
    (tmp_path / "x.pt").write_bytes(written("script", other))
    with pytest.raises(weights.WeightsError, match="are of no network known here"):
        weights.read(tmp_path / "x.pt")
    (tmp_path / "named.pt").write_bytes(written("zip", tensors))
    variables, _ = weights.read(tmp_path / "named.pt")
    entry = dataclasses.replace(
        weights.PUBLISHED["rgb_scratch"], tensors_sha256=weights.fingerprint(variables)
    )
    monkeypatch.setitem(weights.PUBLISHED, "rgb_scratch", entry)
    again, info, notes = weights.read_with_notes(tmp_path / "x.pt")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert info.source == "rgb_scratch of deepmind/kinetics-i3d"
    assert notes[0] == "It is I3D by other names, in TorchScript."
