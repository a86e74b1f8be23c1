"""The small files that describe a prepared data set, which TFDS reads without noticing damage.

Their SHA-256 and the sizes of the shards are in `checksums.json`, which is written with the data set. Of data sets that were
prepared before there was one it is checked whether the files agree with each other. Shards have checksums of their own.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tensorflow_datasets.core import dataset_info

from i3d_jax import files
from i3d_jax.datasets import records

CHECKSUMS = "checksums.json"
INFO, FEATURES, METADATA, LABELS = FILES = (
    "dataset_info.json",
    "features.json",
    "metadata.json",
    "label.labels.txt",
)


class Description(NamedTuple):
    """What a prepared data set has: its classes, in the order of the labels, and whether it has flow."""

    classes: tuple[str, ...]
    flow: bool


def write_checksums(folder: pathlib.Path) -> None:
    """Notes the checksums of a data set that is complete."""
    shards = {path.name: path.stat().st_size for path in sorted(folder.glob("*.array_record-*"))}
    digests = {name: _digest(folder / name) for name in FILES}
    files.write_json(folder / CHECKSUMS, {"sha256": digests, "bytes": shards})


def read_description(
    folder: pathlib.Path, version: str, classes: Sequence[str] | None
) -> Description:
    """Reads and checks the description of a data set.

    Args:
      version: of the data set.
      classes: that it must have; None: those of its clips.

    Raises:
      ValueError: names the file that is missing or damaged.
    """
    checksums = _checksums(folder)
    digests = None if checksums is None else checksums["sha256"]
    for name in FILES:
        if not (folder / name).is_file():
            raise _damaged(folder / name, "is missing")
        if digests is not None and _digest(folder / name) != digests.get(name):
            raise _damaged(folder / name, f"its SHA-256 is not that in {CHECKSUMS}")
    with _reading(folder / LABELS) as path:
        names = tuple(name.strip() for name in path.read_text("utf-8").split("\n") if name.strip())
    with _reading(folder / FEATURES) as path:
        values = json.loads(path.read_text())["featuresDict"]["features"]
        found = Description(names, "flow" in values)
        if set(values) != set(records.record_features(names, found.flow)):
            raise ValueError(f"it has {', '.join(sorted(values))}")
        if (number := int(values["label"]["classLabel"]["numClasses"])) != len(names):
            raise ValueError(f"it has {number} classes, {LABELS} has {len(names)}")
    with _reading(folder / METADATA) as path:
        metadata = json.loads(path.read_text())
        statistics = metadata["splits"]
        used = {split: int(each["used"]) for split, each in statistics.items()}
        of_clips = {label for each in statistics.values() for label in each["classes"]}
    if digests is None and "format" in metadata:  # Which was not said before there were checksums.
        raise _damaged(folder / CHECKSUMS, "is missing")
    wanted = tuple(sorted(of_clips)) if classes is None else tuple(classes)
    if names != wanted or not of_clips <= set(names):
        raise _damaged(
            folder / LABELS, f"its {len(names)} classes are not the {len(wanted)} of the data set"
        )
    with _reading(folder / INFO) as path:
        _check_info(dataset_info.read_from_json(path), version, used)
    return found


def _check_info(info: Any, version: str, used: dict[str, int]) -> None:
    if info.version != version:
        raise ValueError(f"version {info.version!r}, wanted {version!r}")
    if info.file_format != "array_record":
        raise ValueError(f"format {info.file_format!r}, wanted 'array_record'")
    found = {split.name: sum(split.shard_lengths) for split in info.splits}
    if found != used:
        raise ValueError(f"clips of splits are {found}, by {METADATA} {used}")
    for split in info.splits:  # TFDS makes paths of both.
        files.join_inside(pathlib.Path(), split.name)
        files.join_inside(pathlib.Path(), split.filepath_template)


def check_shards(folder: pathlib.Path) -> None:
    """Checks the sizes of a data set's shards.

    Raises:
      ValueError: names the shard that is missing or of another size.
    """
    for name, size in (_checksums(folder) or {"bytes": {}})["bytes"].items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "is missing")
        if path.stat().st_size != size:
            raise _damaged(path, f"has {path.stat().st_size} bytes, wanted {size}")


def _checksums(folder: pathlib.Path) -> dict[str, dict] | None:
    """What was noted when the data set was written; None if it was prepared before that was done."""
    with _reading(folder / CHECKSUMS) as path:
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return {kind: dict(found[kind]) for kind in ("sha256", "bytes")}


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
    return ValueError(f"{path}: {reason}; copy the data set again, or prepare it again")


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Names the file in whatever is wrong with its contents."""
    try:
        yield path
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - JSON, UTF-8, the protobuf, keys that are not there.
        raise _damaged(
            path, f"is damaged: {' '.join((str(error) or repr(error)).split())[:200]}"
        ) from None
