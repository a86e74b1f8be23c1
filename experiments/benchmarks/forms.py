"""Which exact reformulation of I3D's layers runs fastest on this device.

    python experiments/benchmarks/forms.py [--batch 16] [--dtype bfloat16] [--only stem]

A form is one of several exact formulations of the same layer. The benchmark compares forms of the
stem, of 3x3x3 convolutions, of a 1x1x1 convolution with its batch norm, and of pools, at the shapes
that take most of I3D's time.

Prints a Markdown table. For the forward pass and for each gradient it has milliseconds (medians of
interleaved rounds) and the speed relative to the first form. The last column is the difference of
the form's output to the first form's. A form that wins belongs in `models/convolution.py` or
`models/pooling.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import model
import numpy as np

from i3d_jax import cli, models
from i3d_jax.models import convolution, padding, pooling, toom_cook


def taps_as_inputs(x, kernel, stride, to):
    """A 3-D convolution as a 2-D one, whose input channels are the frames of all taps in time.

    Args:
      x: [B, T, H, W, C].
      kernel: [T, H, W, C, K].
      stride: of all three axes.
      to: input channels are zero-padded to a multiple of this number.
    """
    taps, frames = kernel.shape[0], -(-x.shape[1] // stride)
    (pads,) = padding.same_pads((x.shape[1],), (taps,), (stride,))
    x = jnp.pad(x, ((0, 0), pads, (0, 0), (0, 0), (0, 0)))
    x = jnp.concatenate(
        [x[:, tap : tap + (frames - 1) * stride + 1 : stride] for tap in range(taps)], -1
    )
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    more = -x.shape[-1] % to
    x = jnp.pad(x, [(0, 0)] * 4 + [(0, more)])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, more), (0, 0)])
    return toom_cook.conv2d_per_frame(x, kernel, (stride, stride))


def padded_channels(x, kernel, to):
    """XLA's own 3-D convolution with stride 2, with input channels zero-padded to `to`."""
    more = (0, to - x.shape[-1])
    x, kernel = jnp.pad(x, [(0, 0)] * 4 + [more]), jnp.pad(kernel, [(0, 0)] * 3 + [more, (0, 0)])
    return convolution._xla_conv(x, kernel, (2, 2, 2))


def normalised(conv: Callable) -> Callable:
    """A convolution, then batch norm of inference and ReLU in float32."""

    def form(x, kernel):
        y = convolution.at_least_float32(conv(x, kernel))
        return nn.relu(y * 1.5 + 0.1).astype(x.dtype)

    return form


def folded(conv: Callable) -> Callable:
    """`normalised` with the scale in the kernel.

    That leaves a convolution, a sum and a ReLU, which libraries have as one operation.
    """

    def form(x, kernel):
        y = conv(x, (convolution.at_least_float32(kernel) * 1.5).astype(kernel.dtype))
        return nn.relu(y + jnp.asarray(0.1, y.dtype))

    return form


ONCE, TWICE = (functools.partial(convolution._xla_conv, strides=(n, n, n)) for n in (1, 2))
PRODUCT = functools.partial(convolution.conv, strides=(1, 1, 1))
STEM = {
    "3-D": TWICE,
    "3-D, 8 channels": functools.partial(padded_channels, to=8),
    "2-D, taps as inputs": functools.partial(taps_as_inputs, stride=2, to=8),
    "blocks and taps as inputs": functools.partial(
        convolution._conv_of_few_channels, strides=(2, 2, 2)
    ),
}
THREE = {
    "3-D": ONCE,
    "2-D, taps as inputs": lambda x, kernel: convolution._taps_as_channels(
        x, kernel, 1, x.shape[1], (1, 1), ((1, 1), (1, 1))
    ),
}
ONE = {
    "product": normalised(PRODUCT),
    "product, norm folded": folded(PRODUCT),
    "3-D": normalised(ONCE),
    "3-D, norm folded": folded(ONCE),
}


def pools(window: tuple[int, ...], strides: tuple[int, ...]) -> dict[str, Callable]:
    """Forms of a max-pool of a video.

    Args:
      window: in time, height and width.
      strides: in time, height and width.
    """
    return {
        "XLA's": lambda x: nn.max_pool(x, window, strides, "SAME"),
        "by axis": lambda x: pooling._max_pool_by_axis(x, window, strides),
    }


