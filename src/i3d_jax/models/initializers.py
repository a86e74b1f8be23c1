"""Initial values of kernels, drawn one by one or for a whole network at once."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import get_opaque_trace_state

CHUNK_SIZE = 4096  # Numbers drawn in one iteration of the loop.

# Kernels that are zeros for now, each with its key, and the trace that they belong to.
_pending_kernels: contextvars.ContextVar[tuple[list[tuple[jax.Array, jax.Array]], Any] | None] = (
    contextvars.ContextVar("pending", default=None)
)


def kernel_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Truncated normal of variance 1 / fan-in, the default of Sonnet (in the release); float32."""
    pending, trace = _pending_kernels.get() or (None, None)
    # A kernel of an inner trace, such as that of `nn.remat`, cannot be drawn outside of it.
    if pending is None or trace != get_opaque_trace_state(convention="flax"):
        return _draw_kernels([key], [shape])[0]
    zeros = jnp.zeros(shape, jnp.float32)
    pending.append((zeros, key))
    return zeros


@contextlib.contextmanager
def batched_initialization() -> Iterator[Callable[[Any], Any]]:
    """Draws all kernels of a network in one loop, which compiles several times faster.

    XLA compiles a random generator for each loop that draws, which takes a third of a second.
    Inside this context kernels are initialised with zeros. The context yields a function. It
    takes the finished pytree and returns it with every kernel as it would be drawn alone.
    """
    pending: list[tuple[jax.Array, jax.Array]] = []

    def draw_pending(variables: Any) -> Any:
        kernels = _draw_kernels([key for _, key in pending], [zeros.shape for zeros, _ in pending])
        of = {id(zeros): kernel for (zeros, _), kernel in zip(pending, kernels, strict=True)}
        variables = jax.tree.map(lambda leaf: of.pop(id(leaf), leaf), variables)
        assert not of, "kernels were changed before they were drawn"
        return variables

    token = _pending_kernels.set((pending, get_opaque_trace_state(convention="flax")))
    try:
        yield draw_pending
    finally:
        _pending_kernels.reset(token)


def _draw_kernels(keys: Sequence[jax.Array], shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Draws kernels of these shapes, chunk by chunk in one loop."""
    if not keys:
        return []
    chunks = [-(-math.prod(shape) // CHUNK_SIZE) for shape in shapes]
    stacked = jnp.stack(keys)

    def draw(place):
        kernel, chunk = place
        key = jax.random.fold_in(stacked[kernel], chunk)
        return jax.random.truncated_normal(key, -2.0, 2.0, (CHUNK_SIZE,), jnp.float32)

    places = (
        np.repeat(np.arange(len(chunks)), chunks),
        np.concatenate([np.arange(number) for number in chunks]),
    )
    draws = jnp.split(lax.map(draw, places), np.cumsum(chunks)[:-1])
    return [_scaled_kernel(each, shape) for each, shape in zip(draws, shapes, strict=True)]


def _scaled_kernel(draws, shape):
    # 0.8796 is the standard deviation of a standard normal truncated to [-2, 2].
    scale = 1 / (0.87962566 * math.sqrt(math.prod(shape[:-1])))
    return scale * draws.reshape(-1)[: math.prod(shape)].reshape(shape)
