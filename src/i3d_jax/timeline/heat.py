"""What a network looks at in a whole video: Grad-CAM in windows, joined to one map over time."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import flow, models, pixels, weights
from i3d_jax.evaluation import saliency
from i3d_jax.models import Network
from i3d_jax.prefetch import prefetch
from i3d_jax.timeline import rows

# Share of a window that the next one covers too. Half of it is taken from the one, half from the
# other: at a clip's ends a network sees nothing of what is beyond.
OVERLAP = 0.25


class VideoHeat(NamedTuple):
    """The heat map of one stream of a video.

    Attributes:
      maps: f32 [S, h, w] in [0, 1], of the square that the network sees; scaled over the video.
      seconds: f64 [S], the centre of each step in time, ascending.
    """

    maps: np.ndarray
    seconds: np.ndarray

    def at(self, seconds: float) -> np.ndarray:
        """The map f32 [h, w] at a time, linear between two steps; constant before and after all."""
        place = np.interp(seconds, self.seconds, np.arange(len(self.seconds)))
        low = int(place)
        high, share = min(low + 1, len(self.maps) - 1), np.float32(place - low)
        return (1 - share) * self.maps[low] + share * self.maps[high]


class HeatMaps:
    """A network that explains what it looks at in clips.

    Args:
      network: any network of the zoo.
      variables: its variables.
      info: of the weights.
      layers: that are explained by; None: `saliency.default_layers`.

    Attributes:
      ticks: ticks of a window (`models.timing`): whole steps of the network, as many as a test clip
        has.
      layers: the layers.
      rates: by layer, the ticks from one step of its maps to the next.

    Raises:
      ValueError: there is no such layer, or it has no grid.
    """

    def __init__(
        self,
        network: Network,
        variables: Any,
        info: weights.Info,
        layers: Sequence[str] | None = None,
    ):
        timing, footprint = network.timing, info.footprint
        self.most = min(frames // timing.frames(name) for name, (frames, _) in footprint.items())
        self.ticks = max(self.most // timing.step, -(-timing.least // timing.step)) * timing.step
        self.network, self.info = network, info
        self._variables = jax.device_put(variables)
        shapes = models.input_shapes(
            {name: (self.ticks * timing.frames(name), 1) for name in footprint}, info.crop
        )
        found = layers or saliency.default_layers(network, self._variables, shapes)
        self.layers = tuple(found)
        explain = functools.partial(saliency.grad_cam, network=network, layers=self.layers)
        _, maps = jax.eval_shape(explain, self._variables, shapes)
        self.rates = {name: Fraction(self.ticks, each.shape[1]) for name, each in maps.items()}

        def program(variables, streams, classes):
            clip = models.as_network_input(pixels.streams_to_unit(streams))
            return explain(variables, clip, classes)[1]

        self._program = jax.jit(program, compiler_options=models.compiler_options())

    def count(self, streams: Mapping[str, Any]) -> int:
        """The whole ticks that the frames of a clip make."""
        return min(len(x) // self.network.timing.frames(name) for name, x in streams.items())

    def maps(self, streams: Mapping[str, np.ndarray], class_index: int) -> dict[str, np.ndarray]:
        """The maps of one clip, which is looped to a length of the network's timing.

        They are those of the sum of the network's predictions, not of their mean, so that longer
        and shorter clips are on one scale.

        Args:
          streams: of the clip, [frames, crop, crop, C]: uint8, or float32 in [-1, 1].
          class_index: the class to explain.

        Returns:
          by layer f32 [S, h, w], for the clip's own frames.
        """
        timing, own = self.network.timing, self.count(streams)
        counts = {name: own * timing.frames(name) for name in streams}
        most = {name: max(self.most, self.ticks) * timing.frames(name) for name in streams}
        ticks = timing.ticks(counts, most)
        looped = {
            name: pixels.loop(frames, ticks * timing.frames(name))[None]
            for name, frames in streams.items()
        }
        found = self._program(self._variables, looped, np.array([class_index]))
        predictions = 1 if timing.last_only else timing.steps(ticks)
        return {
            name: predictions * np.asarray(maps)[0, : math.ceil(own / self.rates[name])]
            for name, maps in found.items()
        }


def video_heat(
    path: str,
    heat: HeatMaps,
    class_index: int,
    settings: flow.TVL1 = flow.OPENCV,
    advance: Callable[[int], Any] = lambda frames: None,
) -> dict[str, VideoHeat]:
    """Computes what a network looks at in a video of any length; a few windows are in memory.

    A video that is no longer than a test clip is explained at once, as `grad_cam` does it. A longer
    one is explained in windows that overlap.

    Args:
      path: of the video.
      heat: the network.
      class_index: the class to explain.
      settings: of the optical flow, if the network takes it.
      advance: called with the number of frames, at `info.fps`, that have been explained.

    Returns:
      the heat map of each stream that one of `heat.layers` sees.

    Raises:
      VideoError: the video cannot be read, or is too short.
    """
    network, info = heat.network, heat.info
    seconds = rows.tick_seconds(network, info)
    firsts, pieces, end = [], [], 0
    windows = _windows(path, heat, settings)
    # The next window is decoded while one is explained.
    for window in prefetch(lambda _: next(windows, None), itertools.repeat(None), 1):
        if window is None:
            break
        first, clip = window
        firsts.append(first)
        pieces.append(heat.maps(clip, class_index))
        before, end = end, first + heat.count(clip)
        advance(round((end - before) * seconds * info.fps))
    found = {}
    for layer, rate in heat.rates.items():
        maps = _join([int(first / rate) for first in firsts], [each[layer] for each in pieces])
        scaled = np.asarray(saliency.normalised(jnp.asarray(maps)[None]))[0]
        centres = (np.arange(len(maps)) + 0.5) * float(rate) * seconds
        found[saliency.stream_of(layer, tuple(info.footprint))] = VideoHeat(scaled, centres)
    return found


def _windows(
    path: str, heat: HeatMaps, settings: flow.TVL1
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (first tick, streams) of the windows of a video.

    Windows begin at whole steps of the network. The last one ends with the video.
    """
    timing, size = heat.network.timing, heat.ticks
    hop = max(1, round(size * (1 - OVERLAP)) // timing.step) * timing.step
    sources = {
        name: rows.frames_of(path, name, heat.info, settings) for name in heat.info.footprint
    }

    def read(ticks: int) -> dict[str, list[np.ndarray]]:
        return {
            name: [*itertools.islice(frames, ticks * timing.frames(name))]
            for name, frames in sources.items()
        }

    def cut(clip: dict[str, list[np.ndarray]], start: int, stop: int | None = None) -> dict:
        """Ticks from `start` on, and before `stop`, of a clip."""
        return {
            name: frames[start * timing.frames(name) :][
                : None if stop is None else (stop - start) * timing.frames(name)
            ]
            for name, frames in clip.items()
        }

    def stacked(clip: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.stack(frames) for name, frames in clip.items()}

    first, kept = 0, read(size)
    counts = {name: len(frames) for name, frames in kept.items()}
    rows.check_length(path, counts, heat.network, heat.info)
    while True:
        more = read(hop)
        kept = {name: [*kept[name], *more[name]] for name in kept}
        added = heat.count(kept) - size
        if added <= 0 or first == 0 and size + added <= heat.most:
            yield first, stacked(kept)
            return
        yield first, stacked(cut(kept, 0, size))
        step = hop if added == hop else -(-added // timing.step) * timing.step
        first, kept = first + step, cut(kept, step)
        if added < hop:
            yield first, stacked(kept)
            return


def _join(firsts: Sequence[int], pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Joins the maps of windows in the middle of what two of them have in common.

    Args:
      firsts: number of the first step of each window, ascending.
      pieces: f32 [S, h, w], the maps of each.
    """
    joined, done = [], 0
    for number, (first, maps) in enumerate(zip(firsts, pieces, strict=True)):
        end = first + len(maps)
        if number + 1 < len(pieces):
            end = (firsts[number + 1] + end + 1) // 2
        joined.append(maps[done - first : end - first])
        done = end
    return np.concatenate(joined)
