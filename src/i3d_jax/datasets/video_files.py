"""Which files the annotated clips have: those of their names without extension, wherever below a folder they lie."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from i3d_jax.datasets.annotations import SPLITS, AnnotationError, Row, respelt, unique

VIDEO = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".gif"}
# What downloads, and work on them, leave beside videos under the same names.
NOT_VIDEO = {".json", ".jpg", ".jpeg", ".png", ".webp", ".txt", ".vtt", ".srt", ".csv", ".part", ".ytdl"}
NOT_VIDEO |= {".m4a", ".mp3", ".wav", ".npy", ".npz"}


class Clip(NamedTuple):
    """One annotated clip and its files."""

    id: str
    label: str
    split: str
    seconds: float | None
    path: str | None  # None: missing.
    flow: str | None = None


def videos(folder: Path) -> dict[str, list[str]]:
    """Every file below a folder: names without extension to sorted paths relative to it, with "/".

    Hidden files and folders are left out. Links are followed; a folder that can be reached in two ways is listed once.

    Raises:
      AnnotationError: a folder that is missing or cannot be read.
    """
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    # Links come last: a folder should be listed under its own path, not under a link's.
    folders, links = [""], []
    while folders or links:
        if folders:
            below = folders.pop()
        else:
            links.remove(below := min(links))
        place = os.path.join(folder, below)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "lost+found":
                        continue
                    kind = _kind(entry)
                    if kind == "folder":
                        (links if entry.is_symlink() else folders).append(f"{below}{entry.name}/")
                    elif kind == "file":
                        stem = os.path.splitext(entry.name)[0]
                        found.setdefault(stem, []).append(below + entry.name)
        except OSError as error:
            raise AnnotationError(f"{place}: {error.strerror}") from error
    for paths in found.values():
        paths.sort()
    return found


def _kind(entry: os.DirEntry) -> str | None:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError:  # A link to itself.
        return None


def clips(
    rows: Iterable[Row], folder: Path, flow: Path | None = None, found: Mapping[str, list[str]] | None = None
) -> list[Clip]:
    """Joins the first row of each id with its files.

    Of several files of one name the first counts that is a video by its extension, that lies below a folder of the
    row's label, and that lies below a folder of its split, in this order of importance.

    Args:
      folder: has the videos, in any layout.
      flow: has the flow, in files of the videos' names; where it has none, a clip's flow is None.
      found: `videos(folder)`, where it is known already.
    """
    found = videos(folder) if found is None else found
    flows = {} if flow is None else videos(flow)
    home, flow_home = os.path.join(folder, ""), "" if flow is None else os.path.join(flow, "")
    joined = []
    for row in unique(rows):
        path, its_flow = _file(row, found), _file(row, flows)
        joined.append(
            Clip(
                row.id,
                row.label,
                row.split,
                row.seconds,
                None if path is None else home + path,
                None if its_flow is None else flow_home + its_flow,
            )
        )
    return joined


def _file(row: Row, found: Mapping[str, list[str]]) -> str | None:
    """The path of a row's video, or of its flow."""
    paths = candidates(row.stem, found)
    if len(paths) < 2:
        return paths[0] if paths else None

    def penalties(path: str) -> tuple[bool, bool, bool]:
        below_split = any(SPLITS.get(name) == row.split for name in path.split("/")[:-1])
        return _extension(path) not in VIDEO, label_of(path, {row.label}) is None, not below_split

    return min(paths, key=penalties)


def candidates(stem: str, found: Mapping[str, list[str]]) -> list[str]:
    """The files of a name that may be videos."""
    paths = found.get(stem) or found.get(respelt(stem), ())
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


def others(rows: Iterable[Row], found: Mapping[str, list[str]]) -> list[str]:
    """The files that are no row's, sorted; those that are not videos by their extension are left out."""
    wanted = {row.stem for row in rows}
    unwanted = (stem for stem in found if stem not in wanted and respelt(stem) not in wanted)
    return sorted(path for stem in unwanted for path in found[stem] if _extension(path) not in NOT_VIDEO)
