"""Runs networks over videos of any length, chunk by chunk, and computes every frame once.

    state = streaming.start(network, variables, chunk, lengths)
    for chunk in chunks:
        state, ends = streaming.step(variables, state, chunk, network=network)

`step` is a pure function. The rows that it returns equal those of one pass over the whole video,
`network.apply(variables, video, endpoints=True)`, up to rounding.

Every layer with a window in time keeps the last steps that its next outputs need. These lie in the
collection "stream" of the network's variables. Steps before a video's start and behind its end are
the layer's padding, at every depth. Outputs are therefore behind the newest frame, by a number of
steps that grows from layer to layer: I3D's predictions by 7 steps of 8 frames. Of parallel
branches, those that look less far ahead wait for the others.

The networks' modules take a `Chunk` in the place of a whole video. Most layers handle single steps
(`per_step`). The others call `with_past`, `max_pool`, `concatenate` and `align`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from i3d_jax.models import pooling
from i3d_jax.models.padding import pads_of

# Frames that commands take at a time, 0.64 s at 25 per second. Longer chunks take less time per
# frame, and more memory (docs/performance.md).
CHUNK = 16
# Stands for an unknown length, in ticks: a month of video. It is a multiple of 16, and so are the
# lengths of all layers then.
ENDLESS = 2**26


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "now", "length"],
    meta_fields=["rate", "delay", "lost"],
)
@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some consecutive steps in time of a batch of videos, at one layer.

    Attributes:
      values: [B, n, ...].
      now: int32 [B], frames of the video before the newest chunk.
      length: int32 [B], frames of the video.
      rate: frames from one step of this layer to the next.
      delay: steps that `values` are behind the newest chunk of frames.
      lost: steps that the layer lacks, compared with length / rate.
    """

    values: jax.Array
    now: jax.Array
    length: jax.Array
    rate: int = 1
    delay: int = 0
    lost: int = 0

    @property
    def count(self) -> jax.Array:
        """int32 [B], how many steps this layer has in the whole video."""
        return -(-self.length // self.rate) - self.lost

    @property
    def steps(self) -> jax.Array:
        """int32 [B, n], the number of each step in the whole video."""
        return self._steps(-self.delay, self.values.shape[self.now.ndim])

    @property
    def valid(self) -> jax.Array:
        """bool [B, n], whether each step lies in the video."""
        return (self.steps >= 0) & (self.steps < self.count[..., None])

    def _steps(self, first: int, number: int) -> jax.Array:
        newest = self.now // self.rate
        places = jnp.arange(first, first + number)
        return newest[..., None] + places.reshape((1,) * newest.ndim + (-1,))

    def replace(self, **changes: Any) -> "Chunk":
        """The chunk with other attributes."""
        return dataclasses.replace(self, **changes)


class State(NamedTuple):
    """What a network keeps of the videos so far.

    Attributes:
      layers: the collection "stream": the last steps of the layers' inputs.
      now: int32 [B], ticks of the videos so far. In a stream without end it stops at 2**25, half
        a month; the rows go on, but their numbers do not.
      length: int32 [B], ticks of the whole videos.
    """

    layers: Any
    now: jax.Array
    length: jax.Array


def start(network: Any, variables: Any, chunk: Any, lengths: Any = None) -> State:
    """Returns the state before the first chunk of a batch of videos.

    Args:
      network: any network of the zoo.
      variables: its variables, or their shapes.
      chunk: a chunk as `step` takes it, or its shapes (`models.input_shapes`).
      lengths: int32 [B], the videos' lengths in ticks (`Timing`; mostly one tick is one frame).
        Lengths decide on which side SAME padding has more frames, from the first frame on. None:
        not known, as in live video. They are then taken to be multiples of 16.

    Raises:
      ValueError: the chunk does not fit the network.
    """
    batch = jax.tree.leaves(chunk)[0].shape[0]
    zeros = jnp.zeros(batch, jnp.int32)
    state = State({}, zeros, zeros + ENDLESS)
    if lengths is not None:
        state = state._replace(length=zeros + jnp.asarray(lengths, jnp.int32))
    found, _ = jax.eval_shape(functools.partial(step, network=network), variables, state, chunk)
    return state._replace(layers=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found.layers))


