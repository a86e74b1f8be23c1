"""Which files, and which videos by their extension, lie below a folder."""

import os
from pathlib import Path, PurePath

from i3d_jax.files import special_file_kind

VIDEO = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".gif"}
FOLDER, MISSING = "is a folder", "is missing"


class FolderError(ValueError):
    """A folder without videos; the message names it."""


def list_files(folder: Path) -> dict[str, str]:
    """Everything below a folder that is no folder: paths relative to it, with "/", sorted, and why it is no file.

    Hidden files and folders are left out. Links are followed; a folder that can be reached in two ways is listed once.

    Returns:
      by path "" for a file, and the reason for a dangling link, a FIFO, a socket or a device.

    Raises:
      OSError: a folder is missing or cannot be read.
    """
    found: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    # Links come last: a folder should be listed under its own path, not under a link's.
    folders, links = [""], []
    while folders or links:
        if folders:
            below = folders.pop()
        else:
            links.remove(below := min(links))
        place = os.path.join(folder, below)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(place) as inside:
            for entry in inside:
                if entry.name.startswith(".") or entry.name == "lost+found":
                    continue
                path, reason = below + entry.name, _not_a_file(entry)
                if reason == FOLDER:
                    (links if entry.is_symlink() else folders).append(f"{path}/")
                else:
                    found[path] = reason
    return dict(sorted(found.items()))


def _not_a_file(entry: os.DirEntry) -> str:
    """Why an entry cannot be read as a file; empty if it can."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return ""
        return f"is no file: {special_file_kind(entry.stat().st_mode)}"
    except OSError:  # There is nothing, or the link leads to itself.
        return f"{MISSING}: a dangling link to {os.readlink(entry.path)}"


def find_videos(folder: Path, but: Path | None = None) -> list[PurePath]:
    """The videos below a folder, by their extensions: paths relative to it, sorted.

    Args:
      but: a folder whose files are left out.

    Raises:
      FolderError: there are none.
      OSError: as `list_files`.
    """
    left_out = None if but is None else os.path.join(os.path.realpath(but), "")
    found = [
        PurePath(name) for name in list_files(folder) if os.path.splitext(name)[1].lower() in VIDEO
    ]
    if left_out is not None:
        found = [name for name in found if not os.path.realpath(folder / name).startswith(left_out)]
    if not found:
        raise FolderError(f"{folder}: has no videos")
    return found
