"""Convolution of images [B, H, W, C] and videos [B, T, H, W, C], in the form that the hardware runs fastest.

Windows and strides are (time, height, width), or (height, width) for images.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import backend


def compiler_options() -> dict[str, str | int] | None:
    """What to compile a whole network with, for `jax.jit`.

    On a CPU, these versions of XLA give convolutions to a library that is up to five times slower at kernel gradients
    than the one before it; the option, experimental by its name, gives them back. On a GPU of CUDA's, XLA by itself lays videos out
    channels first, which 3-D convolutions are far slower in, and has matrix products without the sums and ReLUs after them, or
    several in one. Of other versions nothing is known, not even whether they have the options.
    """
    if not (0, 10) <= jax.__version_info__[:2] <= (0, 12):
        return None
    if on_cuda():
        return {
            "xla_gpu_force_conv_nhwc": True,
            "xla_gpu_enable_triton_gemm": False,
            "xla_gpu_dot_merger_threshold_mb": 0,
        }
    if jax.default_backend() == "cpu":
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return None


def on_cuda() -> bool:
    """Whether this process computes on GPUs of CUDA's."""
    return jax.default_backend() == "gpu" and "rocm" not in backend.get_backend().platform_version.lower()


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def same_pads(shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """TensorFlow's SAME padding, (before, after) per axis: the odd pixel goes after."""
    return lax.padtype_to_pads(shape, window, strides, "SAME")


def conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], time_padding: str = "zeros") -> jax.Array:
    """SAME convolution of x [B, *positions, I] with kernel [*window, I, O].

    `time_padding="edge"` repeats a video's first and last frame instead of padding the time axis with zeros.
    """
    window, strides = kernel.shape[:-2], tuple(strides)
    if all(n == 1 for n in window + strides):
        kernel = kernel.reshape(kernel.shape[-2:])
        if x.dtype == jnp.promote_types(x.dtype, jnp.float32):
            return jnp.dot(x, kernel)
        return lax.platform_dependent(x, kernel, cpu=_wide_product, default=jnp.dot)
    if time_padding == "edge" and len(window) == 3:
        return _conv3d(x, kernel, strides, "edge")
    forms: dict[str, Any] = {} if len(window) == 2 else {"cpu": _conv3d_as_2d}
    if x.shape[-1] % 8 and x.shape[-1] * math.prod(strides) <= FEW:
        forms["cuda"] = _conv_of_few_channels
    plain = functools.partial(_conv2d if len(window) == 2 else _conv3d, strides=strides)
    forms = {platform: functools.partial(form, strides=strides) for platform, form in forms.items()}
    return lax.platform_dependent(x, kernel, **forms, default=plain) if forms else plain(x, kernel)


def _wide_product(x, kernel):
    """A CPU has products of half-precision numbers with results in float32, and is slow at others."""
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _conv2d(x, kernel, strides, padding: Any = "SAME"):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv3d(x, kernel, strides, time_padding="zeros"):
    pads = same_pads(x.shape[1:-1], kernel.shape[:3], strides)
    if time_padding == "edge":
        x = jnp.pad(x, [(0, 0), pads[0], (0, 0), (0, 0), (0, 0)], mode="edge")
        pads[0] = (0, 0)
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


# Up to how many channels a GPU's convolution of few, as of colours or of flow, is given, and of what number multiples.
FEW, MULTIPLE = 96, 32


