"""Predictions over time: the rows of logits of a whole video, computed as a stream.

A network makes one row of logits per step in time (`models.timing`): I3D one per 8 frames, which
covers 16. Rows are those of one pass over the whole video, but a video of any length takes the
memory of a few chunks.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from i3d_jax import flow, models, pixels, video, weights
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.models import Network, streaming
from i3d_jax.models.timing import Timing
from i3d_jax.prefetch import prefetch


class VideoRows(NamedTuple):
    """The rows of a whole video.

    Attributes:
      logits: f32 [rows, K].
      spans: f64 [rows, 2], the start and end of each row in seconds.
      frames: number of frames of the first stream.
    """

    logits: np.ndarray
    spans: np.ndarray
    frames: int


class LogitStream:
    """Runs a network over one video after another, chunk by chunk.

    Args:
      network: any network of the zoo.
      variables: its variables.
      info: of the weights.
      frames: RGB frames per chunk (of flow, if there is no RGB), rounded up to whole steps of the
        network.

    Attributes:
      ticks: ticks per chunk (`models.timing`).
      fed: ticks fed so far of the current video.
      rows: rows returned so far of the current video.
    """

    def __init__(
        self,
        network: Network,
        variables: Any,
        info: weights.Info,
        frames: int = streaming.CHUNK,
    ):
        timing = network.timing
        per_tick = timing.frames(next(iter(info.footprint)))
        self.network, self._info = network, info
        self.ticks = -(-frames // (per_tick * timing.step)) * timing.step
        self.fed = self.rows = 0
        self._variables = jax.device_put(variables)
        self._shapes = models.input_shapes(
            {name: (self.ticks * timing.frames(name), 1) for name in info.footprint}, info.crop
        )
        self._state: Any = None
        self._lengths: int | None = None

        def step(variables, state, streams):
            chunk = models.as_network_input(pixels.streams_to_unit(streams))
            state, ends = streaming.step(variables, state, chunk, network=network)
            return state, ends["Logits"].values[0], ends["Logits"].valid[0]

        self._step = jax.jit(step, compiler_options=models.compiler_options())

    def start(self, ticks: int | None = None) -> None:
        """Begins a new video.

        Args:
          ticks: its length. None: not known yet. It is then taken to be a multiple of 16.
        """
        if self._state is None:
            self._state = streaming.start(self.network, self._variables, self._shapes)
        length = streaming.ENDLESS if ticks is None else ticks
        self._state = streaming.restart(self._state, np.array([True]), length)
        self.fed = self.rows = 0

    def end(self, ticks: int) -> None:
        """Sets the length of a video whose length was not known; call it before the last chunk.

        Args:
          ticks: the length, a multiple of 16.
        """
        self._state = self._state._replace(length=self._state.length * 0 + ticks)

    def feed(self, streams: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the next rows of logits, f32 [rows, K]; rows come late, so often none at first.

        Args:
          streams: the next chunk by stream, [frames, crop, crop, C]: uint8, or float32 in [-1, 1].
            A short chunk is filled up.
        """
        filled = {}
        for name, frames in streams.items():
            count = self.ticks * self.network.timing.frames(name)
            filled[name] = frames[np.minimum(np.arange(count), len(frames) - 1)][None]
        self._state, logits, valid = self._step(self._variables, self._state, filled)
        found = np.asarray(logits)[np.asarray(valid)]
        self.fed, self.rows = self.fed + self.ticks, self.rows + len(found)
        return found

    def blank(self) -> dict[str, np.ndarray]:
        """A chunk of black frames or no motion, to push the last rows out."""
        shapes = self._shapes if isinstance(self._shapes, dict) else {"": self._shapes}
        dtypes = {"rgb": np.uint8, "flow": np.float32}
        return {
            name: np.zeros(shape.shape[1:], dtypes[name])
            for name, shape in zip(self._info.footprint, shapes.values(), strict=True)
        }


def row_spans(timing: Timing, ticks: int) -> np.ndarray:
    """The ticks that each row covers: from the first up to, not including, the second.

    I3D's row s covers [8 s, 8 s + 16), as far as the video goes.

    Args:
      timing: of the network.
      ticks: length of the video.

    Returns:
      int [rows, 2].
    """
    start = np.arange(timing.steps(ticks)) * timing.step
    return np.stack([start, np.minimum(start + (1 + timing.lost) * timing.step, ticks)], 1)


