"""Dense rows, streamed: the batch has slots, each with a video of its own.

The next video takes the slot of one that has ended. All of a device's memory is that of the batch,
whatever the videos' lengths.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from i3d_jax import video
from i3d_jax.features import networks, reading
from i3d_jax.features.networks import Programs
from i3d_jax.features.task import Extraction, Found, finished
from i3d_jax.models.streaming import CHUNK


class _Slot:
    """A video in the batch, and its rows as far as they have come.

    Attributes:
      video: the video.
      chunks: number of chunks after which all rows have come.
      fed: chunks that went to the network.
      back: chunks whose rows have come.
      rows: of each network, f32 [crops, rows, ...].
      left_out: whether the video is no longer wanted.
    """

    def __init__(self, opened: reading.Opened, what: Extraction):
        self.video = opened
        used = opened.length // what.ticks * what.ticks
        self.counts = [each.grid.rows(used) for each in what.sources]
        self.chunks = max(
            -(-(count + each.delay) * each.grid.step // CHUNK)
            for count, each in zip(self.counts, what.sources, strict=True)
        )
        self.fed = self.back = 0
        self.rows: list[np.ndarray | None] = [None] * len(what.sources)
        self.left_out = False

    def next_chunk(self) -> reading.Streams | None:
        """The next chunk to feed; None after the video's last one.

        Raises:
          video.VideoError: the video cannot be read.
          _OtherLengthError: it ends before its predicted end.
        """
        if self.fed * CHUNK >= self.video.length:
            return None
        chunk = self.video.ahead.take()
        if chunk is reading.END:
            raise _OtherLengthError(self.video.items.found)
        return chunk

    def add(self, network: int, values: np.ndarray, steps: np.ndarray, valid: np.ndarray) -> None:
        """Adds rows of a network.

        Args:
          network: its number.
          values: [crops, n, ...].
          steps: numbers of the rows, [n].
          valid: which of these are rows of the video, [n].
        """
        rows = self.rows[network]
        if rows is None:
            shape = values.shape[0], self.counts[network], *values.shape[2:]
            rows = self.rows[network] = np.empty(shape, np.float32)
        rows[:, steps[valid]] = values[:, valid]


class _OtherLengthError(Exception):
    """A video has another number of frames than its timestamps say."""

    def __init__(self, found: int):
        super().__init__(found)
        self.found = found


def extract_dense(
    paths: list[str],
    what: Extraction,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> Iterator[Found]:
    """Yields the features of videos; see `extraction.extract`."""
    programs = Programs(what.sources, what.keep_space)
    crops = reading.CROPS[what.how.crop]
    per_device = 1 if networks.one_by_one() else max(1, (what.batch_size or 16) // crops)

    def open_(path: str, length: int | None) -> reading.Opened:
        fps = what.how.rate(path)
        if length is None:
            length = video.predicted_length(path, fps)
            if length < what.least:  # It may be wrong.
                length = sum(1 for _ in video.iter_frames(path, fps=fps))
        used = length // what.ticks * what.ticks
        if used < what.least:
            found = f"{length} frames at {fps:g} per second"
            raise video.VideoError(
                path, f"too short: {found}, and at least {what.least} are needed without windows"
            )
        chunks = reading.Chunks(reading.read_frames(path, what.how, fps), CHUNK, length)
        return reading.Opened(path, fps, chunks, reading.Ahead(pool, chunks), length)

    number = per_device * programs.devices
    batch = _DenseBatch(programs, what, number, advance)
    yield from batch.run(reading.Queue(paths, open_, pool, number + 1))


class _DenseBatch:
    """The batch of videos that are streamed at the same time."""

    def __init__(
        self,
        programs: Programs,
        what: Extraction,
        number: int,
        advance: Callable[[int], None],
    ):
        self.programs, self.what, self.advance = programs, what, advance
        self.crops = reading.CROPS[what.how.crop]
        self.slots: list[_Slot | None] = [None] * number
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.states: Any = None
        self.again: set[str] = set()  # Videos whose length was predicted wrongly.

    def run(self, queue: reading.Queue) -> Iterator[Found]:
        """Yields the features of all videos of a queue."""
        running: collections.deque[tuple[Any, list[_Slot | None]]] = collections.deque()
        while True:
            fresh = yield from self._fill(queue)
            if not any(self.slots):
                if running:  # The videos in it may have to be read again.
                    yield from self._collect(*running.popleft(), queue)
                    continue
                return
            chunks: list[reading.Streams | None] = [None] * len(self.slots)
            for place, slot in enumerate(self.slots):
                if slot is not None:
                    try:
                        chunks[place] = slot.next_chunk()
                    except (_OtherLengthError, video.VideoError) as error:
                        slot.left_out, self.slots[place] = True, None
                        yield from self._once_more(slot.video.path, error, queue)
            if any(self.slots):
                running.append((self._feed(chunks, fresh), [*self.slots]))
            self.advance(CHUNK * sum(each is not None for each in chunks))
            for place, slot in enumerate(self.slots):
                if slot is not None:
                    slot.fed += 1
                    if slot.fed == slot.chunks:
                        self.slots[place] = None
            if len(running) > 1:
                yield from self._collect(*running.popleft(), queue)

    def _fill(self, queue: reading.Queue) -> Iterator[Any]:
        """Puts the next videos into free slots; returns where, and yields what is unreadable."""
        fresh = np.zeros(len(self.slots), bool)
        for place, slot in enumerate(self.slots):
            while slot is None and queue:
                path, opened = queue.first()
                try:
                    if isinstance(opened, video.VideoError):
                        raise opened
                    shapes = _shapes(opened)
                except (_OtherLengthError, video.VideoError) as error:
                    queue.remove_first()
                    yield from self._once_more(path, error, queue)
                    continue
                if shapes != self.shapes:
                    if any(self.slots):  # Frames of another size have to wait for these videos.
                        return fresh
                    self.shapes, self.states = shapes, None
                queue.remove_first()
                slot = self.slots[place] = _Slot(opened, self.what)
                fresh[place] = True
        return fresh

    def _feed(self, chunks: list[reading.Streams | None], fresh: np.ndarray) -> Any:
        """Runs the networks on the next chunks; returns what they give."""
        nothing = {
            stream: np.zeros(shape, np.uint8 if stream == "rgb" else np.float32)
            for stream, shape in self.shapes.items()
        }
        batch = {
            stream: np.concatenate([zeros if each is None else each[stream] for each in chunks])
            for stream, zeros in nothing.items()
        }
        if self.states is None:
            self.states = self.programs.start(batch)
        lengths = [
            0 if slot is None else slot.video.length // self.what.ticks for slot in self.slots
        ]
        self.states, found = self.programs.next_chunk(
            self.states,
            np.repeat(fresh, self.crops),
            np.repeat(np.array(lengths, np.int32), self.crops),
            batch,
        )
        return found

    def _collect(
        self, found: Any, slots: list[_Slot | None], queue: reading.Queue
    ) -> Iterator[Found]:
        """Takes rows from the devices, and yields the features of videos that have all of them."""
        arrays = [[np.asarray(each) for each in one] for one in found]
        for place, slot in enumerate(slots):
            if slot is None or slot.left_out:
                continue
            part = slice(place * self.crops, (place + 1) * self.crops)
            for number, (values, steps, valid) in enumerate(arrays):
                slot.add(number, values[part], steps[part.start], valid[part.start])
            slot.back += 1
            if slot.back < slot.chunks:
                continue
            try:
                while slot.video.ahead.take() is not reading.END:
                    pass
                if slot.video.items.found != slot.video.length:
                    raise _OtherLengthError(slot.video.items.found)
            except (_OtherLengthError, video.VideoError) as error:
                yield from self._once_more(slot.video.path, error, queue)
                continue
            rows = [each for each in slot.rows if each is not None]
            yield slot.video.path, finished(rows, slot.video, slot.video.length, self.what)

    def _once_more(self, path: str, error: Exception, queue: reading.Queue) -> Iterator[Found]:
        """Has a video read again with the right length, or yields its error."""
        if isinstance(error, video.VideoError):
            yield path, error
        elif isinstance(error, _OtherLengthError) and path not in self.again:
            self.again.add(path)
            queue.put_back(path, error.found)
        else:
            yield path, video.VideoError(path, "has another length each time that it is read")


def _shapes(opened: reading.Opened) -> dict[str, tuple[int, ...]]:
    """The shapes of a video's chunks.

    Raises:
      video.VideoError: the video cannot be read.
      _OtherLengthError: it ends before its first chunk does.
    """
    first = opened.ahead.peek()
    if first is reading.END:
        raise _OtherLengthError(opened.items.found)
    return {stream: each.shape for stream, each in first.items()}
