"""What kernels begin as, one alone or all of a network's together."""

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

CHUNK = 4096  # Numbers that are drawn at once.

# Kernels that are still zeros, with their keys, and the trace that they are of.
_waiting: contextvars.ContextVar[tuple[list[tuple[jax.Array, jax.Array]], Any] | None] = (
    contextvars.ContextVar("waiting", default=None)
)


def kernel_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Truncated normal of variance 1 / fan-in, as the release's (Sonnet's) default; float32."""
    waiting, trace = _waiting.get() or (None, None)
    # What begins in another trace, as under `nn.remat`, cannot be drawn outside of it.
    if waiting is None or trace != get_opaque_trace_state(convention="flax"):
        return _drawn([key], [shape])[0]
    zeros = jnp.zeros(shape, jnp.float32)
    waiting.append((zeros, key))
    return zeros


@contextlib.contextmanager
def batched_initialization() -> Iterator[Callable[[Any], Any]]:
    """Kernels that begin in this context are zeros. It gives a function of the pytree that has come of them, which returns it
    with every kernel as it would have been drawn alone.

    For XLA compiles a random generator for every loop that has one, a third of a second each.
    """
    waiting: list[tuple[jax.Array, jax.Array]] = []

    def drawn(variables: Any) -> Any:
        kernels = _drawn([key for _, key in waiting], [zeros.shape for zeros, _ in waiting])
        of = {id(zeros): kernel for (zeros, _), kernel in zip(waiting, kernels, strict=True)}
        variables = jax.tree.map(lambda leaf: of.pop(id(leaf), leaf), variables)
        assert not of, "kernels are in the variables as they began"
        return variables

    token = _waiting.set((waiting, get_opaque_trace_state(convention="flax")))
    try:
        yield drawn
    finally:
        _waiting.reset(token)


def _drawn(keys: Sequence[jax.Array], shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Kernels of these shapes, drawn chunk by chunk in one loop."""
    if not keys:
        return []
    chunks = [-(-math.prod(shape) // CHUNK) for shape in shapes]
    stacked = jnp.stack(keys)

    def draw(place):
        kernel, chunk = place
        key = jax.random.fold_in(stacked[kernel], chunk)
        return jax.random.truncated_normal(key, -2.0, 2.0, (CHUNK,), jnp.float32)

    places = (
        np.repeat(np.arange(len(chunks)), chunks),
        np.concatenate([np.arange(number) for number in chunks]),
    )
    draws = jnp.split(lax.map(draw, places), np.cumsum(chunks)[:-1])
    return [_cut(each, shape) for each, shape in zip(draws, shapes, strict=True)]


def _cut(draws, shape):
    # 0.8796 is the standard deviation of a standard normal truncated to [-2, 2].
    scale = 1 / (0.87962566 * math.sqrt(math.prod(shape[:-1])))
    return scale * draws.reshape(-1)[: math.prod(shape)].reshape(shape)