def _conv_of_few_channels(x, kernel, strides):
    """The same convolution with more channels, as a GPU's matrix units want them, and less taps.

    Blocks of pixels as large as the strides become channels, and then, as long as these stay few, all taps along one axis after
    another. What is left is a convolution of videos, of images if the axis of time has one tap, or a product if all have.
    """
    sizes, window, axes = x.shape[1:-1], kernel.shape[:-2], range(x.ndim - 2)
    outputs = [-(-size // stride) for size, stride in zip(sizes, strides)]
    taps = [-(-size // stride) for size, stride in zip(window, strides)]
    befores = [before for before, _ in same_pads(sizes, window, strides)]
    # Whole blocks: zeros after the last pixel, and taps of zeros after the last.
    afters = [(outputs[i] - 1 + taps[i]) * strides[i] - sizes[i] - befores[i] for i in axes]
    x = jnp.pad(x, [(0, 0), *zip(befores, afters), (0, 0)])
    kernel = jnp.pad(kernel, [*((0, taps[i] * strides[i] - window[i]) for i in axes), (0, 0), (0, 0)])
    x = _blocks_as_channels(x, strides, 1)
    kernel = _blocks_as_channels(kernel, strides, 0)
    for i in axes:
        if x.shape[-1] * taps[i] > FEW:
            break
        x = jnp.concatenate([lax.slice_in_dim(x, tap, tap + outputs[i], axis=1 + i) for tap in range(taps[i])], -1)
        kernel = jnp.concatenate([lax.slice_in_dim(kernel, tap, tap + 1, axis=i) for tap in range(taps[i])], -2)
    more = -x.shape[-1] % MULTIPLE
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
    kernel = jnp.pad(kernel, [(0, 0)] * len(axes) + [(0, more), (0, 0)])
    if math.prod(kernel.shape[:-2]) == 1:
        return jnp.dot(x, kernel.reshape(kernel.shape[-2:]))
    if kernel.shape[0] == 1 and len(axes) == 3:
        y = _conv2d(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), kernel[0], (1, 1), "VALID")
        return y.reshape(*x.shape[:2], *y.shape[1:])
    form = ("NDHWC", "DHWIO", "NDHWC") if len(axes) == 3 else ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1,) * len(axes), "VALID", dimension_numbers=form)


def _blocks_as_channels(x, blocks, axis):
    """x [..., *positions, C, ...], the positions from `axis` on, with the positions of every block as channels before C."""
    number = len(blocks)
    before, positions, after = x.shape[:axis], x.shape[axis : axis + number], x.shape[axis + number :]
    shape = [n for size, block in zip(positions, blocks) for n in (size // block, block)]
    x = x.reshape(*before, *shape, *after)
    inner = [axis + 1 + 2 * i for i in range(number)]
    x = jnp.moveaxis(x, inner, range(axis + number, axis + 2 * number))
    return x.reshape(*before, *x.shape[axis : axis + number], math.prod(blocks) * after[0], *after[1:])


# Multiply-adds from which saving some of them is worth more operations to compile and run.
LARGE = 1.5e9


def _conv3d_as_2d(x, kernel, strides):
    """The same convolution as 2-D convolutions, which CPU backends run several times faster.

    Runs of `stride` frames are folded into input channels, so that the taps in time are a convolution of runs at stride 1.
    Half-precision numbers are computed with in float32, which is what XLA makes of their convolutions on a CPU, too.
    """
    dtype, x, kernel = x.dtype, at_least_float32(x), at_least_float32(kernel)
    batch, frames, height, width, inputs = x.shape
    taps, *window, _, outputs = kernel.shape
    stride = strides[0]
    (before, _), *_ = same_pads((frames,), (taps,), (stride,))
    # Whole runs only: zero frames in front until the padding is whole runs, zero frames and zero taps at the end.
    front = before % stride
    runs, taps = -(-(front + frames) // stride), -(-taps // stride)
    x = jnp.pad(x, ((0, 0), (front, runs * stride - front - frames), (0, 0), (0, 0), (0, 0)))
    kernel = jnp.pad(kernel, ((0, taps * stride - kernel.shape[0]), (0, 0), (0, 0), (0, 0), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, runs, stride, height, width, inputs), 2, 4)
    x = x.reshape(batch, runs, height, width, stride * inputs)
    kernel = jnp.moveaxis(kernel.reshape(taps, stride, *window, inputs, outputs), 1, 3)
    kernel = kernel.reshape(taps, *window, stride * inputs, outputs)
    # How many outputs at once take the fewest products.
    step = min(range(1, 5), key=lambda step: (-(-runs // step) * (step + taps - 1), step))
    work = x.size * math.prod(kernel.shape[:-2]) * outputs / math.prod(strides[1:])
    y: Any
    if step > 1 and work >= LARGE:
        y = _toom_cook_over_time(x, kernel, before // stride, step, strides[1:])
    else:
        y = _taps_as_channels(x, kernel, before // stride, strides[1:])
    return y.astype(dtype)


def _conv2d_of_runs(x, kernel, strides):
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _taps_as_channels(x, kernel, before, strides):
    """Convolution over time by one 2-D convolution, to the outputs of every tap in time; their sum, shifted in time."""
    taps, outputs = kernel.shape[0], kernel.shape[-1]
    kernel = jnp.moveaxis(kernel, 0, 3)
    y = _conv2d_of_runs(x, kernel.reshape(*kernel.shape[:3], taps * outputs), strides)
    y = y.reshape(*y.shape[:-1], taps, outputs)
    total: Any = 0.0
    for tap in range(taps):
        ahead = tap - before  # Output t takes this tap from run t + ahead.
        shift = [(0, 0, 0), (-ahead, ahead, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)]
        total += lax.pad(y[..., tap, :], jnp.zeros((), y.dtype), shift)
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _toom_cook_over_time(x, kernel, before, step, strides) -> jax.Array:
    """Convolution over time by Toom-Cook's (Winograd's) method: half of the multiplications, or less.

    `step` outputs of `taps` taps are not step * taps products but step + taps - 1, of sums of runs with sums of taps, by a
    2-D convolution each; outputs are sums of products. Exact but for rounding, which is up to four times the plain form's.
    """
    runs, taps = x.shape[1], kernel.shape[0]
    of_runs, of_taps, of_products = _toom_cook(step, taps)
    places, slices = _places(x, before, step, taps), _unstacked(kernel, 0)
    products = [
        _conv2d_of_runs(_weighted(places, run), _weighted(slices, tap), strides)
        for run, tap in zip(of_runs.tolist(), of_taps.tolist(), strict=True)
    ]
    y = jnp.stack([_weighted(products, product) for product in of_products.tolist()], 2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :runs]


def _toom_cook_over_time_fwd(x, kernel, before, step, strides):
    return _toom_cook_over_time(x, kernel, before, step, strides), (x, kernel)


def _toom_cook_over_time_bwd(before, step, strides, residual, grad):
    """One product after another in a loop, so that one is traced and compiled: they differ in nothing but the weights."""
    x, kernel = residual
    taps = kernel.shape[0]
    of_runs, of_taps, of_products = _toom_cook(step, taps)
    grad_pads = ((0, 0), (0, -grad.shape[1] % step), (0, 0), (0, 0), (0, 0))

    def of_product(weights):
        # The slices are taken here, where they and their sum are one operation; outside they would be kept.
        run, tap, product = weights
        blocks = jnp.pad(grad, grad_pads).reshape(grad.shape[0], -1, step, *grad.shape[2:])
        return _conv2d_of_runs_gradients(
            _weighted(_places(x, before, step, taps), run),
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


_toom_cook_over_time.defvjp(_toom_cook_over_time_fwd, _toom_cook_over_time_bwd)


def _conv2d_of_runs_gradients(x, kernel, grad, strides):
    """The gradients of x and kernel, each as a convolution of [B, H, W, C] with [H, W, I, O] as they lie in memory: of no
    others does XLA make the library's, in a loop on a CPU.
    """
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    frames, grads = (each.reshape(-1, *each.shape[2:]) for each in (x, grad))
    window, befores, afters = kernel.shape[:2], [], []
    for size, outputs, taps, stride in zip(frames.shape[1:3], grads.shape[1:3], window, strides, strict=True):
        ((before, _),) = same_pads((size,), (taps,), (stride,))
        befores.append(before)
        # Less than the padding, where outputs end before it.
        afters.append((outputs - 1) * stride + taps - before - size)
    of_x = conv(
        grads,
        kernel[::-1, ::-1].swapaxes(2, 3),
        padding=[(taps - 1 - before, taps - 1 - after) for taps, before, after in zip(window, befores, afters)],
        lhs_dilation=strides,
    )
    of_kernel = conv(
        frames.transpose(3, 1, 2, 0),
        grads.transpose(1, 2, 0, 3),
        padding=list(zip(befores, afters)),
        rhs_dilation=strides,
    )
    return of_x.reshape(x.shape), of_kernel.transpose(1, 2, 0, 3)


def _places(x, before, step, taps):
    """Of all blocks of `step` outputs, the runs at each of their step + taps - 1 places, [B, blocks, H, W, C]."""
    runs = x.shape[1]
    steps = -(-runs // step)
    blocks = steps + -(-(taps - 1) // step)
    x = jnp.pad(x, ((0, 0), (before, blocks * step - runs - before), (0, 0), (0, 0), (0, 0)))
    x = _unstacked(x.reshape(x.shape[0], blocks, step, *x.shape[2:]), 2)
    return [x[place % step][:, place // step : place // step + steps] for place in range(step + taps - 1)]


def _unstacked(x, axis):
    """The slices of x along an axis, as `jnp.unstack`, whose gradient adds up what it has padded; this one concatenates."""
    return [jnp.squeeze(each, axis) for each in lax.split(x, (1,) * x.shape[axis], axis)]


def _weighted(values, weights):
    """The sum of values, each times its weight; those known to be zero are left out."""
    pairs = zip(values, weights, strict=True)
    return sum(weight * value for value, weight in pairs if isinstance(weight, jax.Array) or weight)


@functools.cache
def _toom_cook(step, taps):
    """The method's weights: of runs in the sums [products, products], of taps [products, taps], of products in the outputs
    [step, products].

    Toom-Cook multiplies polynomials of `step` and of `taps` terms by their values at as many points as the product has terms,
    the last at infinity; convolution's outputs are its transpose, inputs and outputs exchanged. The points are those of
    small rounding (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020).
    """
    products = step + taps - 1
    points = np.array([0, 1, -1, 1 / 2, -2, 2])[: products - 1]

    def powers(terms):
        at_infinity = np.eye(terms)[-1:]
        return np.concatenate([points[:, None] ** np.arange(terms), at_infinity])

    of_inputs = np.linalg.inv(powers(products)).T
    return np.where(abs(of_inputs) > 1e-12, of_inputs, 0), powers(taps), powers(step).T
