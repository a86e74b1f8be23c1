"""Input pipelines: prepared records -> clips -> batches, with Grain and without TensorFlow.

The order and the augmentation of the training clips are a pure function of (seed, step), whatever the number of
processes, threads or restarts: to resume a run takes nothing but its step.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from i3d_jax import video
from i3d_jax.datasets import clips, moving_shapes

BUILDERS = {"moving_shapes": moving_shapes.MovingShapes}


def builder(name: str, data_dir: str | None = None) -> clips.ClipBuilder:
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


def prepared(name: str, data_dir: str | None = None) -> clips.ClipBuilder:
    """Returns what `builder` does, its records written if they are not there yet and that needs no download."""
    found = builder(name, data_dir)
    with contextlib.redirect_stdout(sys.stderr):  # TFDS reports there; stdout is for results.
        found.download_and_prepare()
    return found


def random_clip(record: dict, rng: np.random.Generator, *, frames: int, crop: int, flip: bool) -> dict:
    """A record -> a training clip: random start, random crop, one left-right flip per clip (paper, section 3)."""
    start = int(rng.integers(max(1, record["frames"] - frames + 1)))
    clip = video.decode(record["video"], start=start, frames=frames, threads=1)
    height, width = clip.shape[1:3]
    corner = int(rng.integers(max(1, height - crop + 1))), int(rng.integers(max(1, width - crop + 1)))
    clip = video.crop(clip, crop, corner)
    if flip and rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    return {"video": np.ascontiguousarray(video.loop(clip, frames)), "label": np.int32(record["label"])}


def test_clip(record: dict, *, frames: int, crop: int) -> dict:
    """A record -> a test clip: from the start, centre crop, looped if short; of weight 1."""
    clip = video.decode(record["video"], frames=frames, threads=1)
    clip = np.ascontiguousarray(video.loop(video.crop(clip, crop), frames))
    return {"video": clip, "label": np.int32(record["label"]), "weight": np.float32(1)}


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
      source: records with "video" (bytes), "frames" and "label", by index (`ClipBuilder.records`).
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
    clip = functools.partial(random_clip, frames=frames, crop=crop, flip=flip)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(clip)
    # Batched before the slicing and before the threads: batch number b is then the same clips for all of them.
    batches = dataset.batch(batch_size // processes, drop_remainder=True)[start * processes + process :: processes]
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


def test_batches(
    source: Any, *, batch_size: int, frames: int, crop: int, threads: int = 2
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every record once, in order, as `train_batches` does but from the first frame and cropped at the centre.

    The last batch is filled up with clips of "weight" 0; the others' is 1.
    """
    clip = functools.partial(test_clip, frames=frames, crop=crop)
    batches = grain.MapDataset.source(source).map(clip).batch(batch_size)
    for batch in batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)):
        missing = batch_size - len(batch["label"])
        yield {name: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1)) for name, value in batch.items()}
