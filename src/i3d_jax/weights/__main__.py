"""Fetches, verifies and converts weights, and shows how a model is initialised from them.

    python -m i3d_jax.weights list
    python -m i3d_jax.weights fetch rgb_scratch
    python -m i3d_jax.weights verify rgb_scratch my_run/weights.safetensors
    python -m i3d_jax.weights convert data/checkpoints/rgb_imagenet rgb_imagenet.safetensors
    python -m i3d_jax.weights plan two_stream --source inception_v1.ckpt

Results go to stdout and errors to stderr, one line each. If one of several items fails, the
others are still processed, and the exit status is 1.
"""

import argparse
import pathlib
import sys
import textwrap
from collections.abc import Callable

import jax

from i3d_jax import cli, models, weights
from i3d_jax.inflate import named_leaves
from i3d_jax.models import transfer
from i3d_jax.models.network import CHANNELS
from i3d_jax.weights.published import PUBLISHED, WeightsError


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.command == "list":
        return _list()
    if flags.command == "plan":
        if flags.num_classes < 1:
            parser.error(f"--num-classes: {flags.num_classes} is not a positive number")
        return _for_each(
            [flags.model],
            lambda model: _plan(model, flags.source, flags.stream, flags.num_classes),
        )
    if flags.command == "convert":
        if pathlib.Path(flags.target).suffix != ".safetensors":
            parser.error(f"{flags.target}: wanted a name that ends in .safetensors")
        return _for_each(
            [flags.source], lambda source: _convert(source, pathlib.Path(flags.target))
        )
    return _for_each(flags.weights, _fetch if flags.command == "fetch" else _verify)


def _parser() -> cli.Parser:
    parser = cli.parser("i3d_jax.weights", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add_command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\n    python -m i3d_jax.weights {name} {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    add_command("list", "list the published weights and say which are in the cache", "")
    fetch = add_command("fetch", "download published weights into the cache", "rgb_scratch")
    fetch.add_argument("weights", nargs="+", metavar="NAME", help=", ".join(PUBLISHED))
    verify = add_command(
        "verify", "check every byte of weights", "rgb_scratch runs/mine/weights.safetensors"
    )
    verify.add_argument(
        "weights", nargs="+", metavar="NAME|FILE", help="published weights, or a file of weights"
    )
    convert = add_command(
        "convert",
        "write weights of any supported format as one safetensors file",
        "data/checkpoints/rgb_imagenet rgb_imagenet.safetensors",
    )
    convert.add_argument("source", help="name, safetensors file, TensorFlow checkpoint or sdist")
    convert.add_argument("target", help="safetensors file to write")
    plan = add_command(
        "plan",
        "show how each leaf of a model is initialised from other weights",
        "two_stream --source inception_v1.ckpt --num-classes 101",
    )
    plan.add_argument(
        "model", choices=models.MODELS, metavar="MODEL", help=", ".join(models.MODELS)
    )
    plan.add_argument(
        "--source",
        metavar="NAME|FILE",
        help="weights to initialise from (default: the shapes of TF-Slim's ImageNet weights)",
    )
    plan.add_argument(
        "--stream", choices=CHANNELS, help="input of a model of one stream (default: rgb)"
    )
    plan.add_argument(
        "--num-classes", type=int, default=400, help="size of the model's last layer (default: 400)"
    )
    return parser


def _list() -> int:
    """Prints the published weights; returns the exit status."""
    try:
        paths = {name: weights.cache_path(name) for name in PUBLISHED}
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    for name, entry in PUBLISHED.items():
        cached = "in the cache" if paths[name].exists() else f"{entry.size / 1e6:.0f} MB to fetch"
        columns = f"{name:20}{entry.stream:6}Kinetics-{entry.classes}"
        print(f"{columns}  pretraining: {entry.pretraining:10}{cached}")
    return 0


def _for_each(names: list[str], action: Callable[[str], str]) -> int:
    """Prints the action's result for each name.

    An error goes to stderr, and the rest goes on.

    Returns:
      the exit status: 1 if there was an error.
    """
    status = 0
    for name in names:
        try:
            print(action(name))
        except WeightsError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


def _fetch(name: str) -> str:
    """Downloads weights, again if the cache has a damaged file; returns their path."""
    path = weights.fetch(name)
    try:
        weights.read(name)
    except WeightsError as error:
        print(f"{error}; fetching it again", file=sys.stderr)
        try:
            path.unlink(missing_ok=True)
        except OSError as unwritable:
            raise WeightsError(f"{path}: cannot be replaced: {unwritable.strerror}") from None
        weights.read(name)
    return str(path)


def _verify(name: str) -> str:
    """Reads weights and returns a line about them."""
    variables, info = weights.read(name)
    size = sum(leaf.size for leaf in named_leaves(variables["params"]).values())
    what = f"{info.model}, {info.stream}, {len(info.classes)} classes, {size:,} parameters"
    return cli.escape_unprintable(f"{name}: good; {what}; {info.source}")


def _plan(model: str, source: str | None, stream: str | None, num_classes: int) -> str:
    """Returns the plan of initialising a model, as a table."""
    entry = models.MODELS[model]
    clips = entry.train if stream is None or len(entry.train) > 1 else {stream: entry.train["rgb"]}
    key = jax.random.key(0)
    try:
        like = jax.eval_shape(
            models.build(model, num_classes=num_classes).init,
            key,
            models.input_shapes(clips, entry.crop),
        )
        if source is None:
            images = models.build("inception", num_classes=1001)
            given = jax.eval_shape(images.init, key, models.input_shapes({"rgb": (1, 1)}, 224))
        else:
            given = weights.load(source)
            # Checks that the transfer works, beyond listing it.
            jax.eval_shape(
                lambda given, like: transfer.transfer_variables(given, like, entry.backbones),
                given,
                like,
            )
        rows = transfer.plan_transfer(given, like, entry.backbones)
    except ValueError as error:
        raise WeightsError(f"{model}: {textwrap.shorten(str(error), 300)}") from None
    return transfer.format_plan(rows)


def _convert(source: str, target: pathlib.Path) -> str:
    """Writes weights as a safetensors file and returns its path."""
    variables, info = weights.read(source)
    try:
        weights.save(target, variables, info)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from None
    return str(target)


if __name__ == "__main__":
    cli.run(main)
