"""The networks that features are from, and the compiled programs that compute them."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax import models, pixels, weights
from i3d_jax.features.grids import Dense
from i3d_jax.models import Network, streaming
from i3d_jax.models.network import CHANNELS


class Source(NamedTuple):
    """A network, its weights, and the layer whose activations are the features.

    Attributes:
      name: of the weights, as it was given.
      network: the network.
      variables: its variables.
      info: the description of the weights.
      names: of the layer, one for each stream where a network has it in both.
      grid: the layer's rows, in frames.
      delay: rows by which the layer is behind the newest frame of a stream.
      ticks: frames of a stream that the network takes at a time (`Timing`).
    """

    name: str
    network: Network
    variables: Any
    info: weights.Info
    names: tuple[str, ...]
    grid: Dense
    delay: int
    ticks: int

    @property
    def stream(self) -> str:
        """ "rgb", "flow" or "rgb+flow"."""
        return self.info.stream

    @property
    def fps(self) -> float:
        """Frames per second that the network takes of a video, one after another."""
        return self.info.fps / next(stride for _, stride in self.info.footprint.values())


def load(names: Sequence[str], layer: str = "AvgPool", stream: str | None = None) -> list[Source]:
    """Loads the networks of some weights; those of RGB come first.

    Args:
      names: published weights, or files.
      layer: whose activations are the features.
      stream: that the networks must take together: "rgb", "flow" or "both". None: any.

    Raises:
      weights.WeightsError: the weights cannot be had, are for other streams, or cannot be used
        together; or a network has no such layer, or takes frames that lie further apart.
    """
    found = [_source(name, layer) for name in names]
    weights.check_streams(names, [one.info for one in found], stream)
    for name, one in zip(names, found, strict=True):
        for what, own, other in (
            ("rows of", one.grid, found[0].grid),
            ("ticks of", one.ticks, found[0].ticks),
            ("a short side of", one.info.short_side, found[0].info.short_side),
            ("a crop of", one.info.crop, found[0].info.crop),
            ("frames per second:", one.fps, found[0].fps),
        ):
            if own != other:
                raise weights.WeightsError(f"{name}: has {what} {own}, but {names[0]} {other}")
    return sorted(found, key=lambda one: "rgb" not in one.info.footprint)


def _source(name: str, layer: str) -> Source:
    """A network by the name of its weights; see `load`."""
    network, variables, info = weights.network(name)
    timing = network.timing
    per_tick = {timing.frames(stream) for stream in info.footprint}
    strides = {stride for _, stride in info.footprint.values()}
    if len(per_tick) > 1 or len(strides) > 1 or timing.last_only:
        raise weights.WeightsError(
            f"{name}: {info.model} takes frames that lie apart, and has no features of all frames"
        )
    (ticks,) = per_tick
    clip = {stream: (timing.step * ticks, 1) for stream in info.footprint}
    chunk = models.input_shapes(clip, info.crop)
    state = jax.eval_shape(functools.partial(streaming.start, network), variables, chunk, [0])
    step = functools.partial(streaming.step, network=network)
    _, found = jax.eval_shape(step, variables, state, chunk)
    ends = {each: end for each, end in found.items() if isinstance(end, streaming.Chunk)}
    found = [each for each in (layer, f"rgb/{layer}", f"flow/{layer}") if each in ends]
    if not found:
        known = dict.fromkeys(each.rpartition("/")[-1] for each in ends)
        raise weights.WeightsError(f"{name}: has no layer {layer!r}; there are {', '.join(known)}")
    names = (layer,) if layer in found else tuple(found)
    end = ends[names[0]]
    grid = Dense(end.rate, end.rate * (1 + end.lost))
    return Source(name, network, variables, info, names, grid, end.delay, ticks)


def features_of(activations: Sequence[jax.Array], keep_space: bool) -> jax.Array:
    """Activations [B, S, ..., C] of a layer in each stream as features f32 [B, S, (...,) C].

    Args:
      activations: of the layer, for each stream.
      keep_space: whether to keep the axes between; they are averaged otherwise.
    """
    parts = [each.astype(jnp.float32) for each in activations]
    if not keep_space:
        parts = [each.mean(tuple(range(2, each.ndim - 1))) for each in parts]
    return jnp.concatenate(parts, -1)


class Programs:
    """Compiled programs that run networks on batches, spread over all devices of this process.

    Every device runs the program of its part of the batch, so that results do not depend on the
    number of devices. On a CPU the items of a batch are computed one after another: larger
    batches would be no faster, and would round differently.

    Attributes:
      devices: number of devices.
      sharding: of a batch.
    """

    def __init__(self, sources: Sequence[Source], keep_space: bool = False):
        self.sources = sources
        self.devices = jax.local_device_count()
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.sharding = NamedSharding(mesh, PartitionSpec("data"))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._variables = jax.device_put([each.variables for each in sources], replicated)
        plan = tuple(
            _Part(each.network, tuple(each.info.footprint), each.names) for each in sources
        )
        self._next_chunk, self._window_means = _compiled(plan, keep_space, mesh, one_by_one())

    def start(self, chunk: dict[str, np.ndarray]) -> Any:
        """The states before the first chunk of a batch of videos.

        Args:
          chunk: as `next_chunk` takes it.
        """
        shapes = {
            stream: jax.ShapeDtypeStruct(each.shape, np.float32) for stream, each in chunk.items()
        }
        lengths = np.zeros(len(next(iter(chunk.values()))), np.int32)
        states = [
            streaming.start(
                each.network, each.variables, _input(each.info.footprint, shapes), lengths
            )
            for each in self.sources
        ]
        return jax.device_put(states, self.sharding)

    def next_chunk(
        self,
        states: Any,
        where: np.ndarray,
        lengths: np.ndarray,
        chunk: dict[str, np.ndarray],
    ) -> tuple[Any, list[tuple[jax.Array, jax.Array, jax.Array]]]:
        """Runs the networks over the next frames of a batch of videos.

        Args:
          states: from `start` or the last call.
          where: bool [B], where a new video begins.
          lengths: int32 [B], the new videos' lengths in ticks.
          chunk: [B, T, H, W, C] of each stream: uint8 RGB, f32 flow.

        Returns:
          the next states, and for each network features [B, n, ..., C], the numbers of their rows
          in the video, int32 [B, n], and whether they are rows of the video, bool [B, n].
        """
        given = jax.device_put((where, lengths.astype(np.int32), chunk), self.sharding)
        return self._next_chunk(self._variables, states, *given)

    def window_means(self, clips: Mapping[str, np.ndarray | jax.Array]) -> list[jax.Array]:
        """Runs the networks over a batch of clips, each a whole video for them.

        Args:
          clips: [B, T, H, W, C] of each stream: uint8 RGB, or as the network takes it, f32.

        Returns:
          for each network the features [B, (...,) C], averaged over the clip's rows.
        """
        return self._window_means(self._variables, jax.device_put(clips, self.sharding))

    def row_shapes(self, windows_size: int, crop: int) -> list[tuple[int, ...]]:
        """The shapes of a row of each network, for crops of a size."""
        clips = {
            stream: jax.ShapeDtypeStruct(
                (self.devices, windows_size, crop, crop, CHANNELS[stream]), np.float32
            )
            for each in self.sources
            for stream in each.info.footprint
        }
        found = jax.eval_shape(self._window_means, self._variables, clips)
        return [each.shape[1:] for each in found]


class _Part(NamedTuple):
    """What a program needs to know of a `Source`; hashable."""

    network: Network
    streams: tuple[str, ...]
    names: tuple[str, ...]


@functools.lru_cache(maxsize=8)
def _compiled(
    plan: tuple[_Part, ...], keep_space: bool, mesh: Mesh, alone: bool
) -> tuple[Any, Any]:
    """The programs of `Programs.next_chunk` and `window_means`; later calls need not compile."""

    def next_chunk(variables: Any, states: Any, where: Any, lengths: Any, chunk: Any) -> Any:
        new, found = [], []
        for one, own, state in zip(plan, variables, states, strict=True):
            state = streaming.restart(state, where, lengths)
            frames = _input(one.streams, chunk)
            state, ends = streaming.step(own, state, frames, network=one.network)
            new.append(state)
            first = ends[one.names[0]]
            rows = features_of([ends[name].values for name in one.names], keep_space)
            found.append((rows, first.steps, first.valid))
        return new, found

    def window_means(variables: Any, clips: Any) -> list[jax.Array]:
        found = []
        for one, own in zip(plan, variables, strict=True):
            ends: Any = one.network.apply(own, _input(one.streams, clips), endpoints=True)[1]
            found.append(features_of([ends[name] for name in one.names], keep_space).mean(1))
        return found

    def spread(function: Any, batches: int, outputs: Any) -> Any:
        return jax.jit(
            jax.shard_map(
                _mapped(function) if alone else function,
                mesh=mesh,
                in_specs=(PartitionSpec(), *[PartitionSpec("data")] * batches),
                out_specs=outputs,
                check_vma=False,
            ),
            compiler_options=models.compiler_options(),
        )

    cut = PartitionSpec("data")
    return spread(next_chunk, 4, (cut, cut)), spread(window_means, 1, cut)


def _input(names: Iterable[str], streams: dict[str, Any]) -> Any:
    """What a network takes of some streams; bytes become numbers in [-1, 1]."""
    taken = {name: streams[name] for name in names}
    return models.as_network_input(pixels.streams_to_unit(taken))


def one_by_one() -> bool:
    """Whether the clips of a batch are computed one after another: on CPUs."""
    return jax.default_backend() == "cpu"


def _mapped(function: Any) -> Any:
    """A function of variables and batches that computes each item of these alone."""

    def mapped(variables: Any, *batches: Any) -> Any:
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            return function(variables, *batches)

        def alone(items: Any) -> Any:
            found = function(variables, *jax.tree.map(lambda x: x[None], items))
            return jax.tree.map(lambda x: x[0], found)

        return jax.lax.map(alone, batches)

    return mapped
