"""Windows, each a whole video for the network, in batches of windows of several videos."""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from i3d_jax import video
from i3d_jax.features import networks, reading
from i3d_jax.features.networks import Programs
from i3d_jax.features.task import Extraction, Found, finished
from i3d_jax.prefetch import usable_cores


class _Windowed:
    """A video whose windows are computed.

    Attributes:
      video: the video.
      rows: of each network and crop, by the window's number.
      taken: number of windows that were read.
      wanted: number of clips, of all crops, whose features are not there yet.
      ended: whether all windows were read.
      left_out: whether the video is no longer wanted.
    """

    def __init__(self, opened: reading.Opened, networks: int, crops: int):
        self.video = opened
        self.rows: list[list[list[np.ndarray]]] = [
            [[] for _ in range(crops)] for _ in range(networks)
        ]
        self.taken = self.wanted = 0
        self.ended = self.left_out = False


def extract_windows(
    paths: list[str],
    what: Extraction,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> Iterator[Found]:
    """Yields the features of videos; see `extraction.extract`."""
    assert what.windows is not None
    windows = what.windows

    def open_(path: str, _: int | None) -> reading.Opened:
        fps = what.how.rate(path)
        items = reading.WindowsOf(reading.read_frames(path, what.how, fps), windows)
        return reading.Opened(path, fps, items, reading.Ahead(pool, items))

    alone = networks.one_by_one()
    programs = Programs(what.sources, what.keep_space)
    size = programs.devices * (1 if alone else what.batch_size or 16)
    number = 2 if alone else max(4, usable_cores())
    yield from _WindowBatch(programs, what, size, advance).run(
        reading.Queue(paths, open_, pool, 2), number
    )


class _WindowBatch:
    """Batches of windows of several videos."""

    def __init__(
        self,
        programs: Programs,
        what: Extraction,
        size: int,
        advance: Callable[[int], None],
    ):
        self.programs, self.what, self.size, self.advance = programs, what, size, advance
        self.crops = reading.CROPS[what.how.crop]
        # Clips that wait for a batch, by their shape.
        self.waiting: dict[Any, list[tuple[_Windowed, int, reading.Streams]]] = {}
        self.running: collections.deque = collections.deque()

    def run(self, queue: reading.Queue, number: int) -> Iterator[Found]:
        """Yields the features of all videos of a queue, of which so many are read at a time."""
        videos: collections.deque[_Windowed] = collections.deque()
        while True:
            while queue and len(videos) < number:
                path, opened = queue.first()
                queue.remove_first()
                if isinstance(opened, video.VideoError):
                    yield path, opened
                else:
                    videos.append(_Windowed(opened, len(self.what.sources), self.crops))
            if not videos:
                break
            each = videos.popleft()
            try:
                window = each.video.ahead.take()
            except video.VideoError as error:
                each.left_out = True
                yield each.video.path, error
                continue
            if window is reading.END:
                each.ended = True
                yield from self._if_done(each)
                continue
            videos.append(each)
            yield from self._add(each, window)
        for shape in list(self.waiting):
            self._start(self.waiting.pop(shape))
        while self.running:
            yield from self._collect()

    def _add(self, each: _Windowed, window: reading.Streams) -> Iterator[Found]:
        """Adds a video's next window to the clips that wait; runs a batch if it is full."""
        shape = tuple(sorted((stream, clip.shape) for stream, clip in window.items()))
        for crop in range(self.crops):
            clips = self.waiting.setdefault(shape, [])
            clips.append((each, crop, {stream: clip[crop] for stream, clip in window.items()}))
            each.wanted += 1
            if len(clips) == self.size:
                self._start(self.waiting.pop(shape))
                if len(self.running) > 1:
                    yield from self._collect()

    def _start(self, clips: list[tuple[_Windowed, int, reading.Streams]]) -> None:
        """Has the devices compute a batch, which is filled up with its last clip."""
        filled = clips + clips[-1:] * (self.size - len(clips))
        batch = {stream: np.stack([clip[stream] for *_, clip in filled]) for stream in clips[0][2]}
        assert self.what.windows is not None
        self.advance(len(clips) * self.what.windows.size)
        self.running.append((clips, self.programs.window_means(batch)))

    def _collect(self) -> Iterator[Found]:
        """Takes the features of a batch; yields the videos that have all of theirs."""
        clips, found = self.running.popleft()
        arrays = [np.asarray(each) for each in found]
        for place, (each, crop, _) in enumerate(clips):
            for network, values in enumerate(arrays):
                each.rows[network][crop].append(values[place])
            each.wanted -= 1
            yield from self._if_done(each)

    def _if_done(self, each: _Windowed) -> Iterator[Found]:
        """Yields a video's features if they are complete."""
        if each.left_out or not each.ended or each.wanted:
            return
        each.left_out = True
        if not each.video.items.found:
            yield each.video.path, video.VideoError(each.video.path, "has no frame")
            return
        assert self.what.windows is not None
        if each.rows[0][0]:
            rows = [np.array([np.stack(crop) for crop in one]) for one in each.rows]
        else:
            shapes = self.programs.row_shapes(self.what.windows.size, self.what.how.size)
            rows = [np.zeros((self.crops, 0, *shape), np.float32) for shape in shapes]
        found = finished(rows, each.video, each.video.items.found, self.what)
        yield each.video.path, found
