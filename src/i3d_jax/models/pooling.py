"""Max-pooling of images [B, H, W, C] and videos [B, T, H, W, C], as fast as the platform allows."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from i3d_jax.models import platforms
from i3d_jax.models.convolution import at_least_float32
from i3d_jax.models.padding import pad, pads_for_xla, pads_of


def max_pool(
    x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], padding: str = "same"
) -> jax.Array:
    """Max-pool of x [B, *positions, C].

    Padding never wins, not even over negative values. Forward-mode AD works only under
    `models.forms_of("plain")`.

    Args:
      x: images or videos.
      window: one size per axis of positions.
      strides: one per axis of positions.
      padding: as in `padding.pads_of`.
    """
    forms = {"cpu": _max_pool_frame_by_frame, "cuda": _max_pool_by_axis}
    return forms.get(platforms.platform(), _xla_max_pool)(x, window, strides, padding)


def _xla_max_pool(x, window, strides, padding="same"):
    """XLA's own max-pool."""
    return nn.max_pool(x, window, strides, pads_for_xla(x.shape[1:-1], window, strides, padding))


@functools.partial(jax.jit, static_argnames=("window", "strides", "padding"))
def _max_pool_by_axis(x, window, strides, padding="same"):
    """The same, one axis after another, for GPUs.

    Three operations on three values each are faster than one on 27. Their gradient is several
    times faster.
    """
    # Without the barrier, XLA computes x (such as concatenated branches) again for every value.
    x = lax.optimization_barrier(x)
    # Innermost axis first: the first of equal values in memory wins, as in XLA's own gradient.
    for axis, taps, stride in reversed([*zip(range(1, x.ndim - 1), window, strides, strict=True)]):
        if (taps, stride) != (1, 1):
            x = _max_over_axis(x, axis, taps, stride, padding)  # For jvp, use forms_of("plain").
    return x


@functools.partial(jax.jit, static_argnames=("window", "strides", "padding"))
def _max_pool_frame_by_frame(x, window, strides, padding="same"):
    """The same, frame by frame and one axis after another, for CPUs.

    It is several times faster there, forward and backward. Half-precision numbers are pooled in
    float32. XLA has no such operations for them on a CPU: it would convert all clips for every
    frame, or compute value by value.
    """
    dtype, dimensions, x = x.dtype, len(window), at_least_float32(x)
    y: Any
    # Innermost axis first: the first of equal values in memory wins, as in XLA's own gradient.
    if dimensions == 2:
        x, window, strides = x[:, None], (1, *window), (1, *strides)
    y = _max_over_space(x, window[1:], strides[1:], padding)  # For jvp, use forms_of("plain").
    if (window[0], strides[0]) != (1, 1):
        y = _max_over_axis(y, 1, window[0], strides[0], padding)
    return (y if dimensions == 3 else jnp.squeeze(y, 1)).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_over_space(x, window, strides, padding) -> jax.Array:
    return _map_frames(
        functools.partial(_max_of_frame, window=window, strides=strides, padding=padding), x
    )


@functools.partial(jax.jit, static_argnames=("window", "strides", "padding"))
def _max_of_frame(x, window, strides, padding):
    return _max(_max(x, 3, window[1], strides[1], padding), 2, window[0], strides[0], padding)


@functools.partial(jax.jit, static_argnames=("window", "strides", "padding"))
def _max_and_winners_of_frame(x, window, strides, padding):
    x, over_width = _max_and_winner(x, 3, window[1], strides[1], padding)
    x, over_height = _max_and_winner(x, 2, window[0], strides[0], padding)
    return x, over_height, over_width


def _max_over_space_fwd(x, window, strides, padding):
    of_frame = functools.partial(
        _max_and_winners_of_frame, window=window, strides=strides, padding=padding
    )
    best, *winners = _map_frames(of_frame, x)
    return best, (winners, x.shape)


def _max_over_space_bwd(window, strides, padding, residual, grad):
    winners, (*_, height, width, _) = residual
    of_frame = functools.partial(
        _gradient_of_frame, window=window, strides=strides, padding=padding, size=(height, width)
    )
    return (_map_frames(of_frame, grad, *winners),)


@functools.partial(jax.jit, static_argnames=("window", "strides", "padding", "size"))
def _gradient_of_frame(grad, over_height, over_width, window, strides, padding, size):
    grad = _route_to_winners(grad, over_height, 2, window[0], strides[0], padding, size[0])
    return _route_to_winners(grad, over_width, 3, window[1], strides[1], padding, size[1])


