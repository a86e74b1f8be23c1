"""Fetches, checks, converts published weights and our own, and says where a model's come from.

    python -m i3d_jax.weights list
    python -m i3d_jax.weights fetch rgb_scratch
    python -m i3d_jax.weights verify rgb_scratch my_run/weights.safetensors
    python -m i3d_jax.weights convert data/checkpoints/rgb_imagenet rgb_imagenet.safetensors
    python -m i3d_jax.weights plan two_stream --source inception_v1.ckpt

Results go to stdout, errors to stderr, a line each; the others of a list go on, and the exit status is then 1.
"""

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
    parser = cli.parser("i3d_jax.weights", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the published weights, and which of them are in the cache")
    fetch_parser = commands.add_parser("fetch", help="download published weights into the cache")
    fetch_parser.add_argument("weights", nargs="+", metavar="NAME")
    verify_parser = commands.add_parser("verify", help="check weights, every byte")
    verify_parser.add_argument("weights", nargs="+", metavar="NAME|FILE")
    convert_parser = commands.add_parser(
        "convert", help="write weights of any kind as one safetensors file"
    )
    convert_parser.add_argument(
        "source", help="name, safetensors file, TensorFlow checkpoint or sdist"
    )
    convert_parser.add_argument("target", help="safetensors file to write")
    plan_parser = commands.add_parser(
        "plan", help="say where each leaf of a model's starting weights comes from"
    )
    plan_parser.add_argument(
        "model", choices=models.MODELS, metavar="MODEL", help=", ".join(models.MODELS)
    )
    plan_parser.add_argument(
        "--source", help="weights to start from (default: ImageNet's, as TF-Slim has them)"
    )
    plan_parser.add_argument(
        "--stream", choices=CHANNELS, help="of a model of one stream (default: rgb)"
    )
    plan_parser.add_argument("--classes", type=int, default=400, help="of the model (default: 400)")
    flags = parser.parse_args(arguments)
    if flags.command == "list":
        return _list()
    if flags.command == "plan":
        if flags.classes < 1:
            parser.error(f"--classes: {flags.classes} is not a positive number")
        return _each(
            [flags.model], lambda model: _plan(model, flags.source, flags.stream, flags.classes)
        )
    if flags.command == "convert":
        if pathlib.Path(flags.target).suffix != ".safetensors":
            parser.error(f"{flags.target}: wanted a name that ends in .safetensors")
        return _each([flags.source], lambda source: _convert(source, pathlib.Path(flags.target)))
    return _each(flags.weights, _fetched if flags.command == "fetch" else _verified)


def _list() -> int:
    try:
        paths = {name: weights.cache_path(name) for name in PUBLISHED}
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    for name, entry in PUBLISHED.items():
        cached = "in the cache" if paths[name].exists() else f"{entry.size / 1e6:.0f} MB to fetch"
        print(
            f"{name:20}{entry.stream:6}Kinetics-{entry.classes}  pretraining: {entry.pretraining:10}{cached}"
        )
    return 0


def _each(names: list[str], action: Callable[[str], str]) -> int:
    """Prints what the action says of each name; errors go to stderr, the others go on, and the status is then 1."""
    status = 0
    for name in names:
        try:
            print(action(name))
        except WeightsError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


def _fetched(name: str) -> str:
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


def _verified(name: str) -> str:
    variables, info = weights.read(name)
    size = sum(leaf.size for leaf in named_leaves(variables["params"]).values())
    what = f"{info.model}, {info.stream}, {len(info.classes)} classes, {size:,} parameters"
    return cli.escape_unprintable(f"{name}: good; {what}; {info.source}")


def _plan(model: str, source: str | None, stream: str | None, classes: int) -> str:
    entry = models.MODELS[model]
    clips = entry.train if stream is None or len(entry.train) > 1 else {stream: entry.train["rgb"]}
    key = jax.random.key(0)
    try:
        like = jax.eval_shape(
            models.build(model, num_classes=classes).init,
            key,
            models.input_shapes(clips, entry.crop),
        )
        if source is None:
            images = models.build("inception", num_classes=1001)
            given = jax.eval_shape(images.init, key, models.input_shapes({"rgb": (1, 1)}, 224))
        else:
            given = weights.load(source)
            # That it can be done, not only what would be.
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
    variables, info = weights.read(source)
    try:
        weights.save(target, variables, info)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from None
    return str(target)


if __name__ == "__main__":
    cli.run(main)
