"""Convolution of images [B, H, W, C] and videos [B, T, H, W, C], as fast as the platform allows.

Windows and strides are (time, height, width), or (height, width) for images.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from i3d_jax.models import platforms, toom_cook
from i3d_jax.models.padding import pad, pads_for_xla, pads_of


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    time_padding: str = "zeros",
    padding: str = "same",
) -> jax.Array:
    """Convolution of x [B, *positions, I] with kernel [*window, I, O].

    Args:
      x: images or videos.
      kernel: the kernel.
      strides: one per axis of the window.
      time_padding: "zeros" pads with zeros; "edge" repeats a video's first and last frame; "none"
        gives only the outputs whose window lies inside the video.
      padding: as in `padding.pads_of`.
    """
    window, strides, platform = kernel.shape[:-2], tuple(strides), platforms.platform()
    # A TPU lays out the result of a product in another way than convolutions take it.
    if all(n == 1 for n in window + strides) and (platform != "tpu" or len(window) < 2):
        kernel = kernel.reshape(kernel.shape[-2:])
        # JAX cannot always tell the sign of the product of sizes that an export leaves open.
        flat = platform == "cpu" and all(isinstance(size, int) for size in x.shape[1:])
        return _pointwise_conv(x, kernel) if flat else jnp.dot(x, kernel)
    if time_padding == "edge" and len(window) == 3:
        return _edge_padded_conv(x, kernel, strides, padding)
    padded = time_padding == "zeros"
    if platform == "cpu" and len(window) == 3:
        return _conv3d_as_2d(x, kernel, strides, padded, padding)
    if platform == "cuda" and x.shape[-1] % 8 and x.shape[-1] * math.prod(strides) <= FEW_CHANNELS:
        return _conv_of_few_channels(x, kernel, strides, padded, padding)
    if platform == "tpu" and len(window) == 3 and _has_few_phases(x, strides):
        return _conv_of_phases(x, kernel, strides, padded, padding)
    if platform == "cpu" and _is_small(x.shape[1:-1], window, strides):
        return _conv_of_small_images(x, kernel, strides, _pads(x, kernel, strides, padded, padding))
    if padded:
        return _xla_conv(x, kernel, strides, pads_for_xla(x.shape[1:-1], window, strides, padding))
    return _xla_conv(x, kernel, strides, _pads(x, kernel, strides, padded, padding))


def _pads(x, kernel, strides, padded, padding):
    """The padding (before, after) of every axis; none in time unless `padded`."""
    pads = pads_of(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    return pads if padded or x.ndim == 4 else ((0, 0), *pads[1:])


def _outputs(size, taps, stride, pads):
    """How many windows fit along an axis, with its padding."""
    return (sum(pads) + size - taps) // stride + 1


def _pointwise_conv(x, kernel):
    """A convolution with a window of 1 as one matrix product.

    XLA's gradient for arrays with more axes would transpose them. On a CPU, half-precision
    products are fast only if their result is float32.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.dot(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), kernel, preferred_element_type=wide
    )
    return y.astype(x.dtype).reshape(*x.shape[:-1], kernel.shape[-1])


def _xla_conv(x, kernel, strides, padding: Any = "SAME"):
    """XLA's own convolution, of images or videos."""
    form = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=form)


def _edge_padded_conv(x, kernel, strides, padding):
    in_time, *in_space = pads_of(x.shape[1:-1], kernel.shape[:3], strides, padding)
    x = jnp.pad(x, [(0, 0), in_time, (0, 0), (0, 0), (0, 0)], mode="edge")
    return _xla_conv(x, kernel, strides, [(0, 0), *in_space])


# A GPU convolves few input channels (RGB, flow) slowly. `_conv_of_few_channels` packs pixels into
# channels: at most FEW_CHANNELS of them, padded to a multiple of CHANNEL_MULTIPLE.
FEW_CHANNELS, CHANNEL_MULTIPLE = 96, 32