def tick_seconds(network: Network, info: weights.Info) -> float:
    """Seconds from one tick of a network to the next."""
    stream, (_, stride) = next(iter(info.footprint.items()))
    return network.timing.frames(stream) * stride / info.fps


def frames_of(
    path: str, stream: str, info: weights.Info, settings: flow.TVL1, frames: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the frames of a video as a network takes them.

    Args:
      path: of the video.
      stream: "rgb" or "flow".
      info: of the network's weights.
      settings: of the optical flow.
      frames: most frames to yield.

    Yields:
      uint8 [crop, crop, 3], or float32 [crop, crop, 2] in [-1, 1].

    Raises:
      VideoError: the video cannot be read.
    """
    stride = info.footprint[stream][1]
    sizes: dict[str, Any] = dict(fps=info.fps, short_side=info.short_side)
    if stream == "rgb":
        yield from video.rgb_frames(path, crop=info.crop, frames=frames, stride=stride, **sizes)
        return
    most = None if frames is None else (frames - 1) * stride + 1
    grey = video.grey(path, frames=most, **sizes)
    for each in itertools.islice(flow_of_frames(grey, settings), None, None, stride):
        yield pixels.crop(pixels.flow_unit(each)[None], info.crop)[0]


def check_length(path: str, counts: Mapping[str, int], network: Network, info: weights.Info) -> int:
    """The length of a video in ticks.

    Args:
      path: of the video.
      counts: frames of each stream.
      network: that shall see it.
      info: of its weights.

    Raises:
      VideoError: the network needs more frames.
    """
    timing = network.timing
    for stream, count in counts.items():
        least = timing.least * timing.frames(stream)
        if count < least:
            rate = info.fps / info.footprint[stream][1]
            raise video.VideoError(
                path,
                f"too short: {count} frames at {rate:g} per second, "
                f"and at least {least} are needed",
            )
    return min(count // timing.frames(stream) for stream, count in counts.items())


def video_rows(
    path: str,
    logits: LogitStream,
    info: weights.Info,
    settings: flow.TVL1 = flow.OPENCV,
    advance: Callable[[int], Any] = lambda frames: None,
) -> VideoRows:
    """Computes all rows of a video.

    Args:
      path: of the video.
      logits: the network.
      info: of its weights.
      settings: of the optical flow, if the network takes it.
      advance: called with the number of frames, at `info.fps`, that have been computed.

    Raises:
      VideoError: the video cannot be read, or is too short.
    """
    length = video.predicted_length(path, info.fps)
    for _ in range(3):
        counts = {name: -(-length // stride) for name, (_, stride) in info.footprint.items()}
        ticks = check_length(path, counts, logits.network, info)
        rows, found = _rows_of_length(path, logits, info, settings, ticks, counts, advance)
        if found == counts:
            spans = row_spans(logits.network.timing, ticks) * tick_seconds(logits.network, info)
            return VideoRows(np.concatenate(rows), spans, next(iter(counts.values())))
        # The prediction was wrong, as it is for damaged files. The length decides about padding.
        length = max((count - 1) * info.footprint[name][1] + 1 for name, count in found.items())
    raise video.VideoError(path, "has another length each time that it is read")


def _rows_of_length(
    path, logits, info, settings, ticks, counts, advance
) -> tuple[list[np.ndarray], dict[str, int]]:
    """The rows of a video of a given length; and how many frames each stream really has."""
    timing, rows = logits.network.timing, []
    sources = {name: frames_of(path, name, info, settings) for name in info.footprint}
    found = dict.fromkeys(sources, 0)

    def next_chunk(_: Any) -> dict[str, np.ndarray]:
        chunk = {}
        for name, frames in sources.items():
            chunk[name] = [*itertools.islice(frames, logits.ticks * timing.frames(name))]
            found[name] += len(chunk[name])
        return chunk

    logits.start(ticks)
    blank = logits.blank()
    for chunk in prefetch(next_chunk, itertools.repeat(None), 1):
        if not any(chunk.values()):
            break
        if any(found[name] > counts[name] for name in found):
            continue  # Only the number of frames is of interest any more.
        whole = {
            name: np.stack(frames) if frames else blank[name] for name, frames in chunk.items()
        }
        rows.append(logits.feed(whole))
        advance(logits.ticks * max(timing.frames(name) * info.footprint[name][1] for name in found))
    while found == counts and logits.rows < timing.steps(ticks):
        rows.append(logits.feed(blank))
    return rows, found
