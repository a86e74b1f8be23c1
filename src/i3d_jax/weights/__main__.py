"""Fetches, verifies and converts weights, and shows how a model is initialised from them.

    python -m i3d_jax.weights list
    python -m i3d_jax.weights fetch rgb_scratch
    python -m i3d_jax.weights verify rgb_scratch my_run/weights.safetensors
    python -m i3d_jax.weights convert data/checkpoints/rgb_imagenet rgb_imagenet.safetensors
    python -m i3d_jax.weights convert mine.pt mine.safetensors --classes classes.txt
    python -m i3d_jax.weights plan two_stream --source inception_v1.ckpt

Results go to stdout and errors to stderr, one line each. Notes on files of other projects follow,
indented: `verify` has them on stdout, and `convert` on stderr. If one of several items fails, the
others are still processed, and the exit status is 1.
"""

import argparse
import dataclasses
import pathlib
import sys
import textwrap
from collections.abc import Callable

import jax

from i3d_jax import cli, models, weights
from i3d_jax.files import open_regular
from i3d_jax.inflate import named_leaves
from i3d_jax.models import transfer
from i3d_jax.models.network import CHANNELS
from i3d_jax.weights.importer import with_epsilon
from i3d_jax.weights.published import PUBLISHED, WeightsError

MAX_CLASSES_FILE = 16 << 20  # Bytes.


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
        if flags.norm_epsilon is not None and not 0 < flags.norm_epsilon <= 1:
            parser.error(f"--norm-epsilon: {flags.norm_epsilon} is no positive number up to 1")
        return _for_each(
            [flags.source],
            lambda source: _convert(
                source, pathlib.Path(flags.target), flags.classes, flags.norm_epsilon
            ),
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
    convert.add_argument(
        "source", help="name, safetensors file, TensorFlow checkpoint, file of PyTorch, or sdist"
    )
    convert.add_argument("target", help="safetensors file to write")
    convert.add_argument(
        "--classes", metavar="FILE", help="names of the classes, one per line (default: as known)"
    )
    convert.add_argument(
        "--norm-epsilon",
        type=float,
        metavar="X",
        help="what batch norm adds to the variance (default: as in the source's project)",
    )
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
    """Reads weights and returns a line about them, and their notes."""
    variables, info, notes = weights.read_with_notes(name)
    size = sum(leaf.size for leaf in named_leaves(variables["params"]).values())
    what = f"{info.model}, {info.stream}, {len(info.classes)} classes, {size:,} parameters"
    lines = [f"{name}: good; {what}; {info.source}", *(f"  {note}" for note in notes)]
    return "\n".join(cli.escape_unprintable(line) for line in lines)


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


def _convert(
    source: str, target: pathlib.Path, classes: str | None, norm_epsilon: float | None
) -> str:
    """Writes weights as a safetensors file and returns its path.

    Args:
      source: see `weights.read`.
      target: the file.
      classes: a file of class names, or None.
      norm_epsilon: of batch norm, or None for the source's.
    """
    variables, info, notes = weights.read_with_notes(source)
    if classes is not None:
        info = dataclasses.replace(info, classes=_read_classes(classes, len(info.classes)))
        notes = tuple(note for note in notes if "--classes" not in note)
    if norm_epsilon is not None:
        info = with_epsilon(info, norm_epsilon)
        notes = (
            *(note for note in notes if "--norm-epsilon" not in note),
            f"norm_epsilon is {norm_epsilon:g}, as --norm-epsilon has it.",
        )
    try:
        weights.save(target, variables, info)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from None
    for note in notes:
        print(f"  {cli.escape_unprintable(note)}", file=sys.stderr)
    return str(target)


def _read_classes(path: str, number: int) -> tuple[str, ...]:
    """The names of classes in a file, one per line."""
    try:
        with open_regular(path) as file:
            names = tuple(file.read(MAX_CLASSES_FILE).decode().splitlines())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: is not UTF-8") from None
    if len(names) != number or not all(names):
        raise WeightsError(
            f"{path}: has {sum(map(bool, names))} names in {len(names)} lines, "
            f"wanted {number}, one per line"
        )
    return names


if __name__ == "__main__":
    cli.run(main)