def _conv_of_few_channels(x, kernel, strides, padded=True, padding="same"):
    """The same convolution with more channels and fewer taps, which suits a GPU's matrix units.

    First, blocks of pixels as large as the strides become channels. Then all taps along one axis
    after another become channels, as long as these stay few. The rest is a convolution of videos,
    one of images if time has a single tap, or a matrix product if all axes have.
    """
    sizes, window, axes = x.shape[1:-1], kernel.shape[:-2], range(x.ndim - 2)
    pads = _pads(x, kernel, strides, padded, padding)
    outputs = [_outputs(*axis) for axis in zip(sizes, window, strides, pads)]
    taps = [-(-size // stride) for size, stride in zip(window, strides)]
    befores = [before for before, _ in pads]
    # Zeros fill up the last block of pixels and the last block of taps.
    afters = [(outputs[i] - 1 + taps[i]) * strides[i] - sizes[i] - befores[i] for i in axes]
    x = jnp.pad(x, [(0, 0), *zip(befores, afters), (0, 0)])
    kernel = jnp.pad(
        kernel, [*((0, taps[i] * strides[i] - window[i]) for i in axes), (0, 0), (0, 0)]
    )
    x = _blocks_as_channels(x, strides, 1)
    kernel = _blocks_as_channels(kernel, strides, 0)
    for i in axes:
        if x.shape[-1] * taps[i] > FEW_CHANNELS:
            break
        x = jnp.concatenate(
            [lax.slice_in_dim(x, tap, tap + outputs[i], axis=1 + i) for tap in range(taps[i])], -1
        )
        kernel = jnp.concatenate(
            [lax.slice_in_dim(kernel, tap, tap + 1, axis=i) for tap in range(taps[i])], -2
        )
    more = -x.shape[-1] % CHANNEL_MULTIPLE
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
    kernel = jnp.pad(kernel, [(0, 0)] * len(axes) + [(0, more), (0, 0)])
    if math.prod(kernel.shape[:-2]) == 1:
        return jnp.dot(x, kernel.reshape(kernel.shape[-2:]))
    if kernel.shape[0] == 1 and len(axes) == 3:
        return toom_cook.conv2d_per_frame(x, kernel[0], (1, 1), "VALID")
    return _xla_conv(x, kernel, (1,) * len(axes), "VALID")


def _has_few_phases(x, strides):
    """Whether a video is for `_conv_of_phases`; that takes no sizes that an export leaves open."""
    phases = math.prod(strides[1:])
    known = all(isinstance(size, int) for size in x.shape[1:])
    return known and phases > 1 and x.shape[-1] * phases <= FEW_CHANNELS


def _conv_of_phases(x, kernel, strides, padded=True, padding="same"):
    """The same convolution of videos with more channels and fewer taps, for a TPU's memory.

    A TPU pads a video's channels to 128, with which RGB takes 42 times its memory. First, the
    pixels at each phase of the strides in space become channels. Then the taps in time do, if the
    channels stay few. Images need none of this: a TPU lays out a batch of them in the place of the
    channels.
    """
    pads, taps = _pads(x, kernel, strides, padded, padding), kernel.shape[0]
    outputs = [_outputs(*axis) for axis in zip(x.shape[1:4], kernel.shape, strides, pads)]
    in_time, *befores = [before for before, _ in pads]
    x = jnp.moveaxis(x, -1, 2)  # [B, T, C, H, W]
    for i, (before, stride) in enumerate(zip(befores, strides[1:])):
        front = before % stride
        x = pad(x, 3 + i, front, -(front + x.shape[3 + i]) % stride)
        kernel = pad(kernel, 1 + i, 0, -kernel.shape[1 + i] % stride)
    with_time = x.shape[2] * math.prod(strides[1:]) * taps <= FEW_CHANNELS
    last = (outputs[0] - 1) * strides[0] + 1
    if with_time:
        x = pad(x, 1, in_time, last + taps - 1 - in_time - x.shape[1])
    parts, kernels = _phases(x, 3, strides[1:]), _phases(kernel, 1, strides[1:])
    time_stride, time_pads = strides[0], pads[0]
    if with_time:
        parts = [
            lax.slice_in_dim(part, tap, tap + last, time_stride, 1)
            for part in parts
            for tap in range(taps)
        ]
        kernels = [each[tap : tap + 1] for each in kernels for tap in range(taps)]
        time_stride, time_pads = 1, (0, 0)
    x, kernel = jnp.concatenate(parts, 2), jnp.concatenate(kernels, -2)
    # XLA would give all of these slices the layout of the convolution's input, with its padding.
    # It cannot pass a barrier where frames and channels are one axis.
    merged = lax.optimization_barrier(x.reshape(x.shape[0], -1, *x.shape[3:]))
    x = jnp.moveaxis(merged.reshape(x.shape), 2, -1)
    in_space = [
        (before // stride, outputs[i] - 1 + kernel.shape[i] - before // stride - x.shape[1 + i])
        for i, before, stride in zip((1, 2), befores, strides[1:])
    ]
    return _xla_conv(x, kernel, (time_stride, 1, 1), [time_pads, *in_space])


def _phases(x, axis, steps):
    """Every position at multiples of `steps` along consecutive axes, and those that follow it.

    Args:
      x: of whole blocks of `steps`.
      axis: the first axis.
      steps: one per axis.

    Returns:
      an array for each place in a block, in memory order.
    """
    strides = [1] * axis + [*steps] + [1] * (x.ndim - axis - len(steps))
    starts = itertools.product(*map(range, strides))
    return [lax.slice(x, start, x.shape, strides) for start in starts]


def _blocks_as_channels(x, blocks, axis):
    """Moves the positions within each block into the channels.

    Args:
      x: [..., *positions, C, ...].
      blocks: sizes of the blocks, one per axis of positions.
      axis: the first axis of positions.
    """
    number = len(blocks)
    before, positions, after = (
        x.shape[:axis],
        x.shape[axis : axis + number],
        x.shape[axis + number :],
    )
    shape = [n for size, block in zip(positions, blocks) for n in (size // block, block)]
    x = x.reshape(*before, *shape, *after)
    inner = [axis + 1 + 2 * i for i in range(number)]
    x = jnp.moveaxis(x, inner, range(axis + number, axis + 2 * number))
    return x.reshape(
        *before, *x.shape[axis : axis + number], math.prod(blocks) * after[0], *after[1:]
    )


# Toom-Cook saves multiplications but has more operations to compile and run, and sums kernels, too.
# It pays from this many multiply-adds, and from this many positions to which the kernel is applied.
MIN_MULTIPLY_ADDS, MIN_POSITIONS = 1.5e9, 1000
# The few frames of a video's next chunk gain from a third of that on. Their program runs so often
# that compiling does not count.
SHARE_IN_CHUNKS = 1 / 3


def _conv3d_as_2d(x, kernel, strides, padded=True, padding="same"):
    """The same convolution as 2-D convolutions, which CPUs run several times faster.

    Half-precision numbers are computed in float32, as XLA itself does on a CPU.
    """
    dtype, x, kernel, stride = x.dtype, at_least_float32(x), at_least_float32(kernel), strides[0]
    in_time, *in_space = _pads(x, kernel, strides, padded, padding)
    (before, _), outputs = in_time, _outputs(x.shape[1], kernel.shape[0], stride, in_time)
    if stride > 1:
        x, kernel = _runs_as_channels(x, kernel, before, stride)
        before //= stride
    taps = kernel.shape[0]
    # The number of outputs at once that needs the fewest products; one where an export leaves the
    # number of frames open.
    most = 2 if platforms.has_small_rounding_errors() else 4
    most = min(most, toom_cook.max_tile_outputs(taps)) if isinstance(outputs, int) else 1
    steps = range(1, most + 1)
    step = min(steps, key=lambda step: (-(-outputs // step) * (step + taps - 1), step))
    # An export can leave the number of clips open; the choice is then made for one clip.
    clips = x.shape[0] if isinstance(x.shape[0], int) else 1
    least = max(MIN_MULTIPLY_ADDS, MIN_POSITIONS * kernel.size)
    least *= math.prod(strides[1:]) * (1 if padded else SHARE_IN_CHUNKS)
    small = _is_small(x.shape[2:4], kernel.shape[1:3], strides[1:])
    y: Any
    if step > 1 and not small and clips * outputs * math.prod(x.shape[2:4]) * kernel.size >= least:
        y = toom_cook.conv_over_time(x, kernel, before, outputs, step, strides[1:], tuple(in_space))
    else:
        y = _taps_as_channels(x, kernel, before, outputs, strides[1:], tuple(in_space))
    return y.astype(dtype)


@functools.partial(jax.jit, static_argnames=("before", "stride"))
def _runs_as_channels(x, kernel, before, stride):
    """Removes a stride in time: groups of `stride` frames (runs) become channels of one frame."""
    batch, frames, height, width, inputs = x.shape
    taps, *window, _, outputs = kernel.shape
    # Runs must be whole: pads with zero frames on both sides and with zero taps at the end.
    front = before % stride
    runs, taps = -(-(front + frames) // stride), -(-taps // stride)
    x = jnp.pad(x, ((0, 0), (front, runs * stride - front - frames), (0, 0), (0, 0), (0, 0)))
    kernel = jnp.pad(kernel, ((0, taps * stride - kernel.shape[0]), (0, 0), (0, 0), (0, 0), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, runs, stride, height, width, inputs), 2, 4)
    x = x.reshape(batch, runs, height, width, stride * inputs)
    kernel = jnp.moveaxis(kernel.reshape(taps, stride, *window, inputs, outputs), 1, 3)
    return x, kernel.reshape(taps, *window, stride * inputs, outputs)


@functools.partial(jax.jit, static_argnames=("before", "outputs", "strides", "in_space"))
def _taps_as_channels(x, kernel, before, outputs, strides, in_space):
    """Convolution over time as one 2-D convolution: the taps in time become input channels.

    It repeats the inputs. The other way, a sum of shifted outputs, is slower: XLA computes these
    sums, and their gradients, again wherever they are used.
    """
    taps = kernel.shape[0]
    x = pad(x, 1, before, outputs + taps - 1 - before - x.shape[1])
    x = jnp.concatenate(
        [lax.slice_in_dim(x, tap, tap + outputs, axis=1) for tap in range(taps)], -1
    )
    kernel = jnp.moveaxis(kernel, 0, 2)
    kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
    if _is_small(x.shape[2:4], kernel.shape[:2], strides):
        y = _conv_of_small_images(x.reshape(-1, *x.shape[2:]), kernel, strides, in_space)
        return y.reshape(*x.shape[:2], *y.shape[1:])
    return toom_cook.conv2d_per_frame(x, kernel, strides, in_space)


def _is_small(image, window, strides):
    """Whether images have no more pixels than a window, and outputs have fewer.

    XLA then convolves the kernel with the image, here or in the gradients. A CPU's library does not
    take that, and the loop that XLA makes of it is some hundred times slower.
    """
    if not all(isinstance(size, int) for size in image):
        return False
    outputs = math.prod(-(-size // stride) for size, stride in zip(image, strides))
    return math.prod(image) <= math.prod(window) > outputs


def _conv_of_small_images(x, kernel, strides, pads):
    """The same convolution as one matrix product, from all pixels of an image to all outputs."""
    image, channels = x.shape[1:3], kernel.shape[2:]
    outputs = [_outputs(*axis) for axis in zip(image, kernel.shape, strides, pads)]
    for axis, size, number, stride, (before, _) in zip((0, 2), image, outputs, strides, pads):
        taps, front = kernel.shape[axis], max(0, (number - 1) * stride - before)
        kernel = pad(kernel, axis, front, max(0, before + size - taps))
        starts = [front + before - output * stride for output in range(number)]
        kernel = jnp.stack(
            [lax.slice_in_dim(kernel, start, start + size, axis=axis) for start in starts], axis + 1
        )
    # [height, its outputs, width, its outputs, I, O]
    matrix = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(
        math.prod(image) * channels[0], math.prod(outputs) * channels[1]
    )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.dot(x.reshape(x.shape[0], matrix.shape[0]), matrix, preferred_element_type=wide)
    return y.astype(x.dtype).reshape(x.shape[0], *outputs, channels[1])
