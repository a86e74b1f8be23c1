"""Reads the frames of videos as networks take them: by stream, cropped, in chunks or windows."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import numpy as np

from i3d_jax import cli, flow, pixels, video
from i3d_jax.features.grids import Windows
from i3d_jax.flow.videos import flow_of_frames

# By name, the number of crops.
CROPS = {"centre": 1, "ten": 10, "whole": 1}
END = object()  # What `Ahead.take` returns after the last item.

# Of "rgb", uint8, and "flow", f32 in units of 20 pixels, what networks take.
Streams = dict[str, np.ndarray]


class Reading(NamedTuple):
    """How videos are read.

    Attributes:
      streams: "rgb", "flow", or both in this order.
      fps: frames per second; None is the video's own rate.
      short_side: of the frames, in pixels.
      crop: one of CROPS: the centre; the four corners, the centre, and the mirror images of these
        five; or the whole frame.
      size: side of a crop in pixels.
      tv_l1: settings of the optical flow.
    """

    streams: tuple[str, ...] = ("rgb",)
    fps: float | None = 25.0
    short_side: int = 256
    crop: str = "centre"
    size: int = 224
    tv_l1: flow.TVL1 = flow.OPENCV

    def rate(self, path: str) -> float:
        """Frames per second at which a video is read; a VideoError if it cannot be opened."""
        return float(video.frame_rate(path) if self.fps is None else self.fps)


def read_frames(path: str, how: Reading, fps: float) -> Iterator[Streams]:
    """Yields a video's frames, [crops, H, W, C] of each stream.

    Args:
      path: of the video.
      how: to read it.
      fps: frames per second.

    Raises:
      video.VideoError: the video cannot be read. No other error is raised, so that no other video
        is lost by it.
    """
    options: dict[str, Any] = {"fps": fps, "short_side": how.short_side}
    sources: dict[str, Iterable[np.ndarray]] = {}
    try:
        if "rgb" in how.streams:
            sources["rgb"] = video.rgb_frames(path, **options)
        if "flow" in how.streams:
            of_pixels = flow_of_frames(video.grey(path, **options), how.tv_l1)
            sources["flow"] = map(pixels.flow_unit, of_pixels)
        for each in zip(*sources.values(), strict=True):
            yield {
                stream: crops(frame, how.crop, how.size)
                for stream, frame in zip(sources, each, strict=True)
            }
    except video.VideoError:
        raise
    except Exception as error:
        raise video.VideoError(path, f"cannot be read: {cli.one_line(error)}") from error


def crops(frame: np.ndarray, crop: str, size: int) -> np.ndarray:
    """Cuts a frame [H, W, C] into [crops, H, W, C]; mirrored flow has u negated.

    Args:
      frame: uint8 RGB or f32 flow.
      crop: one of CROPS.
      size: side of a crop in pixels.
    """
    if crop == "whole":
        return frame[None]
    if crop == "centre":
        return pixels.crop(frame[None], size)
    bottom, right = frame.shape[0] - size, frame.shape[1] - size
    corners = (0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)
    plain = np.stack([frame[top : top + size, left : left + size] for top, left in corners])
    mirrored = plain[:, :, ::-1]
    if frame.shape[-1] == 2:
        mirrored = mirrored * np.array([-1, 1], frame.dtype)
    return np.concatenate([plain, mirrored])


class Ahead:
    """Takes items from an iterator, one ahead, in a thread.

    Args:
      pool: of the threads.
      items: the iterator.
    """

    def __init__(self, pool: Executor, items: Iterator[Any]):
        self._pool, self._items = pool, items
        self._next = pool.submit(next, items, END)

    def peek(self) -> Any:
        """The next item, or END, which stays the next one."""
        return self._next.result()

    def take(self) -> Any:
        """The next item, or END."""
        item = self._next.result()
        if item is not END:
            self._next = self._pool.submit(next, self._items, END)
        return item


def stack(frames: list[Streams]) -> Streams:
    """Stacks frames in time: [crops, T, H, W, C] of each stream."""
    return {stream: np.stack([each[stream] for each in frames], 1) for stream in frames[0]}


class Parts(Iterator[Streams]):
    """The parts of a video that are computed one after another.

    Attributes:
      found: frames that the video has, after the iteration.
    """

    def __init__(self, frames: Iterator[Streams]):
        self.found = 0
        self._frames, self._parts = frames, self._cut()

    def __next__(self) -> Streams:
        return next(self._parts)

    def _cut(self) -> Iterator[Streams]:
        """Yields the parts, and counts the frames."""
        raise NotImplementedError


class Chunks(Parts):
    """The consecutive chunks of a video.

    Frames beyond the given length are counted only. If there are fewer, the last chunk is missing.
    """

    def __init__(self, frames: Iterator[Streams], size: int, length: int):
        super().__init__(frames)
        self._size, self._length = size, length

    def _cut(self) -> Iterator[Streams]:
        held: list[Streams] = []
        for frame in self._frames:
            self.found += 1
            if self.found > self._length:
                continue
            held.append(frame)
            if len(held) == self._size or self.found == self._length:
                # What is beyond the end does not matter.
                yield stack(held + held[-1:] * (self._size - len(held)))
                held = []


class WindowsOf(Parts):
    """The windows of a video."""

    def __init__(self, frames: Iterator[Streams], windows: Windows):
        super().__init__(frames)
        self._windows = windows

    def _cut(self) -> Iterator[Streams]:
        size, stride, partial, following = self._windows
        held: deque[Streams] = deque(maxlen=size + following)
        done = 0
        for frame in self._frames:
            held.append(frame)
            self.found += 1
            if self.found == done * stride + size + following:
                yield stack([*itertools.islice(held, size)])
                done += 1
        for start, end in self._windows.spans(self.found)[done:]:
            left = [*held][-(self.found - start) :]
            assert partial != "drop" and len(left) == end - start
            yield stack([left[index] for index in self._windows.filled(len(left))])


class Opened(NamedTuple):
    """A video that is being read.

    Attributes:
      path: of the video.
      fps: at which it is read.
      items: its chunks or windows.
      ahead: takes these, one ahead.
      length: frames that it is taken to have; 0 if this does not matter.
    """

    path: str
    fps: float
    items: Parts
    ahead: Ahead
    length: int = 0


class Queue:
    """Opens the next videos ahead of their use.

    Args:
      paths: of the videos.
      open_: a function from a path, and a length if that is known, to an opened video.
      pool: the threads to open in.
      number: of videos that are open.
    """

    def __init__(
        self,
        paths: list[str],
        open_: Callable[[str, int | None], Opened],
        pool: Executor,
        number: int,
    ):
        self._paths, self._open, self._pool = iter(paths), open_, pool
        self._next: deque[tuple[str, Future]] = deque()
        for path in itertools.islice(self._paths, number):
            self._submit(path)

    def _submit(self, path: str) -> None:
        self._next.append((path, self._pool.submit(self._open, path, None)))

    def __bool__(self) -> bool:
        return bool(self._next)

    def put_back(self, path: str, length: int) -> None:
        """Has a video come next, once more, and with another length."""
        self._next.appendleft((path, self._pool.submit(self._open, path, length)))

    def first(self) -> tuple[str, Opened | video.VideoError]:
        """The next video, which stays in the queue."""
        path, opened = self._next[0]
        try:
            return path, opened.result()
        except video.VideoError as error:
            return path, error
        except Exception as error:  # noqa: BLE001 - it is this video's, and the others go on
            return path, video.VideoError(path, f"cannot be read: {cli.one_line(error)}")

    def remove_first(self) -> None:
        """Removes the next video from the queue, and opens another one."""
        self._next.popleft()
        for path in itertools.islice(self._paths, 1):
            self._submit(path)
