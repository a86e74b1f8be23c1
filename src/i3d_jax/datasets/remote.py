"""Data sets that were prepared elsewhere: gs://, s3:// or whatever fsspec opens, copied here once, and read from here.

Clips are read at random, which remote stores are slow at, and not every store can be read by the library for records. Whole
files are copied, which goes on where it was stopped, to `datasets` in the cache (`I3D_JAX_CACHE`).
"""

import hashlib
import pathlib
import shutil

import filelock
import fsspec
import tqdm

from i3d_jax.files import atomic_write, cache_folder, join_inside

COMPLETE = ".complete"


def local(url: str, name: str, records: bool = True) -> str:
    """Copies a data set, if that has not been done yet.

    Args:
      url: the folder of prepared data sets.
      name: of the data set in it, with config and version.
      records: whether to copy the records too; without them one can know what they are.

    Returns:
      the folder of prepared data sets that it is in now.

    Raises:
      ValueError: there is no such data set, fsspec lacks what it needs to look, or the store has a file whose name leads out
        of the data set's folder.
    """
    root = cache_folder() / "datasets" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder = root / name
    if (folder / COMPLETE).exists():
        return str(root)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            system, path = fsspec.core.url_to_fs(url)
            there = f"{path.rstrip('/')}/{name}"
            listed = system.find(there, detail=True).items()
            sizes = {found.partition(f"{there}/")[2]: about["size"] for found, about in listed}
            for found in sizes:
                join_inside(folder, found)
        except Exception as error:  # noqa: BLE001 - every store has exceptions of its own
            raise ValueError(f"{url}: {str(error) or repr(error)}") from None
        if None in sizes.values():
            raise ValueError(f"{url}: this store does not say how large its files are")
        if "dataset_info.json" not in sizes:
            raise ValueError(f"{url}: there is no prepared {name}")
        wanted = {
            found: size
            for found, size in sizes.items()
            if found != COMPLETE and (records or ".array_record-" not in found)
        }
        left = sum(size for found, size in wanted.items() if not _is_here(folder / found, size))
        if left > (free := shutil.disk_usage(folder).free):
            raise ValueError(f"{folder}: {left / 1e9:.1f} GB to copy, {free / 1e9:.1f} GB are free")
        label = f"copying {name}"
        with tqdm.tqdm(
            total=sum(wanted.values()), desc=label, unit="B", unit_scale=True, disable=not records
        ) as bar:
            for found, size in sorted(wanted.items()):
                _copy(system, f"{there}/{found}", folder / found, size)
                bar.update(size)
        if records:
            (folder / COMPLETE).touch()
    return str(root)


def _is_here(path: pathlib.Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _copy(system: fsspec.AbstractFileSystem, found: str, here: pathlib.Path, size: int) -> None:
    if _is_here(here, size):
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(here) as temporary:
        system.get_file(found, str(temporary))
        if temporary.stat().st_size != size:
            raise ValueError(f"{found}: {temporary.stat().st_size} bytes came, wanted {size}")
