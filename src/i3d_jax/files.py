"""Atomic and locked files, files that record a folder's settings, and the folder for downloads."""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import pathlib
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from typing import Any

import filelock


def cache_folder() -> pathlib.Path:
    """The folder for downloads and compiled programs.

    The environment variable I3D_JAX_CACHE names it. Otherwise it is `i3d_jax` in the folder of
    XDG_CACHE_HOME, or in `~/.cache`.

    Raises:
      OSError: there is no home directory, as in some containers.
    """
    if folder := os.environ.get("I3D_JAX_CACHE"):
        return pathlib.Path(folder)
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG Base Directory Specification has relative paths ignored.
    if caches.is_absolute():
        return caches / "i3d_jax"
    try:
        return pathlib.Path.home() / ".cache" / "i3d_jax"
    except RuntimeError:
        raise OSError(
            "there is no home directory for the cache: have I3D_JAX_CACHE name a folder"
        ) from None


TEMPORARY_PREFIX = ".i3d_jax-"  # Of the names of incomplete files.


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path, which replaces `path` if the block succeeds and is removed if not.

    The block writes a file there or, if `path` does not exist, a folder. The temporary name is
    short, since the name of `path` may be as long as the system allows, and unique among
    processes. An OSError names `path`.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        with naming_errors(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def naming_errors(path: pathlib.Path, temporary: pathlib.Path | None = None) -> Iterator[None]:
    """Has an OSError of the block name a file, as an error of a full disk does not.

    Args:
      path: the file to name.
      temporary: names that begin with this are replaced, too.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or temporary and str(error.filename).startswith(str(temporary)):
            error.strerror = error.strerror or str(error)
            error.filename = str(path)
        raise


@contextlib.contextmanager
def locked(path: pathlib.Path, locked_error: Exception, timeout: float = 0) -> Iterator[None]:
    """Holds a lock, which is a file of its own; it is released even if the process dies.

    Args:
      path: the file.
      locked_error: raised if another process holds the lock.
      timeout: seconds to wait for the lock; -1 waits forever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout:
        raise locked_error from None
    try:
        yield
    finally:
        lock.release()


def join_inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Joins a folder and a name from outside, with "/" as separator.

    Raises:
      ValueError: the name leads outside of the folder or to the folder itself, or has characters
        that file names should not have.
    """
    if (
        any(part in ("", ".", "..") for part in name.split("/"))
        or not name.isprintable()
        or "\\" in name
    ):
        raise ValueError(f"{name!r} is no name of a file below a folder")
    return folder / name


@contextlib.contextmanager
def locked_folder(
    folder: pathlib.Path, locked_error: Exception, timeout: float = 0
) -> Iterator[None]:
    """Holds the lock of a folder, `.lock` in it, and removes files that killed processes left.

    Any process that writes to the folder must hold its lock.

    Args:
      folder: the folder.
      locked_error: as in `locked`.
      timeout: as in `locked`.
    """
    with locked(folder / ".lock", locked_error, timeout):
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def shared_folder(folder: pathlib.Path) -> Iterator[None]:
    """Marks a folder as being written to, by any number of processes at the same time.

    Files that killed processes left are removed from it, and from the folders below, if no other
    process is writing.

    Args:
      folder: the folder, which is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        with contextlib.suppress(OSError):  # Another process is writing.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
                remove_leftovers(each)
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def remove_leftovers(folder: pathlib.Path, age: float = 0) -> None:
    """Removes incomplete files, left by killed processes, from a folder.

    Args:
      folder: the folder.
      age: seconds for which a file must have been unchanged. 0 is only for those who hold a lock,
        so that no other process is writing.
    """
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if not age or time.time() - path.stat().st_mtime > age:
                _remove(path)


def special_file_kind(mode: int) -> str | None:
    """Tells files whose reading may block forever, by their mode.

    Returns:
      "a FIFO", "a socket" or "a device"; None for other files.
    """
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode))


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a regular file for reading; never blocks.

    Raises:
      OSError: the file cannot be opened, or is none that is regular, such as a pipe.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(
            errno.EINVAL,
            f"is {special_file_kind(mode) or 'a folder'}, wanted a file",
            os.fspath(path),
        )
    return os.fdopen(descriptor, "rb")


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def check_utf8(path: str | os.PathLike) -> None:
    """Raises a ValueError if a path is not UTF-8, which some libraries cannot use."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: this name is not UTF-8, and cannot be used here") from None


def complete_lines(path: pathlib.Path, truncate: bool = True) -> list[str]:
    """The lines of a file without an incomplete last one, left by a kill; [] if there is no file.

    Args:
      path: the file.
      truncate: whether to remove the incomplete line from the file. Only the process that writes
        the file may do so.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if truncate and whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode().splitlines()


def write_once(path: pathlib.Path, settings: dict) -> None:
    """Records settings in a file or, if it exists, checks that they are the same.

    Args:
      path: the file.
      settings: values that JSON has, by name.

    Raises:
      ValueError: the file has other settings, or is damaged.
      OSError: the file cannot be read or written.
    """
    if path.exists():
        earlier = read_json(path)
        other = [
            name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)
        ]
        if other:
            raise ValueError(
                f"{path.parent} has results of other settings: {other[0]} is "
                f"{earlier.get(other[0])!r} there and {settings.get(other[0])!r} here; "
                "use another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, atomically."""
    with atomic_write(path) as written:
        written.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict:
    """Reads a JSON object; raises a ValueError if the file is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path}: damaged") from None


def unused_path(path: pathlib.Path) -> pathlib.Path:
    """Returns `path` or, if it exists, the first of path.1, path.2, ... that does not."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(each for each in itertools.chain([path], names) if not os.path.lexists(each))
