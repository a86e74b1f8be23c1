"""Finds the files of annotated clips by their names without extension, anywhere below a folder."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from i3d_jax.datasets.annotations import SPLITS, AnnotationError, Row, other_spelling, unique
from i3d_jax.video import listing
from i3d_jax.video.listing import VIDEO

# Files that download tools and later steps leave beside videos, under the same names.
NOT_VIDEO = {
    ".json",
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".txt",
    ".vtt",
    ".srt",
    ".csv",
    ".part",
    ".ytdl",
}
NOT_VIDEO |= {".m4a", ".mp3", ".wav", ".npy", ".npz"}


class Clip(NamedTuple):
    """One annotated clip and its files.

    Attributes:
      id: unique in its data set.
      label: its class.
      split: "train", "validation" or "test".
      seconds: duration that the annotation gives; None: the whole file.
      paths: its video files, the preferred one first. The first that can be used is used. Empty:
        the clip is missing.
      flows: its flow files, the preferred one first.
      broken: those of `paths` that cannot be read as files, each with the reason (see
        `listing.list_files`).
    """

    id: str
    label: str
    split: str
    seconds: float | None
    paths: tuple[str, ...] = ()
    flows: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def has_file(self) -> bool:
        """Whether one of its paths can be read as a file."""
        return len(self.paths) > len(self.broken)


class FolderFiles(NamedTuple):
    """The files below a folder.

    Attributes:
      files: file names without extension, each with its sorted paths relative to the folder, with
        "/".
      broken: those of the paths that cannot be read as files, each with the reason (see
        `listing.list_files`).
    """

    files: dict[str, list[str]]
    broken: dict[str, str]


def find(folder: Path) -> FolderFiles:
    """Lists everything below a folder (see `listing.list_files`).

    Raises:
      AnnotationError: a folder is missing or cannot be read.
    """
    found = FolderFiles({}, {})
    try:
        for path, reason in listing.list_files(folder).items():
            found.files.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)
            if reason:
                found.broken[path] = reason
    except OSError as error:
        raise AnnotationError(f"{error.filename}: {error.strerror}") from error
    return found


def clips(
    rows: Iterable[Row], folder: Path, flow: Path | None = None, found: FolderFiles | None = None
) -> list[Clip]:
    """Joins the first row of each id with its files.

    If several files have the name, preferred are, in this order: files with a video's extension,
    files below a folder named as the row's label, files below a folder named as its split, and the
    alphabetically first path.

    Args:
      rows: the annotations.
      folder: folder of the videos, in any layout.
      flow: folder of flow files, named as the videos are. A clip without such a file has no flow.
      found: `find(folder)`, if the caller has it already.
    """
    found = find(folder) if found is None else found
    flow_files = {} if flow is None else find(flow).files
    prefix, flow_prefix = os.path.join(folder, ""), "" if flow is None else os.path.join(flow, "")
    joined = []
    for row in unique(rows):
        files = _ranked_files(row, found.files)
        paths = tuple(prefix + path for path in files)
        flows = tuple(flow_prefix + path for path in _ranked_files(row, flow_files))
        broken = tuple(
            (prefix + path, found.broken[path]) for path in files if path in found.broken
        )
        joined.append(Clip(row.id, row.label, row.split, row.seconds, paths, flows, broken))
    return joined


def _ranked_files(row: Row, files: Mapping[str, list[str]]) -> list[str]:
    """The paths of a row's videos, or of its flow, the preferred one first.

    Args:
      row: the annotation.
      files: see `FolderFiles`.
    """

    def penalties(path: str) -> tuple[bool, bool, bool]:
        below_split = any(SPLITS.get(name) == row.split for name in path.split("/")[:-1])
        return _extension(path) not in VIDEO, label_of(path, {row.label}) is None, not below_split

    paths = candidates(row.stem, files)
    if len(paths) < 2:
        return paths
    first, *others = sorted(paths, key=penalties)
    if "/" in row.id:
        # Names are unique within a class only: elsewhere the same name is another video's.
        others = [path for path in others if label_of(path, {row.label})]
    return [first, *others]


def candidates(stem: str, files: Mapping[str, list[str]]) -> list[str]:
    """The paths of a name that may be videos.

    Args:
      stem: a file's name without extension.
      files: see `FolderFiles`.
    """
    names = dict.fromkeys((stem, other_spelling(stem)))
    paths = [path for name in names for path in files.get(name, ())]
    return [path for path in paths if _extension(path) not in NOT_VIDEO]


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def label_of(path: str, labels: set[str]) -> str | None:
    """The class that the folders of a relative path name, the innermost if there are several.

    Args:
      path: with "/".
      labels: the classes. A folder may write one with underscores for spaces, or the reverse.
    """
    for name in reversed(path.split("/")[:-1]):
        for label in (name, name.replace("_", " "), name.replace(" ", "_")):
            if label in labels:
                return label
    return None


def unused_files(rows: Iterable[Row], files: Mapping[str, list[str]]) -> list[str]:
    """The sorted paths that no row names, without companion files (`NOT_VIDEO`).

    Args:
      rows: the annotations.
      files: see `FolderFiles`.
    """
    named = {row.stem for row in rows}
    unused = (stem for stem in files if stem not in named and other_spelling(stem) not in named)
    return sorted(
        path for stem in unused for path in files[stem] if _extension(path) not in NOT_VIDEO
    )
