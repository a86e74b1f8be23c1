"""Copies data sets that were prepared elsewhere (gs://, s3://, whatever fsspec opens) to the cache.

Training reads clips in random order, at which remote stores are slow, and the record reader does
not know every store. So whole files are copied once, to `datasets` in the cache (`I3D_JAX_CACHE`),
and read from there. An interrupted copy resumes with the first file that is not complete.
"""

import hashlib
import pathlib
import shutil

import filelock
import fsspec
import tqdm

from i3d_jax.files import atomic_write, cache_folder, join_inside

COMPLETE = ".complete"


def download(url: str, name: str, records: bool = True) -> str:
    """Copies a data set to the cache, unless it is there.

    Args:
      url: the remote folder of prepared data sets.
      name: the data set in it, with config and version.
      records: whether to copy records too. The other files suffice to describe the data set.

    Returns:
      the local folder of prepared data sets.

    Raises:
      ValueError: there is no such data set, fsspec lacks a package for the store, or the store has
        a file whose name leads out of the data set's folder.
    """
    root = cache_folder() / "datasets" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder = root / name
    if (folder / COMPLETE).exists():
        return str(root)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        system, remote_folder, sizes = _list_files(url, name, folder)
        wanted = {
            file: size
            for file, size in sizes.items()
            if file != COMPLETE and (records or ".array_record-" not in file)
        }
        left = sum(size for file, size in wanted.items() if not _is_complete(folder / file, size))
        if left > (free := shutil.disk_usage(folder).free):
            raise ValueError(f"{folder}: {left / 1e9:.1f} GB to copy, {free / 1e9:.1f} GB are free")
        with tqdm.tqdm(
            total=sum(wanted.values()),
            desc=f"copying {name}",
            unit="B",
            unit_scale=True,
            disable=not records,
        ) as bar:
            for file, size in sorted(wanted.items()):
                _copy(system, f"{remote_folder}/{file}", folder / file, size)
                bar.update(size)
        if records:
            (folder / COMPLETE).touch()
    return str(root)


def _list_files(
    url: str, name: str, folder: pathlib.Path
) -> tuple[fsspec.AbstractFileSystem, str, dict[str, int]]:
    """Lists a remote data set.

    Args:
      url: see `download`.
      name: see `download`.
      folder: where its files are to go.

    Returns:
      the file system, the data set's folder there, and the sizes of the files by their paths in it.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        remote_folder = f"{path.rstrip('/')}/{name}"
        entries = system.find(remote_folder, detail=True).items()
        sizes = {found.partition(f"{remote_folder}/")[2]: entry["size"] for found, entry in entries}
        for file in sizes:
            join_inside(folder, file)
    except Exception as error:  # noqa: BLE001 - every store has exceptions of its own
        raise ValueError(f"{url}: {str(error) or repr(error)}") from None
    if None in sizes.values():
        raise ValueError(f"{url}: this store does not say how large its files are")
    if "dataset_info.json" not in sizes:
        raise ValueError(f"{url}: there is no prepared {name}")
    return system, remote_folder, sizes


def _is_complete(path: pathlib.Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _copy(system: fsspec.AbstractFileSystem, source: str, target: pathlib.Path, size: int) -> None:
    """Copies a file, unless it is there in full."""
    if _is_complete(target, size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        system.get_file(source, str(temporary))
        if temporary.stat().st_size != size:
            raise ValueError(f"{source}: {temporary.stat().st_size} bytes came, wanted {size}")
