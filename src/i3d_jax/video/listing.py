"""Lists the files below a folder, and the videos among them by their extension."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from i3d_jax.files import special_file_kind

VIDEO = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".gif"}
FOLDER, MISSING = "is a folder", "is missing"


class FolderError(ValueError):
    """A folder without videos, or a list without paths; the message names it."""


def list_files(folder: Path) -> dict[str, str]:
    """Lists everything below a folder but folders themselves.

    Hidden files and folders are left out. Links are followed. A folder that can be reached in two
    ways is listed once.

    Args:
      folder: the folder to list.

    Returns:
      a dict, sorted by path. Keys are paths relative to the folder, with "/". A file's value is "".
      The value for a dangling link, a FIFO, a socket or a device is the reason why it cannot be
      read.

    Raises:
      OSError: a folder is missing or cannot be read.
    """
    found: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    # Links come last, so that a folder is listed under its own path, not under a link's.
    folders, links = [""], []
    while folders or links:
        if folders:
            below = folders.pop()
        else:
            links.remove(below := min(links))
        path_below = os.path.join(folder, below)
        status = os.stat(path_below)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path_below) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "lost+found":
                    continue
                path, reason = below + entry.name, _unreadable_reason(entry)
                if reason == FOLDER:
                    (links if entry.is_symlink() else folders).append(f"{path}/")
                else:
                    found[path] = reason
    return dict(sorted(found.items()))


def _unreadable_reason(entry: os.DirEntry) -> str:
    """Says why an entry cannot be read as a file; "" if it can."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return ""
        return f"is no file: {special_file_kind(entry.stat().st_mode)}"
    except OSError:  # The target is missing, or the link leads to itself.
        return f"{MISSING}: a dangling link to {os.readlink(entry.path)}"


def find_videos(folder: Path, exclude: Path | None = None) -> list[PurePath]:
    """Lists the videos below a folder, by their extensions: paths relative to it, sorted.

    Args:
      folder: the folder to search.
      exclude: a folder whose files are left out.

    Raises:
      FolderError: there are no videos.
      OSError: as `list_files`.
    """
    excluded = None if exclude is None else os.path.join(os.path.realpath(exclude), "")
    found = [
        PurePath(name) for name in list_files(folder) if os.path.splitext(name)[1].lower() in VIDEO
    ]
    if excluded is not None:
        found = [name for name in found if not os.path.realpath(folder / name).startswith(excluded)]
    if not found:
        raise FolderError(f"{folder}: has no videos")
    return found


def expand_names(names: Sequence[str], exclude: Path | None = None) -> list[tuple[str, PurePath]]:
    """Lists the videos that are named, and a path for what is made of each.

    Files of a folder keep their paths below it. Single files, and those of lists, keep their
    folders below the longest folder that they share. So equal names in different folders stay
    apart.

    Args:
      names: videos, folders of them, or "@LIST" for a text file with a path per line, which is
        relative to the list's folder.
      exclude: a folder whose files are left out.

    Returns:
      of each video its path, as it was named, and the relative path, with the video's extension.

    Raises:
      FolderError: a folder has no videos, or a list no paths.
      OSError: a folder or a list cannot be read.
    """
    found: list[tuple[str, PurePath | None]] = []
    for name in names:
        if name.startswith("@"):
            found += [(os.fspath(path), None) for path in read_list(Path(name[1:]))]
        elif os.path.isdir(name):
            inside = find_videos(Path(name), exclude)
            found += [(os.path.join(name, path), path) for path in inside]
        else:
            found.append((name, None))
    folders = [os.path.dirname(os.path.abspath(path)) for path, below in found if below is None]
    shared = os.path.commonpath(folders) if folders else ""
    return [
        (path, below or PurePath(os.path.relpath(os.path.abspath(path), shared)))
        for path, below in found
    ]


def read_list(path: Path) -> list[Path]:
    """Reads a list of videos.

    Args:
      path: of the list, a text file with a path per line. Empty lines are left out.

    Returns:
      the paths; relative ones are taken from the list's folder.

    Raises:
      FolderError: the list is empty, or no text.
      OSError: it cannot be read.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise FolderError(f"{path}: is no text in UTF-8, wanted a path per line") from None
    found = [path.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise FolderError(f"{path}: is an empty list, wanted a path per line")
    return found
