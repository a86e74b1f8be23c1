"""Input pipelines: prepared records -> clips -> batches, with Grain and without TensorFlow.

The order and the augmentation of the training clips are a pure function of (seed, step), whatever the number of
processes, threads or restarts: to resume a run takes nothing but its step.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from i3d_jax import video
from i3d_jax.datasets import moving_shapes

BUILDERS = {"moving_shapes": moving_shapes.MovingShapes}


def builder(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns the data set called `name`, "moving_shapes/videos".

    Args:
      name: data set and config, as TFDS writes them.
      data_dir: where TFDS keeps prepared data sets; None: its own default, `~/tensorflow_datasets`.

    Raises:
      ValueError: no such data set or config.
    """
    names = [f"{family}/{config.name}" for family, made in BUILDERS.items() for config in made.BUILDER_CONFIGS]
    if name not in names:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(names)}")
    family, config = name.split("/")
    return BUILDERS[family](config=config, data_dir=data_dir, file_format="array_record")


def prepared(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns what `builder` does, its records written if they are not there yet and that needs no download."""
    found = builder(name, data_dir)
    with contextlib.redirect_stdout(sys.stderr):  # TFDS reports there; stdout is for results.
        found.download_and_prepare()
    return found


class _Crop(grain.transforms.RandomMap):
    """A record -> a training clip: random start, random crop, one left-right flip per clip (paper, section 3)."""

    def __init__(self, frames: int, crop: int, flip: bool):
        self.frames, self.crop, self.flip = frames, crop, flip

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        start = int(rng.integers(max(1, element["frames"] - self.frames + 1)))
        clip = video.decode(element["video"], start=start, frames=self.frames, threads=1)
        height, width = clip.shape[1:3]
        top, left = (int(rng.integers(max(1, size - self.crop + 1))) for size in (height, width))
        clip = video.crop(clip, self.crop, top, left)
        if self.flip and rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        return {"video": np.ascontiguousarray(video.loop(clip, self.frames)), "label": np.int32(element["label"])}


class _CentreCrop(grain.transforms.Map):
    """A record -> a test clip: from the start, centre crop, looped if short."""

    def __init__(self, frames: int, crop: int):
        self.frames, self.crop = frames, crop

    def map(self, element: dict) -> dict:
        clip = video.decode(element["video"], frames=self.frames, threads=1)
        clip = video.loop(video.crop(clip, self.crop), self.frames)
        return {"video": np.ascontiguousarray(clip), "label": np.int32(element["label"]), "weight": np.float32(1)}


def train_batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    frames: int,
    crop: int,
    flip: bool = True,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's share of the training batches, for ever.

    Args:
      source: records with "video" (bytes), "frames" and "label", by index (`builder(...).as_data_source(split)`).
      batch_size: clips of the whole batch, over all processes.
      seed: of order and augmentation.
      frames: of a clip; shorter videos are looped.
      crop: pixels, of the square that is cut out at random.
      flip: whether half the clips are mirrored. Wrong where left and right make a class.
      start: the first batch to yield: the step of a run that is resumed.
      process, processes: which process this is, of how many.
      threads: that decode.

    Yields:
      "video" uint8 [batch_size / processes, frames, crop, crop, 3] and "label" int32 [batch_size / processes].

    Raises:
      ValueError: the batch cannot be cut into equal shares.
    """
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} clips cannot be cut into {processes} equal shares")
    clips = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(_Crop(frames, crop, flip))
    # Batched before the slicing and before the threads: batch number b is then the same clips for all of them.
    batches = clips.batch(batch_size // processes, drop_remainder=True)[start * processes + process :: processes]
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


def test_batches(
    source: Any, *, batch_size: int, frames: int, crop: int, threads: int = 2
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every record once, in order, as `train_batches` does but from the first frame and cropped at the centre.

    The last batch is filled up with clips of "weight" 0; the others' is 1.
    """
    batches = grain.MapDataset.source(source).map(_CentreCrop(frames, crop)).batch(batch_size)
    for batch in batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)):
        missing = batch_size - len(batch["label"])
        yield {name: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1)) for name, value in batch.items()}