def restart(state: State, where: Any, lengths: Any = ENDLESS) -> State:
    """Returns the state with new videos in the place of some.

    Nothing else is cleared: what layers keep of steps before a video's start has no effect.

    Args:
      state: the state.
      where: bool [B], the places where new videos begin.
      lengths: int32 [B] or a number, the new videos' lengths in ticks.
    """
    new = jnp.asarray(lengths, jnp.int32)
    return state._replace(
        now=jnp.where(where, 0, state.now), length=jnp.where(where, new, state.length)
    )


def step(
    variables: Any, state: State, chunk: Any, *, network: Any
) -> tuple[State, dict[str, Chunk]]:
    """Runs a network over the next chunk of a batch of videos.

    It is pure, and works under `jit`, `scan` and `vmap`. After the videos' last frames, call it
    with further chunks of any content, until all rows have come.

    Args:
      variables: of the network.
      state: from `start`, `restart` or the last step.
      chunk: the next N ticks, as the network takes them: f32 [B, N, H, W, C], or
        {"rgb": ..., "flow": ...}. N is a multiple of `network.timing.step`, and the same in all
        chunks. Frames behind a video's end have no effect.
      network: the network.

    Returns:
      the next state, and the steps of every layer that `endpoints=True` names (see `Chunk`).

    Raises:
      ValueError: the chunk does not fit the network.
    """
    timing, sizes = network.timing, set()

    def wrapped(values: jax.Array, per_tick: int) -> Chunk:
        if values.ndim < 2 or values.shape[1] % (timing.step * per_tick) or not values.shape[1]:
            raise ValueError(
                f"a chunk of {values.shape}, wanted [B, N, ...] with N a multiple of "
                f"{timing.step * per_tick} frames"
            )
        sizes.add(values.shape[1] // per_tick)
        return Chunk(values, state.now * per_tick, state.length * per_tick)

    if isinstance(chunk, dict):
        video: Any = {name: wrapped(x, timing.frames(name)) for name, x in chunk.items()}
    else:
        video = wrapped(chunk, timing.rgb)
    (_, ends), changed = network.apply(
        {**variables, "stream": state.layers}, video, endpoints=True, mutable=["stream"]
    )
    # In a stream without end the number must not overflow.
    now = jnp.minimum(state.now + max(sizes), ENDLESS // 2)
    return State(changed.get("stream", {}), now, state.length), ends


def values_of(x: Any) -> Any:
    """The values of a chunk; an array as it is."""
    return x.values if isinstance(x, Chunk) else x


def steps_of(x: Any, values: jax.Array, frames: int = 1) -> Any:
    """Marks values as those of a chunk's steps, or of groups of so many steps.

    If x is an array, the values are returned as they are.
    """
    return x.replace(values=values, rate=x.rate * frames) if isinstance(x, Chunk) else values


def per_step(function: Callable[..., jax.Array], x: Any, *others: Any) -> Any:
    """Applies a function of arrays [B, T, ...] that treats every step alone, to chunks as well."""
    values = function(*map(values_of, (x, *others)))
    return x.replace(values=values) if isinstance(x, Chunk) else values


def mean_over_time(x: Any) -> Any:
    """The mean over time, [B, T, ...] -> [B, ...]; a chunk, which is not the whole, as it is."""
    return x if isinstance(x, Chunk) else x.mean(1)


def with_past(
    module: nn.Module,
    name: str,
    x: Chunk,
    window: int,
    stride: int = 1,
    fill: float | None = 0.0,
    padding: str = "same",
) -> Chunk:
    """Puts steps of the past before a chunk's: exactly those that the next outputs need.

    Args:
      module: the module that keeps the past, in its collection "stream".
      name: of the variable there.
      x: the chunk, with a number of steps that `stride` divides.
      window: steps that an output sees.
      stride: steps from one output to the next.
      fill: the value of steps outside of the video. None: there is no padding; the layer has only
        outputs whose window lies in the video.
      padding: "same" or "symmetric", as in `padding.pads_of`.

    Returns:
      the chunk of the outputs, n / stride of them, but with the values [B, n - stride + window,
      ...] to compute them from.
    """
    if window == stride == 1:
        return x
    # SAME padding in front depends on the remainder of the video's length. The layer waits as the
    # smallest demands, and keeps what the largest demands.
    fronts = [
        0 if fill is None else pads_of((size,), (window,), (stride,), padding)[0][0]
        for size in range(stride, 2 * stride)
    ]
    number = x.values.shape[1]
    delay = -(-(x.delay + window - min(fronts)) // stride) - 1
    past = delay * stride + max(fronts) - x.delay
    # Below 0, the next output begins behind the chunk's first step.
    values = _behind_past(module, name, x, past) if past > 0 else x.values[:, -past:]
    if fill is not None:
        steps = x._steps(-x.delay - past, number + past)
        inside = (steps >= 0) & (steps < x.count[:, None])
        values = jnp.where(_like(inside, values), values, jnp.asarray(fill, values.dtype))
    size = number - stride + window
    front = jnp.asarray(fronts)[x.count % stride]
    chosen = None
    for each in sorted(set(fronts)):
        first = max(fronts) - each
        part = lax.slice_in_dim(values, first, first + size, axis=1)
        chosen = part if chosen is None else jnp.where(_like(front == each, part), part, chosen)
    lost = x.lost if fill is not None else x.lost + window - 1
    return x.replace(values=chosen, rate=x.rate * stride, delay=delay, lost=lost)


def max_pool(
    module: nn.Module,
    name: str,
    x: Any,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str = "same",
) -> Any:
    """`pooling.max_pool` of an array [B, *positions, C] or of a chunk of videos.

    Args:
      module: the module that keeps a chunk's past.
      name: of the variable there.
      x: the array or chunk.
      window: as in `pooling.max_pool`.
      strides: as in `pooling.max_pool`.
      padding: as in `pooling.max_pool`.
    """
    if not isinstance(x, Chunk):
        return pooling.max_pool(x, window, strides, padding)
    # In space first, so that this is done once per frame.
    in_space = functools.partial(
        pooling.max_pool, window=(1, *window[1:]), strides=(1, *strides[1:]), padding=padding
    )
    if (*window[1:], *strides[1:]) != (1,) * (2 * len(window) - 2):
        x = per_step(in_space, x)
    if window[0] == strides[0] == 1:
        return x
    outputs = x.values.shape[1] // strides[0]
    x = with_past(module, name, x, window[0], strides[0], -jnp.inf, padding)
    last = (outputs - 1) * strides[0] + 1
    places = [
        lax.slice_in_dim(x.values, place, place + last, strides[0], 1) for place in range(window[0])
    ]
    return x.replace(values=functools.reduce(lax.max, places))


def concatenate(module: nn.Module, name: str, parts: Sequence[Any]) -> Any:
    """Concatenates the channels of arrays, or of chunks; chunks wait for the latest one.

    Args:
      module: the module that keeps the steps of chunks that wait.
      name: of the variables there, with the part's number behind it.
      parts: all arrays or all chunks.
    """
    parts = align(module, name, parts)
    return per_step(lambda *arrays: jnp.concatenate(arrays, -1), *parts)


def align(module: nn.Module, name: str, parts: Sequence[Any]) -> Sequence[Any]:
    """Delays chunks to the latest of them; arrays as they are. For arguments see `concatenate`."""
    if not isinstance(parts[0], Chunk):
        return parts
    latest = max(part.delay for part in parts)
    return [
        _delayed(module, f"{name}_{number}", part, latest - part.delay)
        for number, part in enumerate(parts)
    ]


def _delayed(module: nn.Module, name: str, x: Chunk, steps: int) -> Chunk:
    if steps == 0:
        return x
    values = _behind_past(module, name, x, steps)
    return x.replace(values=values[:, : x.values.shape[1]], delay=x.delay + steps)


def _behind_past(module: nn.Module, name: str, x: Chunk, steps: int) -> jax.Array:
    """A chunk's values behind those of the steps before; remembers the last ones."""
    shape = x.values.shape[0], steps, *x.values.shape[2:]
    past = module.variable("stream", name, jnp.zeros, shape, x.values.dtype)
    values = jnp.concatenate([past.value, x.values], 1)
    past.value = lax.slice_in_dim(values, values.shape[1] - steps, values.shape[1], axis=1)
    return values


def _like(where: jax.Array, values: jax.Array) -> jax.Array:
    """Gives `where` as many axes as `values` has."""
    return where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
