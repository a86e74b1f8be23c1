"""Input pipelines: prepared records -> clips -> batches, with Grain and without TensorFlow.

The order and the augmentation of the training clips are a pure function of (seed, step), whatever the number of
processes, threads or restarts: to resume a run takes nothing but its step. Clips are packed planes (see `planes`), which
the compiled step unpacks.
"""

import collections
import functools
import itertools
import signal
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from absl import flags

from i3d_jax import video
from i3d_jax.models.timing import Timing, Window
from i3d_jax.prefetch import prefetch
from i3d_jax.video import decoding, planes, windows

CLIPS_PER_TASK = 8  # Clips of a batch that are decoded together.

# Of "rgb" and "flow": how many frames, and the step between them at 25 per second.
Streams = dict[str, tuple[int, int]]


def streams(rgb: tuple[int, int] | None = None, flow: tuple[int, int] | None = None) -> Streams:
    """The streams that clips are to have.

    Raises:
      ValueError: none, or not two positive whole numbers each.
    """
    given: dict[str, Any] = {
        name: pair for name, pair in (("rgb", rgb), ("flow", flow)) if pair is not None
    }
    if not given:
        raise ValueError("clips have neither rgb nor flow")
    for name, pair in given.items():
        if (
            not isinstance(pair, tuple | list)
            or len(pair) != 2
            or not all(isinstance(n, int) and n > 0 for n in pair)
        ):
            raise ValueError(
                f"{name}: {pair}, wanted (frames, step between them), two positive whole numbers"
            )
    return given


