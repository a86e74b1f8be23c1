"""Files that are never seen half-written, notes on what a folder is of, and where downloads are kept."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from typing import Any

import filelock


def cache() -> pathlib.Path:
    """The folder for what was downloaded.

    The environment variable I3D_JAX_CACHE names it. Without one it is `i3d_jax` in the folder that XDG_CACHE_HOME names, or in
    `~/.cache`.

    Raises:
      OSError: there is no home directory, as in some containers.
    """
    if folder := os.environ.get("I3D_JAX_CACHE"):
        return pathlib.Path(folder)
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute():  # Else the variable does not count, says the XDG Base Directory Specification.
        return caches / "i3d_jax"
    try:
        return pathlib.Path.home() / ".cache" / "i3d_jax"
    except RuntimeError:
        raise OSError("there is no home directory for the cache: have I3D_JAX_CACHE name a folder") from None


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    The block writes a file there or, where `path` does not exist, a folder. Its name says whose it is, and is short: that of
    `path` may be as long as the system allows. An OSError names `path`.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    temporary = path.with_name(f"{_prefix()}{os.getpid()}.{threading.get_ident()}.{digest}")
    try:
        with named(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def named(path: pathlib.Path, temporary: pathlib.Path | None = None) -> Iterator[None]:
    """Has an OSError of the block name `path` if it names no file, as on a full disk, or one that begins with `temporary`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or temporary and str(error.filename).startswith(str(temporary)):
            error.strerror = error.strerror or str(error)
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def locked(path: pathlib.Path, busy: Exception, patience: float = 0) -> Iterator[None]:
    """Holds a lock, a file of its own; a process that dies lets go of it.

    Args:
      busy: raised if another process has held it for `patience` seconds (-1: waits for ever).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except filelock.Timeout:
        raise busy from None
    try:
        yield
    finally:
        lock.release()


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file below a folder, by a name that comes from outside, with "/".

    Raises:
      ValueError: the name leads elsewhere, or to nothing.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or not name.isprintable() or "\\" in name:
        raise ValueError(f"{name!r} is no name of a file below a folder")
    return folder / name


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the temporary files below a folder of processes on this machine that were killed."""
    for path in folder.rglob(f"{_prefix()}*"):
        process = path.name.removeprefix(_prefix()).partition(".")[0]
        if process.isdigit() and not _alive(int(process)):
            _remove(path)


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a file for reading; at once, whatever it is.

    Raises:
      OSError: it cannot be opened, or is a pipe or a device, which could be waited for without an end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def _prefix() -> str:
    return f".{socket.gethostname()}."


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of a file, none if it is not there; a last one that was cut off by a kill is removed from it."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode().splitlines()


def note(path: pathlib.Path, settings: dict) -> None:
    """Notes in a file what its folder is of or, if it exists, makes sure that it says the same.

    Raises:
      ValueError: it says something else, or is damaged.
      OSError: it cannot be read or written.
    """
    if path.exists():
        earlier = read_json(path)
        other = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
        if other:
            raise ValueError(
                f"{path.parent} has results of other settings: {other[0]} is {earlier.get(other[0])!r} there and "
                f"{settings.get(other[0])!r} here; use another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def write_json(path: pathlib.Path, value: Any) -> None:
    with replacing(path) as written:
        written.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict:
    """Raises a ValueError if the file is not whole."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: damaged") from None
