"""Prints table 1 of the paper, computed from the code: parameters, multiply-adds, clips.

    python -m i3d_jax.models
    python -m i3d_jax.models --num-classes 600 i3d two_stream_i3d

Multiply-adds are those of one forward pass, padding included. They are counted in the traced
program; nothing is computed, so this takes seconds on any machine. Activations are the float32
outputs of all convolutions, dense layers and batch norms (with their ReLU) for one training
clip. A backward pass reads these, unless the compiler finds a way to keep fewer.
"""

import math
from typing import Any

import jax
from jax.extend import core

from i3d_jax import cli, models
from i3d_jax.models import layers

COLUMNS = (
    "model",
    "parameters",
    "train clip",
    "G multiply-adds",
    "activations",
    "test clip",
    "G multiply-adds",
)


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("i3d_jax.models", __doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"{', '.join(models.MODELS)} (default: all)"
    )
    parser.add_argument(
        "--num-classes", type=int, default=400, help="size of the last layer (default: 400)"
    )
    flags = parser.parse_args(arguments)
    if flags.num_classes < 1:
        parser.error(f"--num-classes: {flags.num_classes} is not a positive number")
    for name in flags.models:
        if name not in models.MODELS:
            parser.error(f"no model is called {name!r}; there are {', '.join(models.MODELS)}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in flags.models or models.MODELS:
        print("| " + " | ".join(table_row(name, flags.num_classes)) + " |", flush=True)
    return 0


def table_row(name: str, num_classes: int) -> tuple[str, ...]:
    """The cells of one model's row, in the order of COLUMNS."""
    entry, network = models.MODELS[name], models.build(name, num_classes=num_classes)
    train, test = (models.input_shapes(clips, entry.crop) for clips in (entry.train, entry.test))
    variables = jax.eval_shape(network.init, jax.random.key(0), train)
    return (
        name,
        f"{count_parameters(variables):,}",
        describe_clip(entry.train),
        f"{multiply_adds(network.apply, variables, train) / 1e9:.2f}",
        f"{activation_bytes(network, variables, train) / 1e6:,.0f} MB",
        describe_clip(entry.test),
        f"{multiply_adds(network.apply, variables, test) / 1e9:.2f}",
    )


def describe_clip(streams: dict[str, tuple[int, int]]) -> str:
    """Frames and the time they cover at 25 per second: "25 RGB + 250 flow, 10.00 s"."""
    names = {"rgb": "RGB", "flow": "flow"}
    seconds = max(frames * stride for frames, stride in streams.values()) / 25
    return (
        " + ".join(f"{frames} {names[stream]}" for stream, (frames, _) in streams.items())
        + f", {seconds:.2f} s"
    )


def count_parameters(variables: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def multiply_adds(function: Any, *arguments: Any) -> int:
    """Counts the multiply-adds of all convolutions and matrix products in one call.

    Layers are counted in their plain form, which has no tricks that save multiplications.

    Args:
      function: any function that JAX can trace.
      *arguments: its arguments; shapes are enough.
    """
    with models.forms_of("plain"):
        return _count_multiply_adds(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count_multiply_adds(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inputs = eqn.invars[0].aval.shape
            total += eqn.outvars[0].aval.size * math.prod(inputs[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, outputs = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
            total += eqn.outvars[0].aval.size * math.prod(kernel) // kernel[outputs]
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += times * sum(map(_count_multiply_adds, _inner_jaxprs(eqn)))
    return total


def _inner_jaxprs(eqn: Any) -> list[core.Jaxpr]:
    """The programs that an operation contains, such as a loop's body."""
    found = [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in eqn.params.values()
    ]
    return [each for each in found if isinstance(each, core.Jaxpr)]


def activation_bytes(network: models.Network, variables: Any, example: Any) -> int:
    """Bytes of the activations of one training clip (see this module's docstring)."""

    def outputs(variables, example):
        def kept(module, _):
            return isinstance(module, layers.Conv | layers.ConvBN)

        return network.apply(
            variables, example, capture_intermediates=kept, mutable=["intermediates"]
        )[1]

    found = jax.eval_shape(outputs, variables, example)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))


if __name__ == "__main__":
    cli.run(main)
