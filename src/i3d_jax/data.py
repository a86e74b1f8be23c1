"""Input pipelines: prepared records -> clips -> batches, with Grain and without TensorFlow.

The order and the augmentation of the training clips are a pure function of (seed, step), whatever the number of
processes, threads or restarts: to resume a run takes nothing but its step.
"""

import collections
import contextlib
import functools
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from i3d_jax import video
from i3d_jax.datasets import clips, moving_shapes
from i3d_jax.models.timing import Timing, Window

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


# Of "rgb" and "flow": how many frames, and the step between them at 25 per second.
Streams = dict[str, tuple[int, int]]


def streams(rgb: tuple[int, int] | None = None, flow: tuple[int, int] | None = None) -> Streams:
    """The streams that clips are to have.

    Raises:
      ValueError: none, or not two positive whole numbers each.
    """
    given: dict[str, Any] = {name: pair for name, pair in (("rgb", rgb), ("flow", flow)) if pair is not None}
    if not given:
        raise ValueError("clips have neither rgb nor flow")
    for name, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
            raise ValueError(f"{name}: {pair}, wanted (frames, step between them), two positive whole numbers")
    return given


def frames_of(
    record: dict, stream: str, *, start: int, count: int, stride: int, short_side: int | None = None
) -> np.ndarray:
    """Decodes `count` frames at `start`, `start` + `stride`, ...; after a video's end it begins anew.

    Returns:
      uint8 [count, H, W, 3], of flow [count, H, W, 2].

    Raises:
      video.VideoError: names the record, if it cannot be decoded or does not have the frames it says.
    """
    parts = []
    while count > 0:
        start %= record["frames"]
        number = min(count, -(-(record["frames"] - start) // stride))
        try:
            part = video.decode(
                record["video" if stream == "rgb" else stream],
                stream=stream,
                short_side=short_side,
                start=start,
                frames=number,
                stride=stride,
                threads=1,
            )
        except video.VideoError as error:
            raise video.VideoError(f"record {record['id']}: {stream}: {error}") from None
        if len(part) != number:
            raise video.VideoError(
                f"record {record['id']}: {stream}: {len(part)} frames where there should be {number}"
            )
        parts.append(part)
        start, count = start + number * stride, count - number
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def random_clip(
    record: dict, rng: np.random.Generator, *, streams: Streams, crop: int, flip: bool, short_side: int | None = None
) -> dict:
    """A record -> a training clip: random start, random crop, one left-right flip per clip (paper, section 3).

    All streams start at one frame and are cut and flipped alike.
    """
    span = max((frames - 1) * stride + 1 for frames, stride in streams.values())
    start = int(rng.integers(max(1, record["frames"] - span + 1)))
    clip = {
        stream: frames_of(record, stream, count=frames, stride=stride, start=start, short_side=short_side)
        for stream, (frames, stride) in streams.items()
    }
    height, width = next(iter(clip.values())).shape[1:3]
    corner = int(rng.integers(max(1, height - crop + 1))), int(rng.integers(max(1, width - crop + 1)))
    clip = {stream: video.crop(frames, crop, corner) for stream, frames in clip.items()}
    if flip and rng.random() < 0.5:
        clip = {stream: video.mirrored(frames) for stream, frames in clip.items()}
    clip = {stream: np.ascontiguousarray(frames) for stream, frames in clip.items()}
    return clip | {"label": np.int32(record["label"])}


def train_batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    crop: int,
    rgb: tuple[int, int] | None = None,
    flow: tuple[int, int] | None = None,
    flip: bool = True,
    short_side: int | None = None,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's share of the training batches, for ever.

    Args:
      source: records with "video" and "flow" (bytes), "frames" and "label", by index (`ClipBuilder.records`).
      batch_size: clips of the whole batch, over all processes.
      seed: of order and augmentation.
      crop: pixels, of the square that is cut out at random.
      rgb, flow: frames of a clip, and the step between them at 25 per second; None: not wanted. Shorter videos are
        looped.
      flip: whether half the clips are mirrored. Wrong where left and right make a class.
      short_side: pixels that RGB frames are resized to; None: as the records have them.
      start: the first batch to yield: the step of a run that is resumed.
      process, processes: which process this is, of how many.
      threads: that decode.

    Yields:
      "rgb" uint8 [batch_size / processes, T, crop, crop, 3], "flow" uint8 [batch_size / processes, T, crop, crop, 2]
      (see `video`), what is wanted of them, and "label" int32 [batch_size / processes].

    Raises:
      ValueError: the batch cannot be cut into equal shares, or no stream is wanted.
    """
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} clips cannot be cut into {processes} equal shares")
    clip = functools.partial(random_clip, streams=streams(rgb, flow), crop=crop, flip=flip, short_side=short_side)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(clip)
    # Batched before the slicing and before the threads: batch number b is then the same clips for all of them.
    batches = dataset.batch(batch_size // processes, drop_remainder=True)[start * processes + process :: processes]
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


class Piece(NamedTuple):
    """A window of some test videos that are of one length, for a network to see.

    Attributes:
      records: of the videos, without their bytes; the batch's last rows, if there are fewer, repeat the first video.
      ticks: of the whole videos (see `Timing`).
      window: which part of them this is.
      streams: uint8 [batch_size, T, crop, crop, C] by stream.
    """

    records: list[dict]
    ticks: int
    window: Window
    streams: dict[str, np.ndarray]


def test_pieces(
    source: Iterable[dict],
    *,
    timing: Timing,
    batch_size: int,
    crop: int,
    rgb: tuple[int, int] | None = None,
    flow: tuple[int, int] | None = None,
    short_side: int | None = None,
    chunk: int | None = None,
    done: Container[str] = (),
    threads: int = 2,
) -> Iterator[Piece]:
    """Yields whole videos, centre-cropped, in batches of one length, each batch window after window.

    Which videos make a batch depends on the records alone, not on what is `done`. Decoded, there is never more in memory
    than a few windows.

    Args:
      source: records, in order.
      timing: of the network.
      rgb, flow: how many frames of a video may be used, and the step between them.
      chunk: the longest window, in ticks; None: all of the video.
      done: ids of records; batches of these are left out.

    Raises:
      ValueError: the windows are too short for the network.
    """
    wanted = streams(rgb, flow)
    most = {stream: frames for stream, (frames, _) in wanted.items()}

    def load(records: list[dict], ticks: int, window: Window) -> Piece:
        rows = []
        for record in records:
            row = {}
            for stream, (_, stride) in wanted.items():
                per_tick = timing.frames(stream)
                part = {"start": window.start * per_tick * stride, "count": (window.stop - window.start) * per_tick}
                frames = frames_of(record, stream, stride=stride, short_side=short_side, **part)
                row[stream] = video.crop(frames, crop)
            rows.append(row)
        rows += rows[:1] * (batch_size - len(rows))
        about = [{name: value for name, value in record.items() if name not in ("video", "flow")} for record in records]
        return Piece(about, ticks, window, {stream: np.stack([row[stream] for row in rows]) for stream in wanted})

    def jobs() -> Iterator[tuple]:
        # TFDS gives text as bytes.
        named = (
            record | {"id": record["id"].decode()} if isinstance(record["id"], bytes) else record for record in source
        )
        for ticks, records in batches_of_one_length(named, length, batch_size):
            if not all(record["id"] in done for record in records):
                for window in timing.windows(ticks, chunk):
                    yield records, ticks, window

    def length(record: dict) -> int:
        available = {stream: -(-record["frames"] // stride) for stream, (_, stride) in wanted.items()}
        return timing.ticks(available, most)

    yield from video.ahead(lambda job: load(*job), jobs(), threads)


def batches_of_one_length(
    records: Iterable[dict], length: Callable[[dict], int], batch_size: int
) -> Iterator[tuple[int, list[dict]]]:
    """Yields (length, records) in full batches while there are such; four batches' worth of records wait at most."""
    waiting: dict[int, list[dict]] = collections.defaultdict(list)
    for record in records:
        found = length(record)
        waiting[found].append(record)
        if len(waiting[found]) == batch_size:
            yield found, waiting.pop(found)
        elif sum(map(len, waiting.values())) > 4 * batch_size:
            longest = max(waiting, key=lambda ticks: len(waiting[ticks]))
            yield longest, waiting.pop(longest)
    yield from waiting.items()
