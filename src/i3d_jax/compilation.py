"""A cache of compiled programs: what one process has compiled, later ones load."""

import atexit
import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import platform
import tempfile
import threading
from typing import Any

import jax
from jax._src import (
    compilation_cache,
)  # JAX has no public way to exchange its cache's files for others.

from i3d_jax import cli, files

MAX_CACHE_BYTES = 2 * 2**30  # Bytes; the least recently used programs are removed first.
SUFFIX = ".program"
SETTLE_SECONDS = (
    60.0  # Seconds; a program that was loaded longer ago has run, and is not why its process ends.
)

logger = logging.getLogger(__name__)
_jax_cache = getattr(compilation_cache, "get_file_cache", None)


def enable_persistent_cache() -> None:
    """Has JAX keep the programs that this process compiles, and load those that others have compiled, as `ProgramCache` does.

    The folder is JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) or, without one, `compiled` in the cache (`files.cache_folder`;
    without that nothing is kept), one for each kind of processor: a CPU's programs may not run on another. JAX itself
    tells programs by versions, options and accelerator. Folders on a network (`gs://`) are left to JAX, without checksums.
    """
    if _jax_cache is None:
        return
    compilation_cache.get_file_cache = _open
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = files.cache_folder() / "compiled" / processor_kind()
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
    # Networks take seconds to compile; what takes no time is compiled again sooner than it is read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # XLA's own files there have no checksums, and XLA must be able to write them.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _open(path: str):
    """In place of JAX's `get_file_cache`: returns the cache and its path."""
    if "://" in path:
        assert _jax_cache is not None
        return _jax_cache(path)
    return ProgramCache(
        pathlib.Path(path), jax.config.values["jax_compilation_cache_max_size"]
    ), path


class ProgramCache:
    """Compiled programs in the files of a folder, each with a checksum, for JAX in place of its own cache.

    JAX's own files have no checksum, and XLA runs what it reads: a flipped bit gives other results, or crashes every process
    that loads the program. Here a damaged program is removed and compiled again. So is one that may crash though its file is
    whole: this process notes the programs that it loads until it has lived on for SETTLE_SECONDS seconds, or ends; if it crashes
    or is killed before, the next process removes them.

    Any number of processes may use a folder at once: files appear whole. A folder that cannot be written is read; but what
    crashes there cannot be noted or removed.

    Args:
      limit: bytes that all programs may take; -1: any number.
    """

    def __init__(self, folder: pathlib.Path, limit: int):
        self._path = folder  # JAX logs it.
        self._limit = limit
        self._warned = False
        self._lock = threading.RLock()  # A signal may end the process while this thread holds it.
        self._note: Any = None  # An open file.
        self._timer: threading.Timer | None = None
        atexit.register(self._settle)
        cli.exit_callbacks.append(self._settle)
        with contextlib.suppress(OSError):  # The folder may be another user's.
            for note in folder.glob(".loaded-*"):
                self._remove_suspects(note)
            files.remove_leftovers(folder, age=3600)

    def get(self, key: str) -> bytes | None:
        """Returns a program, or None if there is none that is whole."""
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        checksum, program = content[:32], content[32:]
        if checksum != _checksum(key, program):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        with contextlib.suppress(OSError):
            self._note_loaded(key)
        return program

    def put(self, key: str, program: bytes) -> None:
        """Keeps a program; where it cannot be written, says so once."""
        if 0 <= self._limit < len(program):
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._make_room(len(program))
            with files.atomic_write(self._file(key)) as written:
                written.write_bytes(_checksum(key, program) + program)
        except OSError as error:
            if not self._warned:
                reason = error.strerror or error
                logger.warning(
                    f"{self._path}: cannot be written ({reason}): what is compiled is not kept"
                )
            self._warned = True

    def _file(self, key: str) -> pathlib.Path:
        return self._path / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        if self._limit < 0:
            return
        found = []
        for path in self._path.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # Another process makes room, too.
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = size + sum(taken for _, taken, _ in found) - self._limit
        for _, taken, path in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= taken

    def _note_loaded(self, key: str) -> None:
        """Notes that this process has loaded a program, in a file that is locked as long as the process lives."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._note is None:
                self._note = tempfile.NamedTemporaryFile("w", dir=self._path, prefix=".loaded-")  # noqa: SIM115
                fcntl.flock(self._note, fcntl.LOCK_EX)
            self._note.write(f"{key}\n")
            self._note.flush()
            self._timer = threading.Timer(SETTLE_SECONDS, self._settle)
            self._timer.daemon = True
            self._timer.start()

    def _settle(self) -> None:
        """Removes the note: the programs have run, or the process ends as it should."""
        with self._lock, contextlib.suppress(OSError):
            note, self._note = self._note, None
            if note is not None:
                note.close()

    def _remove_suspects(self, note: pathlib.Path) -> None:
        """Removes the programs in the note of a process that was killed, and the note."""
        with (
            contextlib.suppress(OSError, ValueError),
            note.open("r+") as file,
        ):  # A ValueError if it is damaged.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # An OSError if the process lives.
            for key in file.read().splitlines():
                self._file(pathlib.Path(key).name).unlink(missing_ok=True)
            note.unlink()


def _checksum(key: str, program: bytes) -> bytes:
    """Of a program and the key that it is found by, so that files that change places are not taken for each other."""
    checksum = hashlib.sha256(key.encode() + b"\0")
    checksum.update(program)
    return checksum.digest()


def processor_kind() -> str:
    """A name of this machine's kind of processor: what it is and what instructions it has."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    kind = sorted(
        {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    )
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:16]
