"""Files of measured sets: statistics, features and how they were made, as .npz."""

import json
import pathlib
import zipfile
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from i3d_jax import files
from i3d_jax.fvd import statistics
from i3d_jax.fvd.measuring import Measured
from i3d_jax.fvd.statistics import Statistics

KIND = "i3d_jax.fvd"
VERSION = 1
COUNTS = "videos", "unusable", "static"
COUNTERS = "size", "length", "fps"
ARRAYS = "mean", "scatter", "features", "videos", "digests"

# By convention: how it was measured, and what.
Sets = Mapping[str, tuple[dict[str, Any], Measured]]


def is_saved(path: pathlib.Path) -> bool:
    """Whether a file is one of measured sets, by its contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "about.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def write(path: pathlib.Path, sets: Sets) -> None:
    """Writes measured sets, atomically.

    Args:
      path: of the file.
      sets: by convention, the settings and the measured set.
    """
    arrays: dict[str, Any] = {}
    about = {}
    for name, (settings, measured) in sets.items():
        about[name] = {
            "settings": settings,
            "count": measured.statistics.number,
            "about": measured.about,
        }
        values = (*measured.statistics[1:], *measured[1:4])
        for each, value in zip(ARRAYS, values, strict=True):
            if value is not None:
                arrays[f"{name}/{each}"] = value
    text = json.dumps({"kind": KIND, "version": VERSION, "sets": about})
    with files.atomic_write(path) as written, written.open("wb") as file:
        np.savez(file, about=np.array(text), **arrays)


def read(path: pathlib.Path) -> dict[str, tuple[dict[str, Any], Measured]]:
    """Reads measured sets.

    Raises:
      ValueError: the file is damaged, or not one of this version.
      OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        about = json.loads(str(arrays["about"]))
        if about["kind"] != KIND or about["version"] != VERSION:
            raise ValueError(f"{about['kind']} of version {about['version']}, wanted {VERSION}")
        return {name: _set(name, each, arrays) for name, each in about["sets"].items()}
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged, or not saved by fvd: {error}") from None


def _set(
    name: str, about: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[dict[str, Any], Measured]:
    mean, scatter, *kept = (arrays.get(f"{name}/{each}") for each in ARRAYS)
    features, videos, digests = kept
    count = about["count"]
    if mean is None or scatter is None:
        raise ValueError(f"{name} has no statistics")
    lengths = {len(each) for each in kept if each is not None}
    fits = scatter.shape == (*mean.shape, *mean.shape) and mean.ndim == 1
    if not fits or count < 1 or lengths - {count} or not np.isfinite(scatter).all():
        raise ValueError(f"{name} has statistics and features that do not fit")
    counts = {each: int(about["about"][each]) for each in COUNTS}
    counters = {each: dict(about["about"][each]) for each in COUNTERS}
    found = Statistics(count, mean, scatter)
    measured = Measured(found, features, videos, digests, counts | counters)
    return dict(about["settings"]), measured


def merge(first: Measured, second: Measured) -> Measured:
    """Both sets together; features are kept if both have them."""
    about: dict[str, Any] = {each: first.about[each] + second.about[each] for each in COUNTS}
    for each in COUNTERS:
        about[each] = dict(Counter(first.about[each]) + Counter(second.about[each]))
    both = statistics.merge(first.statistics, second.statistics)
    if first.features is None or second.features is None:
        return Measured(both, None, None, None, about)
    assert first.videos is not None and second.videos is not None
    assert first.digests is not None and second.digests is not None
    return Measured(
        both,
        np.concatenate([first.features, second.features]),
        # Videos of the other set have other numbers.
        np.concatenate([first.videos, second.videos + first.videos.max() + 1]),
        np.concatenate([first.digests, second.digests]),
        about,
    )
