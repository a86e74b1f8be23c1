"""StableHLO files: the programs in them give our networks' outputs, also without this package."""

import json
import os
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from jax import export as jax_export
from support import small_exports, small_networks

from i3d_jax import weights
from i3d_jax.export import description, stablehlo
from i3d_jax.export.description import DIMENSIONS, ExportError

# Loads and runs a program as a stranger does.
STRANGER = """
import sys, zipfile, numpy, jax
from jax import export
with zipfile.ZipFile(sys.argv[1]) as archive:
    program = export.deserialize(bytearray(archive.read("program.bin")))
outputs = program.call(numpy.load(sys.argv[2]))
assert not {"i3d_jax", "flax"} & {*sys.modules}
numpy.savez(sys.argv[3], **outputs)
"""


def write(path, folder, dynamic=("batch",), **sizes):
    """Exports weights; returns the program, and its description."""
    file = folder / "x.zip"
    stablehlo.write(file, description.load(path, dynamic, **sizes))
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["program.bin", "about.json"]
        program = jax_export.deserialize(bytearray(archive.read("program.bin")))
        return program, json.loads(archive.read("about.json"))


def clip(*shape):
    return np.random.default_rng(1).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def ours(path, video):
    network, variables, _ = weights.network(path)
    return jax.jit(lambda video: network.apply(variables, video, endpoints=True))(video)


def assert_same(found, path, video):
    """Equal to the network itself up to 1e-5 of the largest value."""
    logits, ends = ours(path, video)
    wanted = {"logits": np.asarray(logits)}
    if "AvgPool" in ends:
        wanted["features"] = np.squeeze(np.asarray(ends["AvgPool"]), (-3, -2))
    assert {*found} == {*wanted}
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize(
    "name,dynamic,sizes,shape",
    [
        ("i3d", ("batch", "time"), {"size": (32, 40)}, (2, 17, 32, 40)),
        ("i3d_r50", DIMENSIONS, {}, (2, 5, 65, 78)),
        ("resnet50", ("batch",), {}, (3, 32, 32)),
        ("c3d", ("batch",), {}, (3, 16, 32, 32)),
    ],
)
def test_a_program_gives_our_networks_outputs(name, dynamic, sizes, shape, tmp_path):
    path = small_exports.save(tmp_path, name)
    program, _ = write(path, tmp_path, dynamic, **sizes)
    assert program.platforms == ("cpu", "cuda", "tpu")
    video = clip(*shape)
    assert_same(jax.jit(program.call)(video), path, video)


@pytest.mark.slow  # Compiles four Inceptions.
def test_a_program_of_two_streams_takes_both_by_name(tmp_path):
    path = small_exports.save(tmp_path, "two_stream")
    program, about = write(path, tmp_path)
    network, variables, _ = weights.network(path)
    video = small_networks.clip({"rgb": (1, 1), "flow": (2, 1)})
    logits = jax.jit(program.call)(video)["logits"]
    wanted = jax.jit(network.apply)(variables, video)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)
    assert about["inputs"]["flow"]["shape"] == ["batch", 2, 32, 32, 2]


def test_each_platform_has_its_own_forms_where_open_sizes_allow_it(tmp_path):
    """CPUs pool frame by frame in a loop; XLA's own pool has none."""
    path = small_exports.save(tmp_path, "i3d")
    for dynamic, loops in (("time",), True), (("height",), False):
        program = stablehlo.exported(description.load(path, dynamic))
        assert ("stablehlo.while" in program.mlir_module()) is loops


def test_a_program_does_not_say_where_it_was_made_and_is_the_same_each_time(tmp_path):
    path = small_exports.save(tmp_path, "c3d")
    write(path, tmp_path)
    first = (tmp_path / "x.zip").read_bytes()
    assert b".py" not in first and os.fsencode(tmp_path) not in first
    write(path, tmp_path)
    assert (tmp_path / "x.zip").read_bytes() == first


def test_fewer_frames_than_the_network_needs_are_refused(tmp_path):
    path = small_exports.save(tmp_path, "i3d")
    program, about = write(path, tmp_path, ("batch", "time"))
    assert about["inputs"]["video"]["least_frames"] == 9
    with pytest.raises(ValueError, match="shapes"):
        program.call(clip(1, 8, 32, 32))


def test_a_file_carries_classes_preprocessing_and_source(tmp_path):
    path = small_exports.save(tmp_path, "i3d_r50")
    _, about = write(path, tmp_path, ("batch", "height", "width"))
    assert about["classes"] == list("abcdefg")
    assert about["preprocessing"] == {
        "frames_per_second": 25.0,
        "short_side": 40,
        "centre_crop": 32,
    }
    assert (about["source"], about["model"], about["jax"]) == (
        "a test",
        "i3d_r50",
        jax.__version__,
    )
    assert about["inputs"]["video"]["shape"] == ["batch", 8, "height", "width", 3]
    assert about["inputs"]["video"]["least_side"] == 65
    assert about["weights"] == weights.fingerprint(weights.load(path))


def test_sizes_that_jax_cannot_leave_open_are_named(tmp_path):
    path = small_exports.save(tmp_path, "c3d")
    with pytest.raises(ExportError, match="c3d: JAX cannot leave batch, time open together"):
        write(path, tmp_path, ("batch", "time"))


@pytest.mark.slow  # A new process.
def test_a_program_runs_in_a_process_without_this_package(tmp_path):
    path = small_exports.save(tmp_path, "i3d")
    write(path, tmp_path, ("batch", "time"))
    video = clip(2, 17, 32, 32)
    np.save(tmp_path / "video.npy", video)
    files = [str(tmp_path / each) for each in ("x.zip", "video.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", STRANGER, *files], check=True, cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as outputs:
        assert_same(dict(outputs), path, video)


@pytest.mark.slow  # The released network at full size.
def test_the_released_i3d_is_as_large_as_its_weights_and_gives_its_logits(shared_data, tmp_path):
    path = str(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")
    program, _ = write(path, tmp_path, frames=16)
    released = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.load(path)))
    assert abs((tmp_path / "x.zip").stat().st_size / released - 1) < 0.01
    video = clip(1, 16, 224, 224)
    assert_same(jax.jit(program.call)(video), path, video)
