"""Which files the annotated clips have: those of their names without extension, wherever below a folder they lie."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from i3d_jax.datasets.annotations import SPLITS, AnnotationError, Row, respelt, unique
from i3d_jax.video import listing
from i3d_jax.video.listing import VIDEO

# What downloads, and work on them, leave beside videos under the same names.
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
      seconds: that the annotation gives it; None: the whole file.
      paths: its videos, the preferred one first. The first that can be used is; none: the clip is missing.
      flows: the files of its flow, the preferred one first.
      broken: those of `paths` that are no files, each with the reason (see `listing.list_files`).
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
        return len(self.paths) > len(self.broken)


class Found(NamedTuple):
    """What lies below a folder.

    Attributes:
      files: names without extension to sorted paths relative to the folder, with "/".
      broken: those of the paths that are no files, each with the reason (see `listing.list_files`).
    """

    files: dict[str, list[str]]
    broken: dict[str, str]


def videos(folder: Path) -> dict[str, list[str]]:
    """The `files` of `find`."""
    return find(folder).files


def find(folder: Path) -> Found:
    """Lists everything below a folder (see `listing.list_files`).

    Raises:
      AnnotationError: a folder that is missing or cannot be read.
    """
    found = Found({}, {})
    try:
        for path, reason in listing.list_files(folder).items():
            found.files.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)
            if reason:
                found.broken[path] = reason
    except OSError as error:
        raise AnnotationError(f"{error.filename}: {error.strerror}") from error
    return found


def clips(
    rows: Iterable[Row], folder: Path, flow: Path | None = None, found: Found | None = None
) -> list[Clip]:
    """Joins the first row of each id with its files.

    Of several files of one name those come first that are videos by their extension, that lie below a folder of the
    row's label, and that lie below a folder of its split, in this order of importance; then their paths count.

    Args:
      folder: has the videos, in any layout.
      flow: has the flow, in files of the videos' names; where it has none, a clip has no flow.
      found: `find(folder)`, where it is known already.
    """
    found = find(folder) if found is None else found
    flows = {} if flow is None else videos(flow)
    home, flow_home = os.path.join(folder, ""), "" if flow is None else os.path.join(flow, "")
    joined = []
    for row in unique(rows):
        paths = _files(row, found.files)
        broken = tuple((home + path, found.broken[path]) for path in paths if path in found.broken)
        its_flows = tuple(flow_home + path for path in _files(row, flows))
        its_paths = tuple(home + path for path in paths)
        joined.append(Clip(row.id, row.label, row.split, row.seconds, its_paths, its_flows, broken))
    return joined


def _files(row: Row, found: Mapping[str, list[str]]) -> list[str]:
    """The paths of a row's videos, or of its flow, the preferred one first."""

    def penalties(path: str) -> tuple[bool, bool, bool]:
        below_split = any(SPLITS.get(name) == row.split for name in path.split("/")[:-1])
        return _extension(path) not in VIDEO, label_of(path, {row.label}) is None, not below_split

    paths = candidates(row.stem, found)
    if len(paths) < 2:
        return paths
    first, *others = sorted(paths, key=penalties)
    if (
        "/" in row.id
    ):  # Names are unique within their class only: elsewhere they are of other videos.
        others = [path for path in others if label_of(path, {row.label})]
    return [first, *others]


def candidates(stem: str, found: Mapping[str, list[str]]) -> list[str]:
    """The files of a name that may be videos."""
    paths = [path for name in dict.fromkeys((stem, respelt(stem))) for path in found.get(name, ())]
    return [path for path in paths if _extension(path) not in NOT_VIDEO]


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def label_of(path: str, labels: set[str]) -> str | None:
    """The class, with spaces or with underscores, that a relative path's folders name; the innermost of several."""
    for name in reversed(path.split("/")[:-1]):
        for label in (name, name.replace("_", " "), name.replace(" ", "_")):
            if label in labels:
                return label
    return None


def unused_files(rows: Iterable[Row], found: Mapping[str, list[str]]) -> list[str]:
    """The files that are no row's, sorted; those that are not videos by their extension are left out."""
    wanted = {row.stem for row in rows}
    unwanted = (stem for stem in found if stem not in wanted and respelt(stem) not in wanted)
    return sorted(
        path for stem in unwanted for path in found[stem] if _extension(path) not in NOT_VIDEO
    )
