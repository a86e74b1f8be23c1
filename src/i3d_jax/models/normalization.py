"""Batch norm of clips x [groups, clips, positions, C] by each group's own statistics, with ReLU or without it, and its gradient.

Statistics are [groups, C], float32 at least, and taken over clips and positions.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from i3d_jax.models import platforms
from i3d_jax.models.convolution import at_least_float32


def normalize(
    x: jax.Array, bias: jax.Array, epsilon: float, relu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x normalised plus bias [C], and the statistics: mean and variance.

    Forward-mode AD only under `models.forms_of("plain")`.
    """
    form = _by_own_statistics if platforms.platform() == "plain" else _normalised
    return form(x, bias, epsilon, relu)  # No forward-mode AD but under forms_of("plain").


def scale_and_shift(mean, var, bias, epsilon):
    """What batch norm multiplies by and what it adds."""
    scale = lax.rsqrt(var + epsilon)
    return scale, bias - mean * scale


def scale_shift(x, scale, shift, relu):
    """x times `scale` plus `shift` [groups, C], in float32 at least."""
    y = at_least_float32(x)
    scale, shift = (_over_positions(each.astype(y.dtype), y) for each in (scale, shift))
    y = lax.add(lax.mul(y, scale), shift)
    return (nn.relu(y) if relu else y).astype(x.dtype)


def _over_positions(values, x):
    """Values [groups, C] for each of the positions of x."""
    return lax.broadcast_in_dim(values, x.shape, (0, 3))


# Of how many positions XLA adds all channels side by side on a CPU, and of how many sums one after another rounding is not felt.
RUN, MOST = 32, 512


def _means(*values):
    """The mean of each of several arrays like x.

    By `lax`, as what else there is for every value: `jnp` is slower to trace. A sum alone XLA's CPU backend takes in many passes, the
    first of which writes what it is the sum of to memory; of several at once it does neither. Runs of positions are cut of a clip's
    own, so that clips can be on different devices; a great number of clips, or a large prime of positions, is added as it is.
    """
    _, clips, positions, _ = values[0].shape
    number = clips * positions
    if platforms.platform() != "cpu":
        return [_sum(value, (1, 2)) / number for value in values]
    while clips * positions > MOST and (size := run(positions)) > 1:
        positions //= size
        values = [
            value.reshape(*value.shape[:2], positions, size, value.shape[-1]) for value in values
        ]
        values = _sums(values, (3,))
    return [total / number for total in _sums(values, (1, 2))]


@functools.cache
def run(numbers: int) -> int:
    """Of how many numbers to add up so many by runs: the largest divisor up to RUN or, if that is 1, the least above."""
    divisors = itertools.chain(range(min(RUN, numbers), 1, -1), range(RUN + 1, numbers + 1))
    return next((n for n in divisors if numbers % n == 0), 1)


def _sum(value, axes):
    return lax.reduce(value, np.zeros((), value.dtype), lax.add, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sums(values, axes):
    """JAX's own derivative of several sums at once has to be given one of each of the values."""
    zeros = [np.zeros((), value.dtype) for value in values]
    return lax.reduce(
        tuple(values), tuple(zeros), lambda totals, more: [*map(lax.add, totals, more)], axes
    )


@_sums.defjvp
def _sums_jvp(axes, values, tangents):
    return _sums(*values, axes), [_sum(each, axes) for each in tangents[0]]


def _by_own_statistics(x, bias, epsilon, relu):
    """In one pass over x less a group's first value: E[x^2] - E[x]^2 loses the variance where the mean is far larger."""
    first = at_least_float32(lax.stop_gradient(_first(x)))
    less = lax.sub(at_least_float32(x), _over_positions(first, x))
    mean, of_squares = _means(less, lax.square(less))
    var = jnp.maximum(of_squares - lax.square(mean), 0.0)
    y = scale_shift(less, *scale_and_shift(mean, var, bias[None], epsilon), relu)
    return y.astype(x.dtype), lax.add(mean, first), var


def _first(x):
    """Each group's first value per channel, [groups, C]. The position first: devices that share a group send no whole clip."""
    return lax.index_in_dim(lax.index_in_dim(x, 0, 2, keepdims=False), 0, 1, keepdims=False)


def _by_own_statistics_fwd(x, bias, epsilon, relu):
    x, bias = x.value, bias.value
    y, mean, var = _by_own_statistics(x, bias, epsilon, relu)
    return (y, mean, var), (x, bias, mean, var)


def _by_own_statistics_bwd(epsilon, relu, residual, grads):
    """Of what is kept for it, x alone is large.

    The statistics are mostly for the running ones, which no loss depends on: what they add is then not computed.
    """
    x, bias, mean, var = residual
    of_y, of_mean, of_var = (None if isinstance(grad, SymbolicZero) else grad for grad in grads)
    of_y = lax.full_like(x, 0) if of_y is None else of_y
    deviation = (var + epsilon) * lax.rsqrt(
        var + epsilon
    )  # No square root: the other there is, from the forward pass.
    least = (-bias[None] * deviation).astype(mean.dtype)
    centre, spread, least = (_over_positions(each, x) for each in (mean, deviation, least))

    def masked(x, grad):
        centred, grad = lax.sub(at_least_float32(x), centre), at_least_float32(grad)
        return centred, lax.select(
            lax.gt(centred, least), grad, lax.full_like(grad, 0)
        ) if relu else grad

    centred, grad = masked(x, of_y)
    number = x.shape[1] * x.shape[2]
    shift, stretch = _means(grad, lax.mul(grad, centred))
    of_bias = (shift * number).sum(0)
    stretch = stretch / (var + epsilon)
    if of_mean is not None:
        shift = shift - of_mean * deviation / number
    if of_var is not None:
        stretch = stretch - 2 * of_var * deviation / number
    # The gradient where ReLU passed it is found out once more: seen as the same, XLA writes it, or the mask, to memory in between.
    x, grad, shift, stretch = lax.optimization_barrier((x, of_y, shift, stretch))
    centred, grad = masked(x, grad)
    of_x = lax.sub(
        lax.sub(grad, _over_positions(shift, x)), lax.mul(centred, _over_positions(stretch, x))
    )
    if platforms.platform() == "cpu":
        # Divisions XLA computes once for all that use them; by what it does not see to be the same for all positions, or it
        # would multiply, which it computes again for each of the convolution's gradients.
        spread = lax.optimization_barrier(spread)
    of_x = lax.div(of_x, spread)
    return of_x.astype(x.dtype), of_bias.astype(bias.dtype)


_normalised = jax.custom_vjp(_by_own_statistics, nondiff_argnums=(2, 3))
_normalised.defvjp(_by_own_statistics_fwd, _by_own_statistics_bwd, symbolic_zeros=True)