_max_over_space.defvjp(_max_over_space_fwd, _max_over_space_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_over_axis(x, axis, window, stride, padding) -> jax.Array:
    return _max(x, axis, window, stride, padding)


def _max_over_axis_fwd(x, axis, window, stride, padding):
    best, winner = _max_and_winner(x, axis, window, stride, padding)
    return best, (winner, x.shape[axis])


def _max_over_axis_bwd(axis, window, stride, padding, residual, grad):
    winner, size = residual
    return (_route_to_winners(grad, winner, axis, window, stride, padding, size),)


_max_over_axis.defvjp(_max_over_axis_fwd, _max_over_axis_bwd)


def _map_frames(function: Callable, *arrays: jax.Array) -> Any:
    """Applies a function of single frames to every frame of videos, in a loop.

    A frame stays in the processor's cache, and only the loop's results are kept. Without a loop,
    XLA keeps the padded frames and computes the winners again wherever they are needed.

    Args:
      function: takes and returns frames [devices, 1, ...].
      *arrays: videos [B, T, ...].

    Returns:
      the function's results as videos [B, T, ...].
    """
    batch, frames = arrays[0].shape[:2]
    # Clips may be spread over devices. Each iteration takes one frame on every device.
    devices = math.gcd(batch, jax.device_count()) if isinstance(batch, int) else 1
    arrays = tuple(x.reshape(devices, batch // devices * frames, *x.shape[2:]) for x in arrays)

    def of(frame):
        return function(*(lax.dynamic_slice_in_dim(x, frame, 1, 1) for x in arrays))

    def put(frame, whole):
        return jax.tree.map(
            lambda whole, one: lax.dynamic_update_slice_in_dim(whole, one, frame, 1),
            whole,
            of(frame),
        )

    number = arrays[0].shape[1]
    if number == 0:  # There are no clips.
        return jax.tree.map(lambda x: x.reshape(batch, frames, *x.shape[2:]), function(*arrays))
    one = jax.eval_shape(of, 0)
    # The loop overwrites all of `whole`, so its initial values do not matter. XLA would write
    # zeros, and reserve memory for them, at the very start of the program; a broadcast value of
    # the clips avoids both.
    any_of_clips = arrays[0][:, :1, :1, :1, :1]
    whole = jax.tree.map(
        lambda x: jnp.broadcast_to(any_of_clips.astype(x.dtype), (devices, number, *x.shape[2:])),
        one,
    )
    whole = lax.fori_loop(0, number, put, whole)
    return jax.tree.map(lambda x: x.reshape(batch, frames, *x.shape[2:]), whole)


def _max(x, axis, window, stride, padding):
    """The maximum of each window along one axis; NaN if any value is NaN."""
    return functools.reduce(lax.max, _window_values(x, axis, window, stride, padding))


def _max_and_winner(x, axis, window, stride, padding):
    """The maximum, and the place (int8) of its first occurrence in the window.

    The place is arbitrary if the maximum is NaN.
    """
    best, *others = _window_values(x, axis, window, stride, padding)
    winner = lax.full(best.shape, 0, jnp.int8)
    for place, value in enumerate(others, 1):
        winner = lax.select(lax.gt(value, best), lax.full_like(winner, place), winner)
        best = lax.max(best, value)
    return best, winner


def _window_values(x, axis, window, stride, padding):
    """The values at each place of the windows along one axis.

    It uses `lax`, which traces several times faster than `jnp`.
    """
    ((before, after),) = pads_of((x.shape[axis],), (window,), (stride,), padding)
    x = pad(x, axis, before, after, -jnp.inf)
    last = x.shape[axis] - window + 1
    return [lax.slice_in_dim(x, place, last + place, stride, axis) for place in range(window)]


@functools.partial(jax.jit, static_argnames=("axis", "window", "stride", "padding", "size"))
def _route_to_winners(grad, winner, axis, window, stride, padding, size):
    """The gradient of `_max_and_winner`'s input.

    Input position stride * block + phase is at place phase + before + stride * ago of the window
    that begins `ago` blocks before its own. The gradient is padded once, and then only sliced.
    XLA's ways, padding for every place or spreading by strides, are several times slower.

    Args:
      grad: gradient of the maxima.
      winner: places of the maxima.
      axis: the pooled axis.
      window: its window.
      stride: its stride.
      padding: as in `padding.pads_of`.
      size: the input's size along the axis.
    """
    ((before, _),) = pads_of((size,), (window,), (stride,), padding)
    blocks = -(-size // stride)
    first, last = -((before + stride - 1) // stride), (window - 1 - before) // stride
    beyond = blocks - grad.shape[axis] - first
    grad, winner = pad(grad, axis, last, beyond, 0), pad(winner, axis, last, beyond, -1)
    shape = (*grad.shape[:axis], blocks, stride, *grad.shape[axis + 1 :])
    phase = lax.broadcasted_iota(jnp.int8, shape, axis + 1)
    total: Any = 0.0
    for ago in range(first, last + 1):
        of_block, its_winner = (
            jnp.expand_dims(
                lax.slice_in_dim(x, last - ago, last - ago + blocks, axis=axis), axis + 1
            )
            for x in (grad, winner)
        )
        total += jnp.where(its_winner == phase + jnp.int8(before + stride * ago), of_block, 0)
    total = total.reshape(*shape[:axis], blocks * stride, *shape[axis + 2 :])
    return lax.slice_in_dim(total, 0, size, axis=axis)
