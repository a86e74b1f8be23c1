"""I3D layer by layer, each alone: seconds forward, and forward and back in training, here and in PyTorch.

    python experiments/benchmarks/layer_by_layer.py [--batch 1] [--frames 64]

Float32, PyTorch (if it is installed) channels-last. Prints a Markdown table: milliseconds (medians of interleaved rounds), times as fast as
PyTorch, and multiply-adds per second as a share of a large matrix product's in the same run.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import model
import numpy as np

from i3d_jax import cli, models
from i3d_jax.models.__main__ import multiply_adds
from i3d_jax.models.inception import LAYERS


class Layer(models.Network):
    """One row of I3D's table."""

    row: tuple = ()

    @nn.compact
    def __call__(self, x, train: bool = False):
        return self.walk((self.row,), x, train, self.unit(), 3)[self.row[1]]


def ours(layer: Layer, x: np.ndarray) -> dict[str, Any]:
    """The layer's two programs; the variables and what it makes of x; its multiply-adds forward."""
    variables = jax.jit(layer.init)(jax.random.key(0), x[:, :2, :8, :8])
    compiled = functools.partial(jax.jit, compiler_options=models.compiler_options())
    forward = compiled(layer.apply)

    def trained(params, x):
        return layer.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])[
            0
        ]

    @compiled
    def step(params, x, grad):
        y, back = jax.vjp(trained, params, x)
        into_params, into_x = back(grad)
        return (
            y,
            into_params,
            into_x if layer.row is not LAYERS[0] else None,
        )  # Nobody asks for a video's gradient.

    x, params = jnp.asarray(x), variables.get("params", {})
    y = forward(variables, x)
    return {
        "variables": variables,
        "y": np.asarray(y),
        "forward": functools.partial(model.done, forward, variables, x),
        "training": functools.partial(model.done, step, params, x, y),
        "multiply_adds": multiply_adds(layer.apply, variables, x),
    }


def theirs(layer: Layer, x: np.ndarray, mine: dict[str, Any]) -> dict[str, Callable]:
    import torch
    import torch_zoo

    body = torch_zoo.Body((layer.row,), x.shape[-1], 3)
    with torch.no_grad():
        torch_zoo.load(
            body, mine["variables"].get("params", {}), mine["variables"].get("batch_stats", {})
        )
    body = body.to(torch_zoo.DEVICE, memory_format=torch.channels_last_3d)
    clip = torch.tensor(x).permute(0, 4, 1, 2, 3).to(torch_zoo.DEVICE)  # Channels-last as it is.

    def forward():
        body.eval()
        with torch.no_grad():
            y = body.walk(clip)
        torch_zoo.finish()
        return y

    grad = forward().clone()
    found = grad.permute(0, 2, 3, 4, 1).cpu().numpy()
    np.testing.assert_allclose(found, mine["y"], atol=1e-4 * abs(found).max(), err_msg=layer.row[1])

    def step():
        body.train().zero_grad(set_to_none=True)
        inputs = clip.detach().requires_grad_(layer.row is not LAYERS[0])
        body.walk(inputs).backward(grad)
        torch_zoo.finish()

    return {"forward": forward, "training": step}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=cli.positive, default=1, help="clips (default: 1)")
    parser.add_argument("--frames", type=cli.positive, default=64, help="default: 64")
    parser.add_argument("--size", type=cli.positive, default=224, help="pixels (default: 224)")
    flags = parser.parse_args()
    x = np.random.default_rng(0).uniform(
        -1, 1, (flags.batch, flags.frames, flags.size, flags.size, 3)
    )
    x = x.astype(np.float32)
    rows, result = {}, {}
    for row in LAYERS:
        layer = Layer(None, row=row)
        mine = ours(layer, x)
        variants = {("ours", what): mine[what] for what in ("forward", "training")}
        if model.torch_is_here():
            peer = theirs(layer, x, mine)
            variants |= {("PyTorch", what): peer[what] for what in ("forward", "training")}
        variants["product"] = model.peak(jnp.float32)
        seconds = harness.interleaved(variants, flags.rounds)
        one, cells = {"shape": x.shape, "multiply_adds": mine["multiply_adds"]}, []
        for what, times in (
            ("forward", 1),
            ("training", model.TRAINING if row is not LAYERS[0] else 2),
        ):
            each = {name: seconds[name] for name in seconds if name[1] == what}
            of = harness.summary(
                {name[0]: taken for name, taken in each.items()}, next(reversed(each))[0]
            )
            speed = times * mine["multiply_adds"] / of["ours"]["seconds"]
            share = speed / (
                model.multiply_adds_of_products() / statistics.median(seconds["product"])
            )
            cells += [f"{1e3 * of['ours']['seconds']:.0f}"]
            cells += [f"{1e3 * of['PyTorch']['seconds']:.0f}" if "PyTorch" in of else "not run"]
            cells += [
                f"{of['ours']['times_as_fast']:.2f}x" if "PyTorch" in of else "",
                f"{share:.0%}",
            ]
            one[what] = of | {"share": share}
        rows[row[1]] = [
            "x".join(map(str, x.shape[1:])),
            f"{mine['multiply_adds'] / 1e9:.2f}",
            *cells,
        ]
        result[row[1]] = one
        print(f"{row[1]}: {' | '.join(rows[row[1]])}", flush=True)
        x = mine["y"]
    heads = [
        "",
        "its input",
        "G multiply-adds",
        "forward, ms",
        "PyTorch",
        "as fast",
        "of a matrix product's speed",
    ]
    heads += ["forward and back, ms", "PyTorch", "as fast", "of a matrix product's speed"]
    about = harness.about("jax", "jaxlib", "flax", "torch") | {
        "device": jax.devices()[0].device_kind
    }
    harness.report(harness.table(rows, heads), result, about, flags.json)


if __name__ == "__main__":
    main()
