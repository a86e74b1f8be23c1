"""Files that are never seen half-written, notes on what a folder is of, and where downloads are kept."""

import contextlib
import errno
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
    """The folder for what was downloaded.

    The environment variable I3D_JAX_CACHE names it. Without one it is `i3d_jax` in the folder that XDG_CACHE_HOME names, or in
    `~/.cache`.

    Raises:
      OSError: there is no home directory, as in some containers.
    """
    if folder := os.environ.get("I3D_JAX_CACHE"):
        return pathlib.Path(folder)
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if (
        caches.is_absolute()
    ):  # Else the variable does not count, says the XDG Base Directory Specification.
        return caches / "i3d_jax"
    try:
        return pathlib.Path.home() / ".cache" / "i3d_jax"
    except RuntimeError:
        raise OSError(
            "there is no home directory for the cache: have I3D_JAX_CACHE name a folder"
        ) from None


TEMPORARY = ".i3d_jax-"  # What the names of half-written files begin with.


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    The block writes a file there or, where `path` does not exist, a folder. The temporary name is short, as that of `path` may be
    as long as the system allows, and no two processes choose the same. An OSError names `path`.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        with naming_errors(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def naming_errors(path: pathlib.Path, temporary: pathlib.Path | None = None) -> Iterator[None]:
    """Has an OSError of the block name `path` if it names no file, as on a full disk, or one that begins with `temporary`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or temporary and str(error.filename).startswith(str(temporary)):
            error.strerror = error.strerror or str(error)
            error.filename = str(path)
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


def join_inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file below a folder, by a name that comes from outside, with "/".

    Raises:
      ValueError: the name leads elsewhere, or to nothing.
    """
    if (
        any(part in ("", ".", "..") for part in name.split("/"))
        or not name.isprintable()
        or "\\" in name
    ):
        raise ValueError(f"{name!r} is no name of a file below a folder")
    return folder / name


@contextlib.contextmanager
def locked_folder(folder: pathlib.Path, busy: Exception, patience: float = 0) -> Iterator[None]:
    """Holds the lock of a folder, `.lock` in it, and removes half-written files: those of processes that were killed.

    Whoever writes to the folder must hold its lock; arguments as `locked`'s.
    """
    with locked(folder / ".lock", busy, patience):
        remove_leftovers(folder)
        yield


def remove_leftovers(folder: pathlib.Path, age: float = 0) -> None:
    """Removes the half-written files in a folder: those of processes that were killed.

    Args:
      age: seconds for which a file was not written to; 0 is for who knows, by a lock, that no other process writes there.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if not age or time.time() - path.stat().st_mtime > age:
                _remove(path)


def special_file_kind(mode: int) -> str | None:
    """What a file is, by its mode, that could be waited for without an end: "a FIFO", "a socket" or "a device"; None: it is not."""
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode))


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a file for reading; at once, whatever it is.

    Raises:
      OSError: it cannot be opened, or is a pipe or a device, which could be waited for without an end.
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
    """Raises a ValueError if a path is not UTF-8, as of files it need not be: not all libraries can use such ones."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: this name is not UTF-8, and cannot be used here") from None


def complete_lines(path: pathlib.Path, mend: bool = True) -> list[str]:
    """The lines of a file, none if it is not there, but for a last one that was cut off by a kill.

    Args:
      mend: whether that one is removed from the file, too; only for who writes to it.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if mend and whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode().splitlines()


def write_once(path: pathlib.Path, settings: dict) -> None:
    """Notes in a file what its folder is of or, if it exists, makes sure that it says the same.

    Raises:
      ValueError: it says something else, or is damaged.
      OSError: it cannot be read or written.
    """
    if path.exists():
        earlier = read_json(path)
        other = [
            name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)
        ]
        if other:
            raise ValueError(
                f"{path.parent} has results of other settings: {other[0]} is {earlier.get(other[0])!r} there and "
                f"{settings.get(other[0])!r} here; use another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def write_json(path: pathlib.Path, value: Any) -> None:
    with atomic_write(path) as written:
        written.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict:
    """Raises a ValueError if the file is not whole."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path}: damaged") from None


def free_path(path: pathlib.Path) -> pathlib.Path:
    """`path` or, if there is something already, the first of path.1, path.2, ... that there is not."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(each for each in itertools.chain([path], names) if not os.path.lexists(each))
