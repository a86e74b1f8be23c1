"""Prints table 1 of the paper from the code: parameters, work and clips of every network.

    python -m i3d_jax.models
    python -m i3d_jax.models --classes 600 i3d two_stream_i3d

Multiply-adds are those of one forward pass, padding included, counted in the traced program. Activations are the float32
outputs of all convolutions, dense layers and batch norms with their ReLU, of one training clip: what a backward pass reads, before
the compiler saves any. Nothing is computed, so that it takes seconds on any machine.
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
    parser.add_argument("--classes", type=int, default=400, help="default: 400, Kinetics'")
    flags = parser.parse_args(arguments)
    if flags.classes < 1:
        parser.error(f"--classes: {flags.classes} is not a positive number")
    for name in flags.models:
        if name not in models.MODELS:
            parser.error(f"no model is called {name!r}; there are {', '.join(models.MODELS)}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in flags.models or models.MODELS:
        print("| " + " | ".join(row(name, flags.classes)) + " |", flush=True)
    return 0


def row(name: str, classes: int) -> tuple[str, ...]:
    entry, network = models.MODELS[name], models.build(name, num_classes=classes)
    train, test = (models.input_shapes(clips, entry.crop) for clips in (entry.train, entry.test))
    variables = jax.eval_shape(network.init, jax.random.key(0), train)
    return (
        name,
        f"{parameters(variables):,}",
        clip(entry.train),
        f"{multiply_adds(network.apply, variables, train) / 1e9:.2f}",
        f"{activation_bytes(network, variables, train) / 1e6:,.0f} MB",
        clip(entry.test),
        f"{multiply_adds(network.apply, variables, test) / 1e9:.2f}",
    )


def clip(streams: dict[str, tuple[int, int]]) -> str:
    """ "25 RGB + 250 flow, 10.00 s": frames, and the time they cover at 25 per second."""
    names = {"rgb": "RGB", "flow": "flow"}
    seconds = max(frames * stride for frames, stride in streams.values()) / 25
    return (
        " + ".join(f"{frames} {names[stream]}" for stream, (frames, _) in streams.items())
        + f", {seconds:.2f} s"
    )


def parameters(variables: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def multiply_adds(function: Any, *arguments: Any) -> int:
    """The multiply-adds of the convolutions and matrix products in one call of `function`, in layers' plain forms; arguments may
    be shapes.
    """
    with models.forms_of("plain"):
        return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
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
            total += times * sum(map(_count, _inner(eqn)))
    return total


def _inner(eqn: Any) -> list[core.Jaxpr]:
    """The programs inside one operation."""
    found = [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in eqn.params.values()
    ]
    return [each for each in found if isinstance(each, core.Jaxpr)]


def activation_bytes(network: models.Network, variables: Any, example: Any) -> int:
    """Bytes of the activations of one training clip; see above."""

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
