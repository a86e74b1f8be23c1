"""The command that exports networks."""

import errno
import importlib.util
import pathlib

import onnx
import pytest
from support import small_exports

from i3d_jax.export import __main__ as command


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Weights of small networks, by name."""
    folder = tmp_path_factory.mktemp("networks")
    return {name: small_exports.save(folder, name) for name in ("i3d", "inception", "c3d")}


def mistake(capsys, *arguments):
    """The one line on stderr of a command that ends with status 2."""
    try:
        status = command.main([*map(str, arguments)])
    except SystemExit as end:
        status = end.code
    out, errors = capsys.readouterr()
    assert status == 2 and out == "" and errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize("name", ["i3d", "inception"])
def test_onnx_has_all_sizes_open_and_a_line_says_so(name, networks, tmp_path, capsys):
    out = tmp_path / "x.onnx"
    assert command.main([networks[name], "--to", "onnx", "--out", str(out)]) == 0
    shape = {
        "i3d": "video [batch, 3, time, height, width]",
        "inception": "images [batch, 3, height, width]",
    }[name]
    line = f"{out}: {name}, {shape} -> logits, features, "
    assert capsys.readouterr().out.startswith(line)
    onnx.checker.check_model(onnx.load(out))


def test_sizes_that_are_not_open_are_those_of_the_flags(networks, tmp_path, capsys):
    for flags, shape in (
        (["--dynamic", "batch", "--frames", "16", "--size", "48x64"], "[batch, 3, 16, 48, 64]"),
        (["--frames", "16"], "[batch, 3, 16, height, width]"),
        (["--dynamic", "none"], "[1, 3, 64, 32, 32]"),
    ):
        out = str(tmp_path / "x.onnx")
        assert command.main([networks["i3d"], "--to", "onnx", "--out", out, *flags]) == 0
        assert f"video {shape} ->" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name,flags,words",
    [
        ("i3d", "--dynamic batch,depth", "'depth' is no dimension; there are batch, time, "),
        ("i3d", "--dynamic time --frames 16", "time cannot be open: --frames sets it"),
        ("i3d", "--dynamic width --size 48", "width cannot be open: --size sets it"),
        ("i3d", "--frames 8", "i3d: 8 frames, wanted at least 9"),
        ("i3d", "--size 0", "'0' is not a positive whole number"),
        ("inception", "--dynamic time", "time cannot be open: inception takes images"),
        ("inception", "--frames 16", "--frames: inception takes images, which have no time"),
        ("c3d", "--size 48", "--size: c3d takes 32x32 pixels only"),
        ("c3d", "--frames 17", "17 frames, wanted at least 16, a multiple of 16"),
    ],
)
def test_mistakes_are_one_line_and_status_2(name, flags, words, networks, tmp_path, capsys):
    out = tmp_path / "x.onnx"
    arguments = [networks[name], "--to", "onnx", "--out", out, *flags.split()]
    assert words in mistake(capsys, *arguments)
    assert [*tmp_path.iterdir()] == []


def test_files_that_are_not_there_are_named(networks, tmp_path, capsys):
    rest = "--to", "onnx", "--out"
    assert "no such file" in mistake(capsys, tmp_path / "w.safetensors", *rest, tmp_path / "x")
    out = tmp_path / "none" / "x.onnx"
    assert f"{out}: its folder does not exist" in mistake(capsys, networks["i3d"], *rest, out)
    assert f"{tmp_path}: is a folder" in mistake(capsys, networks["i3d"], *rest, tmp_path)


@pytest.mark.parametrize("to,package", [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_package_that_is_missing_is_named(to, package, networks, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    line = mistake(capsys, networks["i3d"], "--to", to, "--out", tmp_path / "x")
    assert f"needs {package}, which is not installed: pip install {package}" in line


def test_a_file_is_replaced_only_by_a_whole_one(networks, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.onnx"
    out.write_text("before")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", full)
        line = mistake(capsys, networks["i3d"], "--to", "onnx", "--out", out)
    assert f"{out}: No space left on device" in line
    assert out.read_text() == "before" and [*tmp_path.iterdir()] == [out]
    assert command.main([networks["i3d"], "--to", "onnx", "--out", str(out)]) == 0
    onnx.checker.check_model(onnx.load(out))
