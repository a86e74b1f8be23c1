"""Input pipelines: prepared records -> clips -> batches, with Grain and without TensorFlow.

Order and augmentation of the training clips are a pure function of (seed, step). They do not depend
on the number of processes or threads, nor on restarts; a run resumes from its step alone. Clips are
packed planes (see `planes`), which the compiled step unpacks.
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
from i3d_jax.models.timing import Timing
from i3d_jax.prefetch import prefetch
from i3d_jax.video import decoding, planes, windows

CLIPS_PER_TASK = 8  # At most so many clips of a batch are decoded together.

# For "rgb" and "flow": the number of frames, and the step between them at 25 per second.
Streams = dict[str, tuple[int, int]]


def streams(rgb: tuple[int, int] | None = None, flow: tuple[int, int] | None = None) -> Streams:
    """The streams that clips have.

    Args:
      rgb: (frames, step between them); None: no RGB.
      flow: (frames, step between them); None: no flow.

    Raises:
      ValueError: both are None, or one is not a pair of positive whole numbers.
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


def read_frames(
    record: dict,
    stream: str,
    window: planes.Window,
    *,
    start: int,
    count: int,
    stride: int,
    short_side: int | None = None,
) -> np.ndarray:
    """Decodes a window of some frames of a record; a video that is too short is looped.

    Args:
      record: see `train_batches`.
      stream: "rgb" or "flow".
      window: the part of the frames to read.
      start: first frame.
      count: number of frames.
      stride: takes every `stride`-th frame.
      short_side: pixels that RGB frames are resized to first; None: as they are.

    Returns:
      packed frames, as `windows.read` returns them.

    Raises:
      video.VideoError: the video cannot be decoded, or has fewer frames than the record says. The
        message names the record.
    """
    size = None if short_side is None else frame_size(record, short_side)
    length, parts = int(record["frames"]), []
    data = record["video" if stream == "rgb" else stream]
    while count > 0:
        start = int(start) % length
        number = min(count, -(-(length - start) // stride))
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
    """Cuts a training clip out of a record: random start, random crop, random flip (section 3).

    All streams show the same time, and are cropped, flipped and reversed alike.

    Args:
      record: see `train_batches`.
      rng: source of the randomness.
      streams: the streams to read.
      crop: see `train_batches`.
      flip: see `train_batches`.
      reverse: see `train_batches`.
      short_side: see `train_batches`.

    Returns:
      a clip as `planes.unpack` takes it, with "backwards" if `reverse` is set, and with "label".
    """
    backwards = reverse and rng.random() < 0.5
    span = max((frames - 1) * stride + 1 for frames, stride in streams.values())
    # Backwards, a frame's flow is the opposite of the flow of the frame before. The first frame has
    # none before it.
    first = int(backwards and "flow" in streams and record["frames"] > span)
    start = first + int(rng.integers(max(1, record["frames"] - span + 1 - first)))
    room = [max(1, side - crop + 1) for side in frame_size(record, short_side)]
    top, left = (int(rng.integers(n)) for n in room)
    mirrored = flip and rng.random() < 0.5
    starts = dict.fromkeys(streams, start)
    if backwards:
        for stream, (frames, stride) in streams.items():
            starts[stream] = start + span - 1 - (frames - 1) * stride - (stream == "flow")
    window = planes.Window(top, left, crop)
    clip = packed_clip(record, window, streams, starts, short_side, mirrored)
    clip |= {"backwards": np.bool_(backwards)} if reverse else {}
    return clip | {"label": np.int32(record["label"])}


def frame_size(record: dict, short_side: int | None) -> tuple[int, int]:
    """(height, width) of a record's frames, resized to `short_side` if that is given."""
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
    """Reads a clip as `planes.unpack` takes it, without batch dimension.

    Args:
      record: see `train_batches`.
      window: the crop.
      streams: the streams to read.
      starts: first frame of each stream.
      short_side: pixels that RGB frames are resized to first; None: as they are.
      mirrored: whether the clip is to be mirrored.
    """
    clip: dict = {
        stream: read_frames(
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
    """Returns the size of a crop if it is even.

    Raises:
      ValueError: it is odd. Two pixels share a colour.
    """
    if crop % 2:
        raise ValueError(f"crop: {crop} pixels, wanted an even number")
    return crop


class ProcessShard:
    """The clips of every `step`-th batch, as one sequence.

    Args:
      clips: the clips of all batches, in order.
      batch_size: clips of a batch.
      first: the first batch to take.
      step: distance from one batch taken to the next.
    """

    def __init__(self, clips: grain.MapDataset, batch_size: int, first: int, step: int):
        self.clips, self.batch_size, self.first, self.step = clips, batch_size, first, step

    def __len__(self) -> int:
        return (len(self.clips) // self.batch_size - self.first) // self.step * self.batch_size

    def __getitem__(self, index: int) -> dict:
        batch, row = divmod(index, self.batch_size)
        return cast(dict, self.clips[(self.first + batch * self.step) * self.batch_size + row])


def stack_clips(pieces: list[dict]) -> dict[str, np.ndarray]:
    """Concatenates parts of a batch."""
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
    """Yields this process's share of the training batches, without end.

    Args:
      source: the records, by index (`ClipBuilder.records`): dicts with "video" and "flow" (bytes),
        "frames", "height", "width" and "label".
      batch_size: number of clips of a whole batch, over all processes.
      seed: seed of order and augmentation.
      crop: side in pixels of the random square crop; even.
      rgb: frames of a clip, and the step between them at 25 per second; None: no RGB. Shorter
        videos are looped.
      flow: the same for flow.
      flip: whether to mirror half the clips. Leave it out where left and right make a class.
      reverse: whether to play half the clips backwards. Leave it out where the direction of time
        makes a class.
      short_side: pixels that RGB frames are resized to; None: as the records have them.
      start: the first batch to yield; to resume a run, its step.
      process: index of this process.
      processes: number of processes.
      threads: number of decoding threads.
      workers: number of decoding processes, each with so many threads; 0: decode in this process.
        One process keeps at most about 8 cores busy. Workers are spawned, so scripts need
        `if __name__ == "__main__"`.

    Yields:
      batches of batch_size / processes clips as `planes.unpack` takes them, with "label", int32.

    Raises:
      ValueError: the batch is empty or cannot be split evenly, there are no clips, no stream is
        given, or the crop is odd.
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
    make_clip = functools.partial(random_clip, streams=streams(rgb, flow), **options)
    clips = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(make_clip)
    local = batch_size // processes
    # Pieces of a few clips are decoded and buffered at a time: a batch may be gigabytes.
    piece_size = max(n for n in range(1, CLIPS_PER_TASK + 1) if local % n == 0)
    share = ProcessShard(clips, local, start * processes + process, processes)
    # Batched before the threads and processes, so that pieces do not depend on their number.
    pieces = (
        grain.MapDataset.source(share)
        .batch(piece_size, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )
    iterator = iter(_decode_in_processes(pieces, workers) if workers else pieces)
    try:
        if piece_size == local:
            # This copies. JAX on a CPU keeps the arrays as they are, longer than the memory that
            # workers share may stay.
            yield from (stack_clips([piece]) for piece in iterator)
        else:
            groups = iter(lambda: list(itertools.islice(iterator, local // piece_size)), [])
            yield from prefetch(stack_clips, groups, 1)
    finally:
        if workers:
            iterator.close()  # Ends the processes and frees the memory they share with this one.


def _decode_in_processes(pieces: grain.IterDataset, workers: int) -> grain.IterDataset:
    if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, also in programs without them.
        flags.FLAGS.mark_as_parsed()
    return pieces.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_ignore_stop_signals,
    )


def _ignore_stop_signals(*_: int) -> None:
    """Keeps a decoding process alive when all processes of a run get a signal.

    The training process stops it. Until then the last step needs its clips.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Chunk(NamedTuple):
    """Some consecutive ticks of a batch of test videos of one length.

    Attributes:
      records: the videos' records, without bytes. If there are fewer than rows, the other rows
        repeat one of them.
      ticks: length of the whole videos (see `Timing`).
      start: the first tick of this chunk.
      streams: this process's share of the clips, as `planes.unpack` takes them.
    """

    records: list[dict]
    ticks: int
    start: int
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
    """Yields whole videos, centre-cropped, in batches of one length, chunk after chunk.

    The videos of a batch depend on the records alone, not on `done`. Only a few decoded chunks are
    in memory at a time. The last chunk of longer videos is as long as the others; what it has
    behind the videos' end is arbitrary.

    Args:
      source: the records, in order.
      timing: of the network.
      batch_size: number of videos of a batch, over all processes.
      crop: side in pixels of the central crop; even.
      rgb: maximum number of frames of a video, and the step between them; None: no RGB.
      flow: the same for flow.
      short_side: pixels that RGB frames are resized to; None: as the records have them.
      chunk: longest chunk, in ticks; None: the whole video.
      done: ids of records. Batches of which all are done are left out.
      process: index of this process. Each process decodes its share of every batch.
      processes: number of processes. All must get the same records.
      threads: number of decoding threads.

    Raises:
      ValueError: the crop is odd.
    """
    wanted, crop = streams(rgb, flow), check_even(crop)
    max_frames = {stream: frames for stream, (frames, _) in wanted.items()}
    share = batch_size // processes

    def length(record: dict) -> int:
        available = {
            stream: -(-record["frames"] // stride) for stream, (_, stride) in wanted.items()
        }
        return timing.ticks(available, max_frames)

    def jobs() -> Iterator[tuple[list[dict], int, range]]:
        for ticks, records in batch_by_length(source, length, batch_size):
            if not all(record["id"] in done for record in records):
                size = min(chunk or ticks, ticks)
                for start in range(0, ticks, size):
                    yield records, ticks, range(start, start + size)

    def load(job: tuple[list[dict], int, range]) -> Chunk:
        records, ticks, chunk = job
        mine = records[process * share : (process + 1) * share] or records[:1]
        rows = [_eval_clip(record, wanted, timing, chunk, crop, short_side) for record in mine]
        rows += rows[:1] * (share - len(rows))
        descriptions = [
            {name: value for name, value in record.items() if name not in ("video", "flow")}
            for record in records
        ]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return Chunk(descriptions, ticks, chunk.start, batch)

    yield from prefetch(load, jobs(), threads)


def _eval_clip(
    record: dict,
    streams: Streams,
    timing: Timing,
    ticks: range,
    crop: int,
    short_side: int | None,
) -> dict:
    """Reads some ticks of a record, centre-cropped, as `planes.unpack` takes it."""
    height, width = frame_size(record, short_side)
    centre = planes.Window((height - crop) // 2, (width - crop) // 2, crop)
    frames, starts = {}, {}
    for stream, (_, stride) in streams.items():
        per_tick = timing.frames(stream)
        frames[stream] = (len(ticks) * per_tick, stride)
        starts[stream] = ticks.start * per_tick * stride
    return packed_clip(record, centre, frames, starts, short_side)


def batch_by_length(
    records: Iterable[dict], length: Callable[[dict], int], batch_size: int
) -> Iterator[tuple[int, list[dict]]]:
    """Groups records by length: yields (length, records), full batches if there are any.

    At most four batches' worth of records wait. Then the largest incomplete batch is yielded.

    Args:
      records: the records, in order.
      length: returns the length of a record.
      batch_size: number of records of a full batch.
    """
    waiting: dict[int, list[dict]] = collections.defaultdict(list)
    for record in records:
        found = length(record)
        waiting[found].append(record)
        if len(waiting[found]) == batch_size:
            yield found, waiting.pop(found)
        elif sum(map(len, waiting.values())) > 4 * batch_size:
            largest = max(waiting, key=lambda ticks: len(waiting[ticks]))
            yield largest, waiting.pop(largest)
    yield from waiting.items()
