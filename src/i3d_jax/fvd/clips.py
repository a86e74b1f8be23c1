"""Clips of videos: where they lie, and how they are read ahead of the network."""

import collections
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from i3d_jax import cli
from i3d_jax.features.reading import END, Ahead
from i3d_jax.fvd.videos import VideoSet
from i3d_jax.prefetch import usable_cores
from i3d_jax.video import VideoError


class Selection(NamedTuple):
    """Which clips of a set of videos are taken.

    Attributes:
      clips: one of `conventions.SAMPLINGS`.
      number: of clips at most; None is all.
      seed: of random places.
    """

    clips: str
    number: int | None = None
    seed: int = 0

    def starts(self, name: str, length: int, span: int, step: int) -> list[int]:
        """The first frames of a video's clips.

        Args:
          name: of the video, which with the seed makes the random place.
          length: of the video.
          span: frames from a clip's first to its last, both counted.
          step: frames from one clip to the next, if all are taken.
        """
        last = length - span
        if self.clips == "first":
            return [0]
        if self.clips == "all":
            return [*range(0, last + 1, step)]
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        return [int.from_bytes(digest, "big") % (last + 1)]


class Clip(NamedTuple):
    """A clip of a video.

    Attributes:
      video: number of its video.
      start: its first frame.
      frames: [T, H, W, 3], uint8, or float32 from 0 to 255.
      selections: the selections that take it.
    """

    video: int
    start: int
    frames: np.ndarray
    selections: frozenset[Selection]

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that tell clips apart."""
        shape = f"{self.frames.shape} {self.frames.dtype}".encode()
        content = np.ascontiguousarray(self.frames)
        return hashlib.blake2b(content.data, digest_size=16, key=shape[:64]).digest()

    @property
    def is_static(self) -> bool:
        """Whether all of its frames are equal."""
        return bool((self.frames == self.frames[:1]).all())


class Facts(NamedTuple):
    """What is known of a video.

    Attributes:
      frames: number of its frames.
      fps: frames per second, or None.
    """

    frames: int
    fps: float | None


def read_clips(
    videos: VideoSet,
    numbers: Collection[int],
    selections: Callable[[], Collection[Selection]],
    frames: int,
    stride: int = 1,
) -> Iterator[Clip | Facts | VideoError]:
    """Reads the clips of videos, while those of the next videos are read ahead.

    Args:
      videos: the videos.
      numbers: of the videos to read, in this order.
      selections: function that returns those that take clips yet; no more are read for others.
      frames: of a clip.
      stride: from one frame of a clip to the next, in frames of the video.

    Yields:
      for each video its facts and its clips, or what is wrong with it. If a video cannot be read
      to the end, its earlier clips come before the error.
    """
    # An array in a compressed file is read from its start to its end.
    workers = 1 if videos.kind == "array" else max(2, usable_cores())
    pool = ThreadPoolExecutor(workers)
    left = iter(numbers)
    queue: collections.deque[Ahead] = collections.deque()

    def read(number: int) -> Iterator[Clip | Facts | VideoError]:
        try:
            yield from _of_video(videos, number, selections(), frames, stride)
        except VideoError as error:
            yield error
        except Exception as error:  # noqa: BLE001 - it is this video's, and the others go on
            yield VideoError(videos.where(number), f"cannot be read: {cli.one_line(error)}")

    try:
        while selections():
            for number in itertools.islice(left, workers - len(queue)):
                queue.append(Ahead(pool, read(number)))
            if not queue:
                return
            ahead = queue.popleft()
            while selections() and (found := ahead.take()) is not END:
                yield found
    finally:
        # A caller that stops early does not wait.
        pool.shutdown(wait=False, cancel_futures=True)


def _of_video(
    videos: VideoSet, number: int, selections: Collection[Selection], frames: int, stride: int
) -> Iterator[Clip | Facts]:
    """Yields the facts of a video, and its clips."""
    span = (frames - 1) * stride + 1
    length, fps = videos.length(number)
    for counted in False, True:
        if counted or length < span:  # Timestamps may be wrong.
            length = sum(1 for _ in videos.frames(number, 0))
        if length < span:
            found = f"{length} frames, wanted {span} at least"
            raise VideoError(videos.where(number), f"too short: {found}")
        places: dict[int, set[Selection]] = {}
        for selection in selections:
            for start in selection.starts(videos.names[number], length, span, frames * stride):
                places.setdefault(start, set()).add(selection)
        clips = _cut(videos, number, places, frames, stride)
        try:
            first = next(clips, None)
        except VideoError:
            if counted:
                raise
            continue
        if first is not None:
            yield Facts(length, fps)
            yield first
            yield from clips
            return
    raise VideoError(videos.where(number), "has another length each time that it is read")


def _cut(
    videos: VideoSet, number: int, places: dict[int, set[Selection]], frames: int, stride: int
) -> Iterator[Clip]:
    """Yields the clips of a video that begin at given frames, as far as the video goes."""
    begin, span = min(places), (frames - 1) * stride + 1
    open_clips: dict[int, list[np.ndarray]] = {}
    waiting = sorted(places, reverse=True)
    source = videos.frames(number, begin)
    for at, frame in enumerate(source, begin):
        if waiting and waiting[-1] == at:
            open_clips[waiting.pop()] = []
        for start, held in open_clips.items():
            if (at - start) % stride == 0:
                held.append(frame)
        done = at - span + 1
        if done in open_clips:
            yield Clip(number, done, np.stack(open_clips.pop(done)), frozenset(places[done]))
        if not open_clips and not waiting:
            return
