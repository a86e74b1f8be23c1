"""Compiled programs, kept for the next process that needs them."""

import contextlib
import hashlib
import pathlib
import platform

import filelock
import jax

from i3d_jax import files

MOST = 2 * 2**30  # Bytes; the longest unused go first.


def keep() -> None:
    """Has JAX keep what this process compiles, and take what others have compiled, unless it has a folder for that already.

    The folder is `compiled` in the cache (`files.cache`; without one nothing is kept), one for each kind of processor: a CPU's
    programs may not run on another. JAX itself tells programs by versions, options and accelerator.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = files.cache() / "compiled" / processor()
    except OSError:
        return
    with contextlib.suppress(OSError):  # It may be another's, or a lock's time be over.
        if folder.exists():
            _remove_half_written(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST)
    # Networks take seconds to compile; what takes no time is compiled again sooner than it is read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _remove_half_written(folder: pathlib.Path) -> None:
    """Removes what a process that was killed left of a program: JAX would warn of it at every start, and keep no other program.

    JAX writes a program before the file with the time of its use, both under its lock; one that was looked up since has that
    file, too, and stays.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink()


def processor() -> str:
    """A name of this machine's kind of processor: what it is and what instructions it has."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:16]
