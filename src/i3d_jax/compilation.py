"""A persistent cache of compiled programs, shared by all processes."""

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

# JAX has no public way to replace the files of its cache.
from jax._src import compilation_cache

from i3d_jax import cli, files

MAX_CACHE_BYTES = 2 * 2**30  # The least recently used programs are removed first.
PROGRAM_SUFFIX = ".program"
# A program that was loaded this many seconds ago has run, and is not the cause of a crash.
SETTLE_SECONDS = 60.0

logger = logging.getLogger(__name__)
_jax_cache = getattr(compilation_cache, "get_file_cache", None)


def enable_persistent_cache() -> None:
    """Has JAX store the programs that it compiles, and load those that are stored.

    The folder is JAX's own setting (`JAX_COMPILATION_CACHE_DIR`). Without it, programs are in
    `compiled` of the cache (`files.cache_folder`), with a folder per kind of processor, since a
    CPU's programs may not run on another. Without a cache folder nothing is stored. JAX itself
    distinguishes versions, options and accelerators. Network folders (`gs://`) are left to JAX,
    without checksums.
    """
    if _jax_cache is None:
        return
    compilation_cache.get_file_cache = _open_cache
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = files.cache_folder() / "compiled" / processor_kind()
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
    # Faster compilations are not stored, since reading takes about as long.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # XLA's own files have no checksums, and must be writable.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _open_cache(path: str):
    """Replaces JAX's `get_file_cache`: returns the cache and its path."""
    if "://" in path:
        assert _jax_cache is not None
        return _jax_cache(path)
    return ProgramCache(
        pathlib.Path(path), jax.config.values["jax_compilation_cache_max_size"]
    ), path


class ProgramCache:
    """Compiled programs as files with checksums; replaces JAX's own file cache.

    JAX's files have no checksum, and XLA runs whatever it reads: after a flipped bit, results are
    wrong, or every process that loads the program crashes. Here damaged programs are removed and
    compiled again.

    Intact programs may crash, too. A process therefore records the programs that it loads. It
    removes the record after SETTLE_SECONDS, or when it exits. If it crashes or is killed before,
    the next process removes the recorded programs.

    Any number of processes may share a folder, since files are written atomically. A read-only
    folder works, but programs that crash cannot be removed from it.

    Args:
      folder: of the files.
      limit: most bytes of all programs; -1 is no limit.
    """

    def __init__(self, folder: pathlib.Path, limit: int):
        self._path = folder  # JAX logs it.
        self._limit = limit
        self._warned = False
        self._lock = threading.RLock()  # Reentrant: a signal may end the process in this thread.
        self._note: Any = None  # An open file.
        self._timer: threading.Timer | None = None
        atexit.register(self._remove_note)
        cli.exit_callbacks.append(self._remove_note)
        with contextlib.suppress(OSError):  # The folder may belong to another user.
            for note in folder.glob(".loaded-*"):
                self._remove_suspects(note)
            files.remove_leftovers(folder, age=3600)

    def get(self, key: str) -> bytes | None:
        """Returns a program, or None if it is missing or damaged."""
        path = self._program_path(key)
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
        """Stores a program; logs a warning the first time that this fails."""
        if 0 <= self._limit < len(program):
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._make_room(len(program))
            with files.atomic_write(self._program_path(key)) as written:
                written.write_bytes(_checksum(key, program) + program)
        except OSError as error:
            if not self._warned:
                reason = error.strerror or error
                logger.warning(
                    f"{self._path}: cannot be written ({reason}): what is compiled is not kept"
                )
            self._warned = True

    def _program_path(self, key: str) -> pathlib.Path:
        return self._path / f"{key}{PROGRAM_SUFFIX}"

    def _make_room(self, size: int) -> None:
        if self._limit < 0:
            return
        found = []
        for path in self._path.glob(f"*{PROGRAM_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # Another process removed it.
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = size + sum(taken for _, taken, _ in found) - self._limit
        for _, taken, path in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= taken

    def _note_loaded(self, key: str) -> None:
        """Records that this process has loaded a program, in a file that it keeps locked."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._note is None:
                self._note = tempfile.NamedTemporaryFile("w", dir=self._path, prefix=".loaded-")  # noqa: SIM115
                fcntl.flock(self._note, fcntl.LOCK_EX)
            self._note.write(f"{key}\n")
            self._note.flush()
            self._timer = threading.Timer(SETTLE_SECONDS, self._remove_note)
            self._timer.daemon = True
            self._timer.start()

    def _remove_note(self) -> None:
        """Removes the record: the programs have run, or the process exits in order."""
        with self._lock, contextlib.suppress(OSError):
            note, self._note = self._note, None
            if note is not None:
                note.close()

    def _remove_suspects(self, note: pathlib.Path) -> None:
        """Removes the programs in the record of a dead process, and the record."""
        # A damaged record raises a ValueError, the lock of a living process an OSError.
        with contextlib.suppress(OSError, ValueError), note.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for key in file.read().splitlines():
                self._program_path(pathlib.Path(key).name).unlink(missing_ok=True)
            note.unlink()


def _checksum(key: str, program: bytes) -> bytes:
    """A checksum of a program and its key, so that exchanged files are found out, too."""
    checksum = hashlib.sha256(key.encode() + b"\0")
    checksum.update(program)
    return checksum.digest()


def processor_kind() -> str:
    """A hash of this machine's kind of processor: its model and instruction set."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    kind = sorted(
        {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    )
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:16]
