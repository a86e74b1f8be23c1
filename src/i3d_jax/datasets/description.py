"""Checks the small files that describe a prepared data set, in which TFDS notices no damage.

`checksums.json`, written with the data set, has their SHA-256 and the sizes of the shards. Older
data sets do not have it; then the files must agree with each other. Shards have checksums of their
own.
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
    """The contents of a prepared data set.

    Attributes:
      classes: names of the classes, in the order of the labels.
      flow: whether records have flow.
    """

    classes: tuple[str, ...]
    flow: bool


def write_checksums(folder: pathlib.Path) -> None:
    """Writes the checksums of a complete data set to its folder."""
    shards = {path.name: path.stat().st_size for path in sorted(folder.glob("*.array_record-*"))}
    digests = {name: _sha256(folder / name) for name in FILES}
    files.write_json(folder / CHECKSUMS, {"sha256": digests, "bytes": shards})


def read_description(
    folder: pathlib.Path, version: str, classes: Sequence[str] | None
) -> Description:
    """Reads and checks the description of a data set.

    Args:
      folder: folder of the data set.
      version: version that the data set must have.
      classes: classes that it must have. None: those of its clips.

    Raises:
      ValueError: a file is missing or damaged; the message names it.
    """
    checksums = _read_checksums(folder)
    digests = None if checksums is None else checksums["sha256"]
    for name in FILES:
        if not (folder / name).is_file():
            raise _damage_error(folder / name, "is missing")
        if digests is not None and _sha256(folder / name) != digests.get(name):
            raise _damage_error(folder / name, f"its SHA-256 is not that in {CHECKSUMS}")
    with _name_damage(folder / LABELS) as path:
        names = tuple(name.strip() for name in path.read_text("utf-8").split("\n") if name.strip())
    with _name_damage(folder / FEATURES) as path:
        values = json.loads(path.read_text())["featuresDict"]["features"]
        found = Description(names, "flow" in values)
        if set(values) != set(records.record_features(names, found.flow)):
            raise ValueError(f"it has {', '.join(sorted(values))}")
        if (number := int(values["label"]["classLabel"]["numClasses"])) != len(names):
            raise ValueError(f"it has {number} classes, {LABELS} has {len(names)}")
    with _name_damage(folder / METADATA) as path:
        metadata = json.loads(path.read_text())
        statistics = metadata["splits"]
        used = {split: int(each["used"]) for split, each in statistics.items()}
        clip_classes = {label for each in statistics.values() for label in each["classes"]}
    if digests is None and "format" in metadata:  # Data sets without checksums do not state it.
        raise _damage_error(folder / CHECKSUMS, "is missing")
    wanted = tuple(sorted(clip_classes)) if classes is None else tuple(classes)
    if names != wanted or not clip_classes <= set(names):
        raise _damage_error(
            folder / LABELS, f"its {len(names)} classes are not the {len(wanted)} of the data set"
        )
    with _name_damage(folder / INFO) as path:
        _check_info(dataset_info.read_from_json(path), version, used)
    return found


def _check_info(info: Any, version: str, used: dict[str, int]) -> None:
    """Checks TFDS's description against the version and the numbers of clips of the splits."""
    if info.version != version:
        raise ValueError(f"version {info.version!r}, wanted {version!r}")
    if info.file_format != "array_record":
        raise ValueError(f"format {info.file_format!r}, wanted 'array_record'")
    found = {split.name: sum(split.shard_lengths) for split in info.splits}
    if found != used:
        raise ValueError(f"clips of splits are {found}, by {METADATA} {used}")
    for split in info.splits:  # TFDS makes paths from both.
        files.join_inside(pathlib.Path(), split.name)
        files.join_inside(pathlib.Path(), split.filepath_template)


def check_shards(folder: pathlib.Path) -> None:
    """Checks the sizes of a data set's shards.

    Args:
      folder: folder of the data set.

    Raises:
      ValueError: a shard is missing or has another size; the message names it.
    """
    for name, size in (_read_checksums(folder) or {"bytes": {}})["bytes"].items():
        path = folder / name
        if not path.is_file():
            raise _damage_error(path, "is missing")
        if path.stat().st_size != size:
            raise _damage_error(path, f"has {path.stat().st_size} bytes, wanted {size}")


def _read_checksums(folder: pathlib.Path) -> dict[str, dict] | None:
    """Reads the checksums; None if there are none, as in data sets of earlier versions."""
    with _name_damage(folder / CHECKSUMS) as path:
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return {kind: dict(found[kind]) for kind in ("sha256", "bytes")}


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damage_error(path: pathlib.Path, reason: str) -> ValueError:
    return ValueError(f"{path}: {reason}; copy the data set again, or prepare it again")


@contextlib.contextmanager
def _name_damage(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Turns any error in a file's contents into a ValueError that names the file."""
    try:
        yield path
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - JSON, UTF-8, the protobuf, missing keys.
        reason = " ".join((str(error) or repr(error)).split())[:200]
        raise _damage_error(path, f"is damaged: {reason}") from None
