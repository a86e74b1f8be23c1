"""The data sets, as TFDS builders that need no TensorFlow, and the pipeline that reads them.

`builder(name)` gives a data set. `python -m i3d_jax.datasets` prepares it from your files; a data
set that generates its own videos is prepared when it is first used. `annotations` and `video_files`
find the clips, `records` and `shards` write them, `doctor` checks them before that. `pipeline` cuts
training and test clips out of records, and puts them into batches.
"""

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
    """Returns the builder of a data set.

    Args:
      name: data set and config, as TFDS writes them: "moving_shapes/videos".
      data_dir: folder of prepared data sets. None: TFDS's default, `~/tensorflow_datasets`. A
        remote folder, such as gs://bucket/data, is copied to the cache (see `remote`).
      options: for preparation; see `ClipBuilder`.

    Raises:
      ValueError: there is no such data set or config, or `data_dir` is not UTF-8.
    """
    names = [
        f"{family}/{config.name}"
        for family, builder_class in BUILDERS.items()
        for config in builder_class.BUILDER_CONFIGS
    ]
    if name not in names:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(names)}")
    family, config = name.split("/")
    if is_remote(data_dir):
        data_dir = remote.download(str(data_dir), _with_version(name), records=False)
    elif data_dir is not None:
        # The shell does not expand the ~ of --config.dataset.data_dir=~/data.
        data_dir = os.path.expanduser(data_dir)
        files.check_utf8(data_dir)  # The record library accepts no other names.
    return BUILDERS[family](config=config, data_dir=data_dir, **options)


def available(name: str, data_dir: str | None = None) -> ClipBuilder:
    """Returns the builder of a data set that is prepared, or that needs no files to be prepared.

    Args:
      name: see `builder`.
      data_dir: see `builder`.

    Raises:
      ValueError: as `builder`, or the data set is not prepared.
    """
    found = builder(name, data_dir)
    if not found.final.exists() and not found.GENERATED:
        folder = found.final.parents[2]
        given = "--videos DIR --annotations CSV" if found.ANNOTATED else "--videos DIR"
        raise ValueError(
            f"{name} is not prepared in {folder}: "
            f"python -m i3d_jax.datasets prepare {name} {given} --data-dir {folder}"
        )
    return found


def prepared(name: str, data_dir: str | None = None) -> ClipBuilder:
    """Returns the builder of a data set that is prepared and complete.

    A data set that generates its own videos is prepared first. A warning on stderr names records
    that an earlier version prepared with a known problem.

    Args:
      name: see `builder`.
      data_dir: see `builder`.

    Raises:
      ValueError: as `available`, or records are missing.
    """
    found = available(name, data_dir)
    if is_remote(data_dir):
        remote.download(str(data_dir), _with_version(name))
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
    if found.known_problem:
        print(found.known_problem, file=sys.stderr)
    return found


def is_remote(data_dir: str | None) -> bool:
    """Whether a folder is a URL."""
    return data_dir is not None and "://" in data_dir


def _with_version(name: str) -> str:
    return f"{name}/{BUILDERS[name.split('/')[0]].VERSION}"


def coverage(statistics: dict) -> str:
    """Says how many of a split's annotated clips have a record.

    Args:
      statistics: of the split (see `ClipBuilder.statistics`).
    """
    used, annotated = statistics["used"], statistics["annotated"]
    return f"{used} of {annotated} annotated clips ({1 - used / annotated:.1%} missing)"
