"""Batch norm over groups of clips x [groups, clips, positions, C], with or without ReLU.

Statistics are [groups, C], taken over clips and positions, in float32 or more. The gradient is
written by hand, to keep and read less memory.
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
    x: jax.Array, bias: jax.Array, epsilon: float, relu: bool, scale: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x by each group's own statistics, multiplies by a scale and adds a bias.

    Forward-mode AD works only under `models.forms_of("plain")`.

    Args:
      x: [groups, clips, positions, C].
      bias: [C].
      epsilon: added to the variance.
      relu: whether ReLU follows.
      scale: [C]; None is 1.

    Returns:
      the normalised x, and the mean and variance [groups, C].
    """
    form = (
        _normalize_by_batch_statistics
        if platforms.platform() == "plain"
        else _normalize_with_own_gradient
    )
    return form(x, bias, scale, epsilon, relu)  # For jvp, use forms_of("plain").


def scale_and_shift(mean, var, bias, epsilon, scale=None):
    """The factor and the offset that batch norm applies, for given statistics."""
    factor = lax.rsqrt(var + epsilon)
    factor = factor if scale is None else factor * scale
    return factor, bias - mean * factor


def apply_scale_and_shift(x, scale, shift, relu):
    """x * scale + shift, both [groups, C], computed in float32 or more."""
    y = at_least_float32(x)
    scale, shift = (_over_positions(each.astype(y.dtype), y) for each in (scale, shift))
    y = lax.add(lax.mul(y, scale), shift)
    return (nn.relu(y) if relu else y).astype(x.dtype)


def _over_positions(values, x):
    """Repeats values [groups, C] for all clips and positions of x."""
    return lax.broadcast_in_dim(values, x.shape, (0, 3))


# A CPU adds runs of up to this many positions side by side in all channels.
# Sums of up to this many numbers, one after another, have no noticeable rounding error.
RUN_LENGTH, MAX_SEQUENTIAL_SUM = 32, 512


def _means(*values):
    """The mean over clips and positions of each of several arrays like x.

    On a CPU it reduces all arrays at once: XLA's backend takes several passes for a single sum,
    and writes its operand to memory first. To keep rounding errors small it first adds runs of
    positions. Runs stay within a clip, so that clips can be on different devices. It does not
    split a great number of clips, or a large prime number of positions.

    It uses `lax`, which traces faster than `jnp`.
    """
    _, clips, positions, _ = values[0].shape
    number = clips * positions
    if platforms.platform() != "cpu":
        return [_sum(value, (1, 2)) / number for value in values]
    while clips * positions > MAX_SEQUENTIAL_SUM and (size := run_length(positions)) > 1:
        positions //= size
        values = [
            value.reshape(*value.shape[:2], positions, size, value.shape[-1]) for value in values
        ]
        values = _sums(values, (3,))
    return [total / number for total in _sums(values, (1, 2))]


@functools.cache
def run_length(numbers: int) -> int:
    """Length of the runs in which to add this many numbers.

    This is the largest divisor up to RUN_LENGTH or, if that is 1, the smallest one above.
    """
    divisors = itertools.chain(
        range(min(RUN_LENGTH, numbers), 1, -1), range(RUN_LENGTH + 1, numbers + 1)
    )
    return next((n for n in divisors if numbers % n == 0), 1)