def frames_of(
    record: dict,
    stream: str,
    window: planes.Window,
    *,
    start: int,
    count: int,
    stride: int,
    short_side: int | None = None,
) -> np.ndarray:
    """Decodes a window of `count` frames at `start`, `start` + `stride`, ...; after a video's end it begins anew.

    Args:
      short_side: pixels; RGB frames are resized to it before.

    Returns:
      what `windows.read` does.

    Raises:
      video.VideoError: names the record, if it cannot be decoded or does not have the frames it says.
    """
    size = None if short_side is None else frame_size(record, short_side)
    length, parts = int(record["frames"]), []
    while count > 0:
        start = int(start) % length
        number = min(count, -(-(length - start) // stride))
        data = record["video" if stream == "rgb" else stream]
        try:
            part = windows.read(
                data, window, stream=stream, start=start, frames=number, stride=stride, size=size
            )
        except video.VideoError as error:
            raise video.VideoError(f"record {record['id']}", f"{stream}: {error}") from None
        if len(part) != number:
            reason = f"{stream}: {len(part)} frames where there should be {number}"
            raise video.VideoError(f"record {record['id']}", reason)
        parts.append(part)
        start, count = start + number * stride, count - number
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def random_clip(
    record: dict,
    rng: np.random.Generator,
    *,
    streams: Streams,
    crop: int,
    flip: bool,
    reverse: bool = False,
    short_side: int | None = None,
) -> dict:
    """A record -> a training clip: random start, random crop, one left-right flip per clip (paper, section 3).

    All streams are of one window in time and are cut, flipped and reversed alike. "backwards" is there if `reverse` is.
    """
    backwards = reverse and rng.random() < 0.5
    span = max((frames - 1) * stride + 1 for frames, stride in streams.values())
    # Backwards, a frame's flow is the opposite of the one before's, which the first frame does not have.
    first = int(backwards and "flow" in streams and record["frames"] > span)
    start = first + int(rng.integers(max(1, record["frames"] - span + 1 - first)))
    room = [max(1, side - crop + 1) for side in frame_size(record, short_side)]
    top, left = (int(rng.integers(n)) for n in room)
    mirrored = flip and rng.random() < 0.5
    starts = dict.fromkeys(streams, start)
    if backwards:
        for stream, (frames, stride) in streams.items():
            starts[stream] = start + span - 1 - (frames - 1) * stride - (stream == "flow")
    clip = packed_clip(
        record, planes.Window(top, left, crop), streams, starts, short_side, mirrored
    )
    clip |= {"backwards": np.bool_(backwards)} if reverse else {}
    return clip | {"label": np.int32(record["label"])}


def frame_size(record: dict, short_side: int | None) -> tuple[int, int]:
    """Height and width of a record's frames, as they are or resized."""
    size = int(record["height"]), int(record["width"])
    return size if short_side is None else decoding.resized_shape(*size, short_side)


def packed_clip(
    record: dict,
    window: planes.Window,
    streams: Streams,
    starts: dict[str, int],
    short_side: int | None = None,
    mirrored: bool = False,
) -> dict:
    """One clip of what `planes.unpack` takes, whose streams have their first frames at `starts`."""
    clip: dict = {
        stream: frames_of(
            record,
            stream,
            window,
            start=starts[stream],
            count=frames,
            stride=stride,
            short_side=short_side,
        )
        for stream, (frames, stride) in streams.items()
    }
    corner = np.array([window.top % 2, window.left % 2], np.int32)
    return clip | {"corner": corner, "mirrored": np.bool_(mirrored)}


def check_even(crop: int) -> int:
    """A crop's size, if it is even.

    Raises:
      ValueError: it is odd: two pixels share a colour.
    """
    if crop % 2:
        raise ValueError(f"crop: {crop} pixels, wanted an even number")
    return crop


class ProcessShard:
    """The clips of every `step`th batch, as one sequence."""

    def __init__(self, clips: grain.MapDataset, batch_size: int, first: int, step: int):
        self.clips, self.batch_size, self.first, self.step = clips, batch_size, first, step

    def __len__(self) -> int:
        return (len(self.clips) // self.batch_size - self.first) // self.step * self.batch_size

    def __getitem__(self, index: int) -> dict:
        batch, row = divmod(index, self.batch_size)
        return cast(dict, self.clips[(self.first + batch * self.step) * self.batch_size + row])


def _leave_stopping_to_the_first(*_: int) -> None:
    """Has a process that decodes outlive signals that come to all of a run's: the clips of its last step are needed yet."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def stack_clips(pieces: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def train_batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    crop: int,
    rgb: tuple[int, int] | None = None,
    flow: tuple[int, int] | None = None,
    flip: bool = True,
    reverse: bool = False,
    short_side: int | None = None,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields this process's share of the training batches, for ever.

    Args:
      source: records with "video" and "flow" (bytes), "frames", "height", "width" and "label", by index
        (`ClipBuilder.records`).
      batch_size: clips of the whole batch, over all processes.
      seed: of order and augmentation.
      crop: pixels, of the square that is cut out at random; even.
      rgb, flow: frames of a clip, and the step between them at 25 per second; None: not wanted. Shorter videos are
        looped.
      flip: whether half the clips are mirrored. Wrong where left and right make a class.
      reverse: whether half the clips are played backwards. Wrong where the direction of time makes a class.
      short_side: pixels that RGB frames are resized to; None: as the records have them.
      start: the first batch to yield: the step of a run that is resumed.
      process, processes: which process this is, of how many.
      threads: that decode.
      workers: processes that decode, with so many threads each; 0: this one. A process cannot feed more than about 8
        cores' worth of threads. They are spawned, so scripts need `if __name__ == "__main__"`.

    Yields:
      "rgb", "flow", what is wanted of them, "corner", "mirrored" and perhaps "backwards", packed for `planes.unpack`,
      and "label" int32; batch_size / processes clips of each.

    Raises:
      ValueError: the batch is empty or cannot be cut into equal shares, there are no clips, no stream is wanted, or the crop is odd.
    """
    if batch_size < 1 or not len(source):
        raise ValueError(
            f"batches of {batch_size} of {len(source)} clips: wanted one or more of each"
        )
    if batch_size % processes:
        raise ValueError(
            f"a batch of {batch_size} clips cannot be cut into {processes} equal shares"
        )
    options = {"crop": check_even(crop), "flip": flip, "reverse": reverse, "short_side": short_side}
    clip = functools.partial(random_clip, streams=streams(rgb, flow), **options)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(clip)
    local = batch_size // processes
    # Threads and processes work on, and buffers hold, pieces of a few clips: a batch may be gigabytes.
    size = max(each for each in range(1, CLIPS_PER_TASK + 1) if local % each == 0)
    share = grain.MapDataset.source(
        ProcessShard(dataset, local, start * processes + process, processes)
    )
    # Batched before the threads and processes: piece number n is then the same clips, however many there are.
    pieces = share.batch(size, drop_remainder=True).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain asks absl for flags, also in programs that have none.
            flags.FLAGS.mark_as_parsed()
        pieces = pieces.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_leave_stopping_to_the_first,
        )
    iterator = iter(pieces)
    try:
        if size == local:
            # Copies too: JAX keeps arrays on a CPU as they are, longer than the memory that workers share should be there.
            yield from (stack_clips([piece]) for piece in iterator)
        else:
            groups = iter(lambda: list(itertools.islice(iterator, local // size)), [])
            yield from prefetch(stack_clips, groups, 1)
    finally:
        if workers:
            iterator.close()  # Ends the processes and frees what they share with this one.


class Chunk(NamedTuple):
    """A window of some test videos that are of one length, for a network to see.

    Attributes:
      records: of the videos, without their bytes; rows of the batch that there are none for repeat one of them.
      ticks: of the whole videos (see `Timing`).
      window: which part of them this is.
      streams: this process's share of batch_size clips, packed for `planes.unpack`.
    """

    records: list[dict]
    ticks: int
    window: Window
    streams: dict[str, np.ndarray]


def eval_chunks(
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
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[Chunk]:
    """Yields whole videos, centre-cropped, in batches of one length, each batch window after window.

    Which videos make a batch depends on the records alone, not on what is `done`. Decoded, there is never more in memory
    than a few windows.

    Args:
      source: records, in order.
      timing: of the network.
      rgb, flow: how many frames of a video may be used, and the step between them.
      chunk: the longest window, in ticks; None: all of the video.
      done: ids of records; batches of these are left out.
      process, processes: which process this is, of how many; each decodes its share of every batch, all see the same records.

    Raises:
      ValueError: the windows are too short for the network, or the crop is odd.
    """
    wanted, crop = streams(rgb, flow), check_even(crop)
    most = {stream: frames for stream, (frames, _) in wanted.items()}

    def load(records: list[dict], ticks: int, window: Window) -> Chunk:
        rows, share = [], batch_size // processes
        mine = records[process * share : (process + 1) * share] or records[:1]
        for record in mine:
            height, width = frame_size(record, short_side)
            centre = planes.Window((height - crop) // 2, (width - crop) // 2, crop)
            clip: dict = {}
            for stream, (_, stride) in wanted.items():
                per_tick = timing.frames(stream)
                part = {stream: ((window.stop - window.start) * per_tick, stride)}
                clip |= packed_clip(
                    record, centre, part, {stream: window.start * per_tick * stride}, short_side
                )
            rows.append(clip)
        rows += rows[:1] * (share - len(rows))
        about = [
            {name: value for name, value in record.items() if name not in ("video", "flow")}
            for record in records
        ]
        return Chunk(
            about, ticks, window, {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        )

    def jobs() -> Iterator[tuple]:
        for ticks, records in batch_by_length(source, length, batch_size):
            if not all(record["id"] in done for record in records):
                for window in timing.windows(ticks, chunk):
                    yield records, ticks, window

    def length(record: dict) -> int:
        available = {
            stream: -(-record["frames"] // stride) for stream, (_, stride) in wanted.items()
        }
        return timing.ticks(available, most)

    yield from prefetch(lambda job: load(*job), jobs(), threads)


def batch_by_length(
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
