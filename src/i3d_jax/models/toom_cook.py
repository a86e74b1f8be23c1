"""Convolution over time by the method of Toom and Cook (Winograd), for `convolution.py` on CPUs.

A run is one frame or, for strides, a group of frames side by side in the channels. In this file x
is [B, runs, H, W, I] and a kernel is [taps, H, W, I, O].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from i3d_jax.models.padding import pad


def conv2d_per_frame(x, kernel, strides, padding: Any = "SAME"):
    """2-D convolution of x [B, T, H, W, I] with kernel [H, W, I, O], frame by frame."""
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


@functools.partial(jax.jit, static_argnames=("before", "outputs", "step", "strides", "in_space"))
def conv_over_time(x, kernel, before, outputs, step, strides, in_space):
    """Convolution over time with half of the multiplications, or fewer.

    Directly, `step` outputs of `taps` taps take step * taps products. Here they take
    step + taps - 1. Each is a 2-D convolution of a sum of runs with a sum of taps, and outputs
    are sums of these products. The result is exact up to rounding. For frames of similar size
    the error is up to four times that of the plain form. The error is relative to the largest
    run that any of the `step` outputs sees: an output near a frame 10,000 times as bright has a
    relative error of about 1e-2, even if its own taps do not see that frame.

    Args:
      x: [B, runs, H, W, I].
      kernel: [taps, H, W, I, O].
      before: runs of padding in front.
      outputs: runs of the result; behind the last run there is padding, as far as it is needed.
      step: outputs that are computed together (see `max_tile_outputs`).
      strides: in height and width.
      in_space: padding (before, after) of height and width.
    """
    sizes = before, outputs, step, strides, in_space
    return _conv_over_time(x, kernel, sizes)  # For jvp, use forms_of("plain").


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_over_time(x, kernel, sizes) -> jax.Array:
    (before, outputs, step, strides, in_space), taps = sizes, kernel.shape[0]
    of_runs, of_taps, of_products = _transform_matrices(step, taps)
    places, slices = _tile_elements(x, before, outputs, step, taps), _unstack(kernel, 0)
    products = [
        conv2d_per_frame(_weighted_sum(places, run), _weighted_sum(slices, tap), strides, in_space)
        for run, tap in zip(of_runs.tolist(), of_taps.tolist(), strict=True)
    ]
    y = jnp.stack([_weighted_sum(products, product) for product in of_products.tolist()], 2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :outputs]


def _conv_over_time_fwd(x, kernel, sizes):
    return _conv_over_time(x, kernel, sizes), (x, kernel)


def _conv_over_time_bwd(sizes, residual, grad):
    """The gradients, one product after another in a loop.

    The products differ only in their weights, so one loop body is traced and compiled for all.
    """
    (x, kernel), (before, outputs, step, strides, in_space) = residual, sizes
    taps = kernel.shape[0]
    of_runs, of_taps, of_products = _transform_matrices(step, taps)
    grad_pads = ((0, 0), (0, -grad.shape[1] % step), (0, 0), (0, 0), (0, 0))

    # Transposed once for all products: summing and transposing in the loop reads memory more often.
    places = _channels_first(jnp.stack(_tile_elements(x, before, outputs, step, taps)))

    def of_product(weights):
        # Slices are taken inside the loop: there XLA fuses them with their sum and keeps neither.
        run, tap, product = weights
        blocks = jnp.pad(grad, grad_pads).reshape(grad.shape[0], -1, step, *grad.shape[2:])
        return _conv2d_per_frame_gradients(
            _weighted_sum(_unstack(places, 0), run),
            _weighted_sum(_unstack(kernel, 0), tap),
            _weighted_sum(_unstack(blocks, 2), product),
            strides,
            in_space,
        )

    weights = [jnp.asarray(each, grad.dtype) for each in (of_runs, of_taps, of_products.T)]
    of_places, of_slices = (_unstack(gradients, 0) for gradients in lax.map(of_product, weights))
    (of_x,) = jax.linear_transpose(lambda x: _tile_elements(x, before, outputs, step, taps), x)(
        [_weighted_sum(of_places, place) for place in of_runs.T.tolist()]
    )
    return of_x, jnp.stack([_weighted_sum(of_slices, tap) for tap in of_taps.T.tolist()])


_conv_over_time.defvjp(_conv_over_time_fwd, _conv_over_time_bwd)


def _conv2d_per_frame_gradients(x, kernel, grad, strides, in_space):
    """The gradients of x and kernel, as convolutions in memory order.

    In a loop on a CPU, XLA calls its convolution library only for [B, H, W, C] with [H, W, I, O]
    as these lie in memory. x is [I, H, W, B * T].
    """
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    grads = grad.reshape(-1, *grad.shape[2:])
    window, befores = kernel.shape[:2], [before for before, _ in in_space]
    # The padding behind is shorter where the outputs end before it.
    afters = [
        (outputs - 1) * stride + taps - before - size
        for size, outputs, taps, stride, before in zip(
            x.shape[1:3], grads.shape[1:3], window, strides, befores, strict=True
        )
    ]
    of_x = conv(
        grads,
        kernel[::-1, ::-1].swapaxes(2, 3),
        padding=[
            (taps - 1 - before, taps - 1 - after)
            for taps, before, after in zip(window, befores, afters)
        ],
        lhs_dilation=strides,
    )
    of_kernel = conv(
        x,
        grads.transpose(1, 2, 0, 3),
        padding=list(zip(befores, afters)),
        rhs_dilation=strides,
    )
    return of_x.reshape(*grad.shape[:2], *of_x.shape[1:]), of_kernel.transpose(1, 2, 0, 3)


def _channels_first(x):
    """Rearranges x [..., B, T, H, W, C] to [..., C, H, W, B * T]."""
    x = jnp.moveaxis(x, (-1, -3, -2), (-5, -4, -3))
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _tile_elements(x, before, outputs, step, taps):
    """Cuts x into overlapping tiles of step + taps - 1 runs, one tile per `step` outputs.

    Returns:
      for each place in a tile, the runs of all tiles at that place, [B, tiles, H, W, C].
    """
    steps = -(-outputs // step)
    blocks = steps + -(-(taps - 1) // step)
    x = pad(x, 1, before, blocks * step - x.shape[1] - before)
    x = _unstack(x.reshape(x.shape[0], blocks, step, *x.shape[2:]), 2)
    places = [divmod(place, step) for place in range(step + taps - 1)]
    return [lax.slice_in_dim(x[place], first, first + steps, axis=1) for first, place in places]


def _unstack(x, axis):
    """The slices of x along an axis, as `jnp.unstack`.

    Its gradient concatenates, which is faster than `jnp.unstack`'s sum of padded slices.
    """
    return [lax.squeeze(each, [axis]) for each in lax.split(x, (1,) * x.shape[axis], axis)]


def _weighted_sum(values, weights):
    """The sum of values times weights; skips constant weights of 0, and products with 1.

    It uses `lax`: a network has hundreds of these, and `jnp` traces several times slower.
    """
    pairs = [
        (value, weight)
        for value, weight in zip(values, weights, strict=True)
        if not _is_known(weight, 0)
    ]

    def product(value, weight):
        if _is_known(weight, 1):
            return value
        # Under JAX_ENABLE_X64 a Python float is float64, which `lax` does not mix with float32.
        return lax.mul(
            value, weight if isinstance(weight, jax.Array) else np.asarray(weight, value.dtype)
        )

    return functools.reduce(lax.add, [product(value, weight) for value, weight in pairs])


def _is_known(weight, number):
    """Whether a weight is a constant with this value, and no array."""
    return not isinstance(weight, jax.Array) and weight == number


# These points give small rounding errors (Barabasz et al., "Error analysis and improving the
# accuracy of Winograd convolution", 2020).
POINTS = 0, 1, -1, 1 / 2, -2, 2


def max_tile_outputs(taps: int) -> int:
    """The most outputs of this many taps that can be computed together.

    Their product has as many terms as there are points, and one more at infinity.
    """
    return max(1, len(POINTS) + 2 - taps)


@functools.cache
def _transform_matrices(step, taps):
    """The matrices of the method.

    Toom-Cook multiplies polynomials of `step` and of `taps` terms. It evaluates them at as many
    points as their product has terms, the last at infinity. Convolution is the transpose of
    this: inputs and outputs change places.

    Returns:
      weights of the runs in each product, [products, products]; weights of the taps in each
      product, [products, taps]; weights of the products in each output, [step, products].
    """
    products = step + taps - 1
    points = np.array(POINTS[: products - 1])

    def powers(terms):
        at_infinity = np.eye(terms)[-1:]
        return np.concatenate([points[:, None] ** np.arange(terms), at_infinity])

    of_inputs = np.linalg.inv(powers(products)).T
    return np.where(abs(of_inputs) > 1e-12, of_inputs, 0), powers(taps), powers(step).T
