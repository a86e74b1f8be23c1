"""Which files the annotated clips have: those of their names without extension, wherever below a folder they lie."""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from i3d_jax.datasets.annotations import SPLITS, AnnotationError, Row, respelt, unique

VIDEO = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".gif"}
# What downloads, and work on them, leave beside videos under the same names.
NOT_VIDEO = {".json", ".jpg", ".jpeg", ".png", ".webp", ".txt", ".vtt", ".srt", ".csv", ".part", ".ytdl"}
NOT_VIDEO |= {".m4a", ".mp3", ".wav", ".npy", ".npz"}


class Clip(NamedTuple):
    """One annotated clip and its files.

    Attributes:
      seconds: that the annotation gives it; None: the whole file.
      paths: its videos, the preferred one first. The first that can be used is; none: the clip is missing.
      flows: the files of its flow, the preferred one first.
      broken: those of `paths` that are no files, each with the reason (see `Listing`).
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


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
      files: names without extension to sorted paths relative to the folder, with "/".
      broken: those of the paths that are no files, each with the reason: dangling links, FIFOs, sockets and devices.
    """

    files: dict[str, list[str]]
    broken: dict[str, str]


def videos(folder: Path) -> dict[str, list[str]]:
    """The `files` of `listing`."""
    return listing(folder).files


def listing(folder: Path) -> Listing:
    """Lists everything below a folder that is no folder.

    Hidden files and folders are left out. Links are followed; a folder that can be reached in two ways is listed once.

    Raises:
      AnnotationError: a folder that is missing or cannot be read.
    """
    found = Listing({}, {})
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
                    path, reason = below + entry.name, _not_a_file(entry)
                    if reason == FOLDER:
                        (links if entry.is_symlink() else folders).append(f"{path}/")
                        continue
                    found.files.setdefault(os.path.splitext(entry.name)[0], []).append(path)
                    if reason:
                        found.broken[path] = reason
        except OSError as error:
            raise AnnotationError(f"{place}: {error.strerror}") from error
    for paths in found.files.values():
        paths.sort()
    return found


FOLDER, MISSING = "is a folder", "is missing"


def _not_a_file(entry: os.DirEntry) -> str:
    """Why an entry cannot be read as a file; empty if it can."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return ""
        mode = entry.stat().st_mode
    except OSError:  # There is nothing, or the link leads to itself.
        return f"{MISSING}: a dangling link to {os.readlink(entry.path)}"
    kinds = {stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    return f"is no file: {next((name for test, name in kinds.items() if test(mode)), 'a device')}"


def clips(
    rows: Iterable[Row], folder: Path, flow: Path | None = None, found: Listing | None = None
) -> list[Clip]:
    """Joins the first row of each id with its files.

    Of several files of one name those come first that are videos by their extension, that lie below a folder of the
    row's label, and that lie below a folder of its split, in this order of importance; then their paths count.

    Args:
      folder: has the videos, in any layout.
      flow: has the flow, in files of the videos' names; where it has none, a clip has no flow.
      found: `listing(folder)`, where it is known already.
    """
    found = listing(folder) if found is None else found
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
    if "/" in row.id:  # Names are unique within their class only: elsewhere they are of other videos.
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


def others(rows: Iterable[Row], found: Mapping[str, list[str]]) -> list[str]:
    """The files that are no row's, sorted; those that are not videos by their extension are left out."""
    wanted = {row.stem for row in rows}
    unwanted = (stem for stem in found if stem not in wanted and respelt(stem) not in wanted)
    return sorted(path for stem in unwanted for path in found[stem] if _extension(path) not in NOT_VIDEO)
