"""Convolution over time by Toom-Cook's (Winograd's) method, for `convolution.py` on a CPU.

Runs are frames or, for strides, groups of frames side by side in the channels: x [B, runs, H, W, I], kernel [taps, H, W, I, O].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from i3d_jax.models.padding import pad, same_pads


def conv2d_of_runs(x, kernel, strides, padding: Any = "SAME"):
    """2-D convolution of x [B, T, H, W, I] with kernel [H, W, I, O], frame by frame."""
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


@functools.partial(jax.jit, static_argnames=("before", "step", "strides"))
def conv_over_time(x, kernel, before, step, strides):
    """Convolution over time by Toom-Cook's (Winograd's) method: half of the multiplications, or less.

    `step` outputs of `taps` taps are not step * taps products but step + taps - 1, of sums of runs with sums of taps, by a
    2-D convolution each; outputs are sums of products. Exact but for rounding. Among frames of about the same size the error is
    up to four times the plain form's. It is relative to the largest run that any of the `step` outputs sees: an output beside a
    frame 10,000 times as bright has a relative error of about 1e-2, even if its own taps do not see that frame.
    """
    return _conv_over_time(
        x, kernel, before, step, strides
    )  # No forward-mode AD but under forms_of("plain").


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_over_time(x, kernel, before, step, strides) -> jax.Array:
    runs, taps = x.shape[1], kernel.shape[0]
    of_runs, of_taps, of_products = _weights(step, taps)
    places, slices = _places(x, before, step, taps), _unstacked(kernel, 0)
    products = [
        conv2d_of_runs(_weighted(places, run), _weighted(slices, tap), strides)
        for run, tap in zip(of_runs.tolist(), of_taps.tolist(), strict=True)
    ]
    y = jnp.stack([_weighted(products, product) for product in of_products.tolist()], 2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :runs]


def _conv_over_time_fwd(x, kernel, before, step, strides):
    return _conv_over_time(x, kernel, before, step, strides), (x, kernel)


def _conv_over_time_bwd(before, step, strides, residual, grad):
    """One product after another in a loop, so that one is traced and compiled: they differ in nothing but the weights."""
    x, kernel = residual
    taps = kernel.shape[0]
    of_runs, of_taps, of_products = _weights(step, taps)
    grad_pads = ((0, 0), (0, -grad.shape[1] % step), (0, 0), (0, 0), (0, 0))

    # Once for all products, as they are wanted: summed and transposed at once, each would be read across memory several times.
    places = _channels_first(jnp.stack(_places(x, before, step, taps)))

    def of_product(weights):
        # Slices of the kernel and of grad are taken here, where they and their sum are one operation; outside they would be kept.
        run, tap, product = weights
        blocks = jnp.pad(grad, grad_pads).reshape(grad.shape[0], -1, step, *grad.shape[2:])
        return _conv2d_of_runs_gradients(
            _weighted(_unstacked(places, 0), run),
            _weighted(_unstacked(kernel, 0), tap),
            _weighted(_unstacked(blocks, 2), product),
            strides,
        )

    weights = [jnp.asarray(each, grad.dtype) for each in (of_runs, of_taps, of_products.T)]
    of_places, of_slices = (_unstacked(gradients, 0) for gradients in lax.map(of_product, weights))
    (of_x,) = jax.linear_transpose(lambda x: _places(x, before, step, taps), x)(
        [_weighted(of_places, place) for place in of_runs.T.tolist()]
    )
    return of_x, jnp.stack([_weighted(of_slices, tap) for tap in of_taps.T.tolist()])


_conv_over_time.defvjp(_conv_over_time_fwd, _conv_over_time_bwd)


def _conv2d_of_runs_gradients(x, kernel, grad, strides):
    """The gradients of x and kernel, each as a convolution of [B, H, W, C] with [H, W, I, O] as they lie in memory: of no
    others does XLA make the library's, in a loop on a CPU. x is [I, H, W, B * T].
    """
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    grads = grad.reshape(-1, *grad.shape[2:])
    window, befores, afters = kernel.shape[:2], [], []
    for size, outputs, taps, stride in zip(
        x.shape[1:3], grads.shape[1:3], window, strides, strict=True
    ):
        ((before, _),) = same_pads((size,), (taps,), (stride,))
        befores.append(before)
        # Less than the padding, where outputs end before it.
        afters.append((outputs - 1) * stride + taps - before - size)
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
    """x [..., B, T, H, W, C] as [..., C, H, W, B * T]."""
    x = jnp.moveaxis(x, (-1, -3, -2), (-5, -4, -3))
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _places(x, before, step, taps):
    """Of all blocks of `step` outputs, the runs at each of their step + taps - 1 places, [B, blocks, H, W, C]."""
    runs = x.shape[1]
    steps = -(-runs // step)
    blocks = steps + -(-(taps - 1) // step)
    x = pad(x, 1, before, blocks * step - runs - before)
    x = _unstacked(x.reshape(x.shape[0], blocks, step, *x.shape[2:]), 2)
    places = [divmod(place, step) for place in range(step + taps - 1)]
    return [lax.slice_in_dim(x[place], first, first + steps, axis=1) for first, place in places]


def _unstacked(x, axis):
    """The slices of x along an axis, as `jnp.unstack`, whose gradient adds up what it has padded; this one concatenates."""
    return [lax.squeeze(each, [axis]) for each in lax.split(x, (1,) * x.shape[axis], axis)]


def _weighted(values, weights):
    """The sum of values, each times its weight; those known to be zero are left out, as are products with one.

    Of `lax`'s operations: a network has hundreds, and `jnp`'s take several times longer to trace.
    """
    pairs = [
        (value, weight)
        for value, weight in zip(values, weights, strict=True)
        if not _known(weight, 0)
    ]

    def product(value, weight):
        if _known(weight, 1):
            return value
        # Under JAX_ENABLE_X64 a Python float is a float64, which `lax` does not multiply float32 by.
        return lax.mul(
            value, weight if isinstance(weight, jax.Array) else np.asarray(weight, value.dtype)
        )

    return functools.reduce(lax.add, [product(value, weight) for value, weight in pairs])


def _known(weight, number):
    return not isinstance(weight, jax.Array) and weight == number


# Those of small rounding (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020).
POINTS = 0, 1, -1, 1 / 2, -2, 2


def most_outputs(taps: int) -> int:
    """How many outputs of so many taps can be computed at once: their product has a term per point and one at infinity."""
    return max(1, len(POINTS) + 2 - taps)


@functools.cache
def _weights(step, taps):
    """The method's weights: of runs in the sums [products, products], of taps [products, taps], of products in the outputs
    [step, products].

    Toom-Cook multiplies polynomials of `step` and of `taps` terms by their values at as many points as the product has terms,
    the last at infinity; convolution's outputs are its transpose, inputs and outputs exchanged.
    """
    products = step + taps - 1
    points = np.array(POINTS[: products - 1])

    def powers(terms):
        at_infinity = np.eye(terms)[-1:]
        return np.concatenate([points[:, None] ** np.arange(terms), at_infinity])

    of_inputs = np.linalg.inv(powers(products)).T
    return np.where(abs(of_inputs) > 1e-12, of_inputs, 0), powers(taps), powers(step).T
