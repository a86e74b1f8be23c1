"""Data sets that were prepared elsewhere: gs://, s3:// or whatever fsspec opens, copied here once, and read from here.

Clips are read at random, which remote stores are slow at, and not every store can be read by the library for records. Whole
files are copied, which goes on where it was stopped, to `datasets` in the cache (`I3D_JAX_CACHE`).
"""

import hashlib
import pathlib

import filelock
import fsspec
import tqdm

from i3d_jax.files import cache, replacing

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
      ValueError: there is no such data set, or fsspec lacks what it needs to look.
    """
    root = cache() / "datasets" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder = root / name
    if (folder / COMPLETE).exists():
        return str(root)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            system, path = fsspec.core.url_to_fs(url)
            there = f"{path.rstrip('/')}/{name}"
            sizes = {found: about["size"] for found, about in system.find(there, detail=True).items()}
        except (ImportError, ValueError, FileNotFoundError) as error:
            raise ValueError(f"{url}: {error}") from None
        if None in sizes.values():
            raise ValueError(f"{url}: this store does not say how large its files are")
        if not any(found.endswith("/dataset_info.json") for found in sizes):
            raise ValueError(f"{url}: there is no prepared {name}")
        wanted = {found: size for found, size in sizes.items() if records or ".array_record-" not in found}
        label = f"copying {name}"
        with tqdm.tqdm(total=sum(wanted.values()), desc=label, unit="B", unit_scale=True, disable=not records) as bar:
            for found, size in sorted(wanted.items()):
                _copy(system, found, folder / found[found.rindex(there) + len(there) + 1 :], size)
                bar.update(size)
        if records:
            (folder / COMPLETE).touch()
    return str(root)


def _copy(system: fsspec.AbstractFileSystem, found: str, here: pathlib.Path, size: int) -> None:
    if here.exists() and here.stat().st_size == size:
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    with replacing(here) as temporary:
        system.get_file(found, str(temporary))
        if temporary.stat().st_size != size:
            raise ValueError(f"{found}: {temporary.stat().st_size} bytes came, wanted {size}")