def _sum(value, axes):
    return lax.reduce(value, np.zeros((), value.dtype), lax.add, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sums(values, axes):
    """Several sums in one reduction. JAX's own derivative needs a tangent for every operand."""
    zeros = [np.zeros((), value.dtype) for value in values]
    return lax.reduce(
        tuple(values), tuple(zeros), lambda totals, more: [*map(lax.add, totals, more)], axes
    )


@_sums.defjvp
def _sums_jvp(axes, values, tangents):
    return _sums(*values, axes), [_sum(each, axes) for each in tangents[0]]


def _normalize_by_batch_statistics(x, bias, scale, epsilon, relu):
    """Batch norm with one pass over x.

    It subtracts each group's first value beforehand: E[x^2] - E[x]^2 alone loses the variance
    where the mean is far larger.
    """
    first = at_least_float32(lax.stop_gradient(_first_values(x)))
    less = lax.sub(at_least_float32(x), _over_positions(first, x))
    mean, of_squares = _means(less, lax.square(less))
    var = jnp.maximum(of_squares - lax.square(mean), 0.0)
    scale = None if scale is None else scale[None]
    y = apply_scale_and_shift(less, *scale_and_shift(mean, var, bias[None], epsilon, scale), relu)
    return y.astype(x.dtype), lax.add(mean, first), var


def _first_values(x):
    """Each group's first value per channel, [groups, C].

    It takes the position first, so that devices which share a group send no whole clip.
    """
    return lax.index_in_dim(lax.index_in_dim(x, 0, 2, keepdims=False), 0, 1, keepdims=False)


def _normalize_by_batch_statistics_fwd(x, bias, scale, epsilon, relu):
    x, bias, scale = x.value, bias.value, None if scale is None else scale.value
    y, mean, var = _normalize_by_batch_statistics(x, bias, scale, epsilon, relu)
    return (y, mean, var), (x, bias, scale, mean, var)


def _normalize_by_batch_statistics_bwd(epsilon, relu, residual, grads):
    """The gradient; x is the only large array that is kept for it.

    Losses do not usually depend on the returned statistics. Their gradients are then symbolic
    zeros, and nothing is computed for them.
    """
    x, bias, scale, mean, var = residual
    of_y, of_mean, of_var = (None if isinstance(grad, SymbolicZero) else grad for grad in grads)
    of_y = lax.full_like(x, 0) if of_y is None else of_y
    # The square root as var * rsqrt(var): the forward pass has already computed rsqrt.
    deviation = (var + epsilon) * lax.rsqrt(var + epsilon)
    least = (-bias[None] * deviation).astype(mean.dtype)
    centre, spread, least = (_over_positions(each, x) for each in (mean, deviation, least))
    slope = None
    if scale is not None:
        slope = _over_positions(jnp.broadcast_to(scale[None].astype(mean.dtype), mean.shape), x)

    def masked(x, grad):
        centred, grad = lax.sub(at_least_float32(x), centre), at_least_float32(grad)
        if relu:
            scaled = centred if slope is None else lax.mul(centred, slope)
            grad = lax.select(lax.gt(scaled, least), grad, lax.full_like(grad, 0))
        return centred, grad

    centred, grad = masked(x, of_y)
    number = x.shape[1] * x.shape[2]
    shift, stretch = _means(grad, lax.mul(grad, centred))
    of_bias, of_scale = (shift * number).sum(0), None
    if scale is not None:
        of_scale = (stretch * (number / deviation)).sum(0).astype(scale.dtype)
        shift, stretch = shift * scale[None], stretch * scale[None]
    stretch = stretch / (var + epsilon)
    if of_mean is not None:
        shift = shift - of_mean * deviation / number
    if of_var is not None:
        stretch = stretch - 2 * of_var * deviation / number
    # Computes the masked gradient a second time. The barrier hides that from XLA, which would
    # otherwise write the gradient, or the mask, to memory in between.
    x, grad, shift, stretch = lax.optimization_barrier((x, of_y, shift, stretch))
    centred, grad = masked(x, grad)
    grad = grad if slope is None else lax.mul(grad, slope)
    of_x = lax.sub(
        lax.sub(grad, _over_positions(shift, x)), lax.mul(centred, _over_positions(stretch, x))
    )
    if platforms.platform() == "cpu":
        # XLA computes this division once for all uses. Without the barrier it would see that
        # all positions share the divisor and multiply instead, again for each of the
        # convolution's two gradients.
        spread = lax.optimization_barrier(spread)
    of_x = lax.div(of_x, spread)
    return of_x.astype(x.dtype), of_bias.astype(bias.dtype), of_scale


_normalize_with_own_gradient = jax.custom_vjp(
    _normalize_by_batch_statistics, nondiff_argnums=(3, 4)
)
_normalize_with_own_gradient.defvjp(
    _normalize_by_batch_statistics_fwd, _normalize_by_batch_statistics_bwd, symbolic_zeros=True
)
