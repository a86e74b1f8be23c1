"""Times each layer of I3D alone, here and in PyTorch: forward, and forward and back in training.

    python experiments/benchmarks/layer_by_layer.py [--batch 1] [--frames 64]

All is float32. PyTorch takes part if it is installed, channels-last. Prints a Markdown table with
milliseconds (medians of interleaved rounds), the speed relative to PyTorch, and multiply-adds per
second as a share of those of a large matrix product in the same run.
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
    """One layer of I3D.

    Attributes:
      row: its row of `inception.LAYERS`.
    """

    row: tuple = ()

    @nn.compact
    def __call__(self, x, train: bool = False):
        unit = self.unit(self.norm_groups(len(x), train))
        return self.walk((self.row,), x, train, unit, 3)[self.row[1]]


def ours(layer: Layer, x: np.ndarray) -> dict[str, Any]:
    """A layer of this package.

    Args:
      layer: the layer.
      x: its input.

    Returns:
      "forward" and "training", functions that return when they are done; "variables"; "y", the
      output; "multiply_adds" of the forward pass.
    """
    variables = jax.jit(layer.init)(jax.random.key(0), x[:, :2, :8, :8])
    compiled = functools.partial(jax.jit, compiler_options=models.compiler_options())
    forward = compiled(layer.apply)

    def trained(params, x):
        changed = variables | {"params": params}
        return layer.apply(changed, x, train=True, mutable=["batch_stats"])[0]

    @compiled
    def step(params, x, grad):
        y, back = jax.vjp(trained, params, x)
        into_params, into_x = back(grad)
        # Training needs no gradient of the video.
        return y, into_params, into_x if layer.row is not LAYERS[0] else None

    x, params = jnp.asarray(x), variables.get("params", {})
    y = forward(variables, x)
    return {
        "variables": variables,
        "y": np.asarray(y),
        "forward": functools.partial(model.call_and_wait, forward, variables, x),
        "training": functools.partial(model.call_and_wait, step, params, x, y),
        "multiply_adds": multiply_adds(layer.apply, variables, x),
    }


def theirs(layer: Layer, x: np.ndarray, mine: dict[str, Any]) -> dict[str, Callable]:
    """The same layer in PyTorch, with the same variables; checks that its output is the same.

    Args:
      layer: the layer.
      x: its input.
      mine: the result of `ours`.

    Returns:
      "forward" and "training", as of `ours`.
    """
    import torch
    import torch_zoo

    body = torch_zoo.Body((layer.row,), x.shape[-1], 3)
    kinds = "params", "batch_stats"
    with torch.no_grad():
        torch_zoo.load(body, *(mine["variables"].get(kind, {}) for kind in kinds))
    body = body.to(torch_zoo.DEVICE, memory_format=torch.channels_last_3d)
    clip = torch.tensor(x).permute(0, 4, 1, 2, 3).to(torch_zoo.DEVICE)  # This is channels-last.

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
    parser.add_argument("--frames", type=cli.positive, default=64, help="frames (default: 64)")
    parser.add_argument("--size", type=cli.positive, default=224, help="pixels (default: 224)")
    flags = parser.parse_args()
    shape = flags.batch, flags.frames, flags.size, flags.size, 3
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    rows, result = {}, {}
    for row in LAYERS:
        layer = Layer(None, row=row)
        mine = ours(layer, x)
        variants = {("ours", what): mine[what] for what in ("forward", "training")}
        if model.torch_is_here():
            peer = theirs(layer, x, mine)
            variants |= {("PyTorch", what): peer[what] for what in ("forward", "training")}
        variants["product"] = model.matrix_products(jnp.float32)
        seconds = harness.interleaved(variants, flags.rounds)
        one, cells = {"shape": x.shape, "multiply_adds": mine["multiply_adds"]}, []
        product_speed = model.multiply_adds_of_products() / statistics.median(seconds["product"])
        # The first layer has no gradient of its input.
        in_training = model.TRAINING if row is not LAYERS[0] else 2
        for what, times in (("forward", 1), ("training", in_training)):
            each = {name[0]: seconds[name] for name in seconds if name[1] == what}
            of = harness.summary(each, next(reversed(each)))
            share = times * mine["multiply_adds"] / of["ours"]["seconds"] / product_speed
            cells += [f"{1e3 * of['ours']['seconds']:.0f}"]
            cells += [f"{1e3 * of['PyTorch']['seconds']:.0f}" if "PyTorch" in of else "not run"]
            cells += [f"{of['ours']['times_as_fast']:.2f}x" if "PyTorch" in of else ""]
            cells += [f"{share:.0%}"]
            one[what] = of | {"share": share}
        giga = f"{mine['multiply_adds'] / 1e9:.2f}"
        rows[row[1]] = ["x".join(map(str, x.shape[1:])), giga, *cells]
        result[row[1]] = one
        print(f"{row[1]}: {' | '.join(rows[row[1]])}", flush=True)
        x = mine["y"]
    heads = ["", "its input", "G multiply-adds"]
    for what in "forward", "forward and back":
        heads += [f"{what}, ms", "PyTorch", "as fast", "of a matrix product's speed"]
    device = {"device": jax.devices()[0].device_kind}
    about = harness.about("jax", "jaxlib", "flax", "torch") | device
    harness.report(harness.table(rows, heads), result, about, flags.json)


if __name__ == "__main__":
    main()