# Kind of layer, forms, frames, pixels, channels; for a convolution also its window and outputs.
TASKS: tuple[tuple, ...] = (
    ("stem", STEM, 64, 224, 3, (7, 7, 7), 64),
    ("3x3x3", THREE, 32, 56, 64, (3, 3, 3), 192),
    ("3x3x3", THREE, 32, 28, 128, (3, 3, 3), 192),
    ("3x3x3", THREE, 16, 14, 128, (3, 3, 3), 256),
    ("3x3x3", THREE, 8, 7, 160, (3, 3, 3), 320),
    ("1x1x1", ONE, 32, 28, 256, (1, 1, 1), 128),
    ("pool by 1, 2, 2", pools((1, 3, 3), (1, 2, 2)), 32, 112, 64),
    ("pool by 1, 1, 1", pools((3, 3, 3), (1, 1, 1)), 32, 28, 256),
    ("pool by 2, 2, 2", pools((3, 3, 3), (2, 2, 2)), 32, 28, 480),
)


def programs(form: Callable, arguments: tuple[jax.Array, ...], kind: str) -> dict[str, Callable]:
    """A form's forward pass and its gradients, as functions that return when they are done.

    Args:
      form: of a layer.
      arguments: the input, and the kernel if the layer has one.
      kind: of layer; the stem has no gradient of its input.
    """
    compiled = functools.partial(jax.jit, compiler_options=models.compiler_options())
    grad = compiled(form)(*arguments)
    wanted = {"of x": 0, "of the kernel": 1} if len(arguments) == 2 else {"of x": 0}
    if kind == "stem":  # Training needs no gradient of the video.
        del wanted["of x"]

    # The forward pass is computed once; only the gradients are measured.
    pull = compiled(lambda *arguments: jax.vjp(form, *arguments)[1])(*arguments)

    def gradient(of: int, pull, grad):
        return pull(grad)[of]

    made = {"forward": functools.partial(model.call_and_wait, compiled(form), *arguments)}
    for name, of in wanted.items():
        backward = compiled(functools.partial(gradient, of))
        made[name] = functools.partial(model.call_and_wait, backward, pull, grad)
    return made


def measure(task: tuple, batch: int, dtype: Any, rounds: int) -> tuple[dict[str, list[str]], dict]:
    """Measures all forms of a layer.

    Args:
      task: one of TASKS.
      batch: clips.
      dtype: of input and kernel.
      rounds: number of measurements.

    Returns:
      rows of the table; the results.
    """
    kind, forms, frames, size, inputs, *kernel = task
    rng = np.random.default_rng(0)

    def noise(*shape):
        return jnp.asarray(rng.uniform(-1, 1, shape).astype(np.float32)).astype(dtype)

    arguments = (noise(batch, frames, size, size, inputs),)
    if kernel:
        window, outputs = kernel
        arguments += (noise(*window, inputs, outputs) / math.sqrt(inputs * math.prod(window)),)
    made = {name: programs(form, arguments, kind) for name, form in forms.items()}
    first = next(iter(made))
    result = {}
    for what in made[first]:
        seconds = harness.interleaved({name: each[what] for name, each in made.items()}, rounds)
        result[what] = harness.summary(seconds, than=first)
    clips = f"{kind}, {batch}x{frames}x{size}x{size}x{inputs}"
    wanted, rows = np.asarray(made[first]["forward"](), np.float32), {}
    for name, each in made.items():
        apart = model.difference(np.asarray(each["forward"](), np.float32), wanted)
        result["forward"][name]["difference"] = apart
        cells = []
        for what in ("forward", "of x", "of the kernel"):
            one = result[what][name] if what in result else None
            ms = f"{1e3 * one['seconds']:.3f} ({one['times_as_fast']:.2f}x)" if one else ""
            cells.append(ms)
        rows[f"{clips}: {name}"] = [*cells, f"{apart:.1e}"]
    return rows, {clips: result}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=cli.positive, default=16, help="clips (default: 16)")
    dtypes, kinds = ("bfloat16", "float32"), sorted({kind for kind, *_ in TASKS})
    parser.add_argument("--dtype", choices=dtypes, default="bfloat16", help="default: bfloat16")
    parser.add_argument("--only", choices=kinds, help="kind of layer (default: all)")
    flags = parser.parse_args()
    rows, result = {}, {}
    for task in TASKS:
        if flags.only in (None, task[0]):
            of_task, its_result = measure(task, flags.batch, flags.dtype, flags.rounds)
            rows, result = rows | of_task, result | its_result
            for name, cells in of_task.items():
                print(f"{name}: {' | '.join(cells)}", flush=True)
    gradients = "gradient of x", "gradient of the kernel"
    heads = ["", "forward, ms", *gradients, "difference, relative to the greatest"]
    about = harness.about("jax", "jaxlib") | {"device": jax.devices()[0].device_kind}
    text = f"{flags.dtype}\n\n{harness.table(rows, heads)}"
    harness.report(text, {"dtype": flags.dtype} | result, about, flags.json)


if __name__ == "__main__":
    main()
