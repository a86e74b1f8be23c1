"""Other exact forms of I3D's layers beside XLA's own: which of them this device runs fastest.

    python experiments/benchmarks/forms.py [--batch 16] [--dtype bfloat16] [--only stem]

The stem, 3x3x3 convolutions, a 1x1x1 convolution with its batch norm, and pools, at the shapes that take most of I3D's time. Prints a
Markdown table: milliseconds (medians of interleaved rounds) and times as fast as the first form, forward and each gradient, and how
far a form's output is from the first's. A form that wins belongs in `models/convolution.py` or `models/pooling.py`.
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
    """Frames of all taps in time side by side in the channels (made up to a multiple of `to`), then a 2-D convolution."""
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


def more_channels(x, kernel, to):
    more = (0, to - x.shape[-1])
    x, kernel = jnp.pad(x, [(0, 0)] * 4 + [more]), jnp.pad(kernel, [(0, 0)] * 3 + [more, (0, 0)])
    return convolution._xla_conv(x, kernel, (2, 2, 2))


def normalised(conv: Callable) -> Callable:
    """A convolution with a test's batch norm and ReLU after it, in float32."""

    def of(x, kernel):
        y = convolution.at_least_float32(conv(x, kernel))
        return nn.relu(y * 1.5 + 0.1).astype(x.dtype)

    return of


def folded(conv: Callable) -> Callable:
    """The same with the scale in the kernel: a convolution, a sum and a ReLU, which libraries have as one."""

    def of(x, kernel):
        y = conv(x, (convolution.at_least_float32(kernel) * 1.5).astype(kernel.dtype))
        return nn.relu(y + jnp.asarray(0.1, y.dtype))

    return of


ONCE, TWICE = (functools.partial(convolution._xla_conv, strides=(n, n, n)) for n in (1, 2))
PRODUCT = functools.partial(convolution.conv, strides=(1, 1, 1))
STEM = {
    "3-D": TWICE,
    "3-D, 8 channels": functools.partial(more_channels, to=8),
    "2-D, taps as inputs": functools.partial(taps_as_inputs, stride=2, to=8),
    "blocks and taps as inputs": functools.partial(
        convolution._conv_of_few_channels, strides=(2, 2, 2)
    ),
}
THREE = {
    "3-D": ONCE,
    "2-D, taps as inputs": functools.partial(
        convolution._taps_as_channels, before=1, strides=(1, 1)
    ),
}
ONE = {
    "product": normalised(PRODUCT),
    "product, norm folded": folded(PRODUCT),
    "3-D": normalised(ONCE),
    "3-D, norm folded": folded(ONCE),
}


def pools(window: tuple[int, ...], strides: tuple[int, ...]) -> dict[str, Callable]:
    """Of a video."""
    return {
        "XLA's": lambda x: nn.max_pool(x, window, strides, "SAME"),
        "by axis": lambda x: pooling._max_pool_by_axis(x, window, strides),
    }


# Kind, forms, frames, pixels, channels; of a convolution its window and outputs.
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
    """A form's output, and the gradients that training takes of it, as functions that return when they are done."""
    compiled = functools.partial(jax.jit, compiler_options=models.compiler_options())
    grad = compiled(form)(*arguments)
    wanted = {"of x": 0, "of the kernel": 1} if len(arguments) == 2 else {"of x": 0}
    if kind == "stem":  # Nobody asks for a video's gradient.
        del wanted["of x"]

    # What a forward pass keeps for it is not found anew.
    pull = compiled(lambda *arguments: jax.vjp(form, *arguments)[1])(*arguments)

    def gradient(of: int, pull, grad):
        return pull(grad)[of]

    made = {"forward": functools.partial(model.done, compiled(form), *arguments)}
    for name, of in wanted.items():
        made[name] = functools.partial(
            model.done, compiled(functools.partial(gradient, of)), pull, grad
        )
    return made


def measured(task: tuple, batch: int, dtype: Any, rounds: int) -> tuple[dict[str, list[str]], dict]:
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
        of = [
            result[what][name] if what in result else None
            for what in ("forward", "of x", "of the kernel")
        ]
        cells = [
            f"{1e3 * one['seconds']:.3f} ({one['times_as_fast']:.2f}x)" if one else "" for one in of
        ]
        rows[f"{clips}: {name}"] = [*cells, f"{apart:.1e}"]
    return rows, {clips: result}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=cli.positive, default=16, help="clips (default: 16)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16"
    )
    parser.add_argument(
        "--only", choices=sorted({kind for kind, *_ in TASKS}), help="one kind of layer"
    )
    flags = parser.parse_args()
    rows, result = {}, {}
    for task in TASKS:
        if flags.only in (None, task[0]):
            of_task, its_result = measured(task, flags.batch, flags.dtype, flags.rounds)
            rows, result = rows | of_task, result | its_result
            print(
                "\n".join(f"{name}: {' | '.join(cells)}" for name, cells in of_task.items()),
                flush=True,
            )
    heads = [
        "",
        "forward, ms",
        "gradient of x",
        "gradient of the kernel",
        "difference, of the greatest",
    ]
    about = harness.about("jax", "jaxlib") | {"device": jax.devices()[0].device_kind}
    harness.report(
        f"{flags.dtype}\n\n{harness.table(rows, heads)}",
        {"dtype": flags.dtype} | result,
        about,
        flags.json,
    )


if __name__ == "__main__":
    main()
