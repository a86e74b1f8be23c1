"""The data sets: `builder(name)` is a TFDS builder, prepared by `python -m i3d_jax.datasets` or, if it needs nothing, when used."""

import contextlib
import os
import sys

from i3d_jax import files
from i3d_jax.datasets import description, remote
from i3d_jax.datasets.clips import ClipBuilder
from i3d_jax.datasets.hmdb51 import HMDB51
from i3d_jax.datasets.kinetics import Kinetics
from i3d_jax.datasets.moving_shapes import MovingShapes
from i3d_jax.datasets.own import Own
from i3d_jax.datasets.ucf101 import UCF101

BUILDERS = {
    "kinetics": Kinetics,
    "ucf101": UCF101,
    "hmdb51": HMDB51,
    "own": Own,
    "moving_shapes": MovingShapes,
}


def builder(name: str, data_dir: str | None = None, **options) -> ClipBuilder:
    """Returns the data set called `name`, "moving_shapes/videos".

    Args:
      name: data set and config, as TFDS writes them.
      data_dir: where TFDS keeps prepared data sets; None: its own default, `~/tensorflow_datasets`. One that is remote,
        gs://... for one, is read as `remote` says.
      options: to prepare it with, see `ClipBuilder`.

    Raises:
      ValueError: no such data set or config, or `data_dir` is not UTF-8.
    """
    names = [
        f"{family}/{config.name}"
        for family, made in BUILDERS.items()
        for config in made.BUILDER_CONFIGS
    ]
    if name not in names:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(names)}")
    family, config = name.split("/")
    if is_remote(data_dir):
        data_dir = remote.local(str(data_dir), _versioned(name), records=False)
    elif data_dir is not None:
        data_dir = os.path.expanduser(
            data_dir
        )  # No shell does, of --config.dataset.data_dir=~/data.
        files.check_utf8(data_dir)  # The library for records has no other names.
    return BUILDERS[family](config=config, data_dir=data_dir, **options)


def available(name: str, data_dir: str | None = None) -> ClipBuilder:
    """Returns what `builder` does, if it is prepared or can be prepared without anything.

    Raises:
      ValueError: no such data set, or it is not prepared.
    """
    found = builder(name, data_dir)
    if not found.final.exists() and not found.SELF_MADE:
        given = "--videos DIR --annotations CSV" if found.ANNOTATED else "--videos DIR"
        raise ValueError(
            f"{name} is not prepared in {found.final.parents[2]}: python -m i3d_jax.datasets prepare {name} "
            f"{given} --out {found.final.parents[2]}"
        )
    return found


def prepared(name: str, data_dir: str | None = None) -> ClipBuilder:
    """Returns what `available` does, prepared, and with all its records.

    A data set that an earlier version prepared, with a fault, is named on stderr.

    Raises:
      ValueError: also if they are not all there.
    """
    found = available(name, data_dir)
    if is_remote(data_dir):
        remote.local(str(data_dir), _versioned(name))
    if not found.final.exists():
        with contextlib.redirect_stdout(sys.stderr):  # TFDS reports there; stdout is for results.
            found.prepare(wait=True)
        found = builder(name, data_dir)  # Another process may have prepared it.
    for split in found.info.splits.values():
        missing = [path for path in split.filepaths if not path.exists()]
        if missing:
            raise ValueError(
                f"{missing[0]}: missing, and {len(missing) - 1} other files of {split.name}"
            )
    description.check_shards(found.final)
    if found.fault:
        print(found.fault, file=sys.stderr)
    return found


def is_remote(data_dir: str | None) -> bool:
    return data_dir is not None and "://" in data_dir


def _versioned(name: str) -> str:
    return f"{name}/{BUILDERS[name.split('/')[0]].VERSION}"


def coverage(statistics: dict) -> str:
    """How much of a split there is, in words (see `ClipBuilder.statistics`)."""
    used, annotated = statistics["used"], statistics["annotated"]
    return f"{used} of {annotated} annotated clips ({1 - used / annotated:.1%} missing)"
