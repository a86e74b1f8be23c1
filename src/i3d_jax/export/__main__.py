"""Write a network as StableHLO or ONNX, for programs that do not have this package.

    python -m i3d_jax.export rgb_scratch --to onnx --out i3d.onnx
    python -m i3d_jax.export rgb_scratch --to stablehlo --out i3d.stablehlo.zip
    python -m i3d_jax.export runs/i3d/weights.safetensors --to stablehlo --out i3d.stablehlo.zip \\
        --dynamic batch,time --size 256

The file takes float32, RGB in [-1, 1] or flow / 20, and gives "logits", of I3D, Inception and
ResNet also "features". It carries the classes and the preprocessing. Other dimensions than those of
--dynamic are fixed: a batch of one, --frames and --size. How to load it: docs/howto/export.md.
"""

import argparse
import importlib.util
import pathlib

from i3d_jax import cli, weights
from i3d_jax.export import description
from i3d_jax.export.description import DIMENSIONS, ExportError

# What each format needs beyond the package's own requirements, and what is open by default.
PACKAGES = {"stablehlo": "flatbuffers", "onnx": "onnx"}
DEFAULT_DYNAMIC = {"stablehlo": ("batch",), "onnx": DIMENSIONS}


def make_parser() -> cli.Parser:
    parser = cli.parser("i3d_jax.export", __doc__)
    add = parser.add_argument
    add("weights", metavar="NAME|FILE", help="see `python -m i3d_jax.weights list`")
    add("--to", choices=PACKAGES, required=True, help="format")
    add("--out", type=pathlib.Path, required=True, metavar="FILE", help="it is replaced")
    add(
        "--dynamic",
        type=_dimensions,
        metavar="NAMES",
        help=f"dimensions to leave open, of {','.join(DIMENSIONS)}; or none "
        "(default: stablehlo: batch; onnx: all)",
    )
    add(
        "--frames",
        type=cli.positive,
        metavar="N",
        help="of the input (default: of the paper's training clips, I3D's 64)",
    )
    add("--size", type=_size, metavar="N|HxW", help="of the input (default: the weights' crop)")
    return parser


def _dimensions(text: str) -> tuple[str, ...]:
    """Names of dimensions, as `type=` of an argument."""
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in DIMENSIONS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no dimension; there are {', '.join(DIMENSIONS)}, or none"
            )
    return tuple(names)


def _size(text: str) -> tuple[int, int]:
    """Height and width, as `type=` of an argument."""
    height, cross, width = text.partition("x")
    return cli.positive(height), cli.positive(width if cross else height)


def main(arguments: list[str] | None = None) -> int:
    flags = make_parser().parse_args(arguments)
    package = PACKAGES[flags.to]
    if importlib.util.find_spec(package) is None:
        cli.print_error(
            f"--to {flags.to} needs {package}, which is not installed: pip install {package}"
        )
        return 2
    if flags.out.is_dir() or not flags.out.parent.is_dir():
        what = "is a folder" if flags.out.is_dir() else "its folder does not exist"
        cli.print_error(f"{flags.out}: {what}, wanted the name of a file")
        return 2
    try:
        about = _export(flags)
        size = flags.out.stat().st_size
    except (ExportError, weights.WeightsError, OSError) as error:
        cli.print_error(error)
        return 2
    print(cli.escape_unprintable(f"{flags.out}: {_line(about)}, {size / 1e6:,.1f} MB"))
    return 0


def _export(flags: argparse.Namespace) -> dict:
    """Writes the file; returns its description."""
    if flags.to == "onnx":
        from i3d_jax.export import onnx_file as form
    else:
        from i3d_jax.export import stablehlo as form
    source = description.load(
        flags.weights, flags.dynamic, DEFAULT_DYNAMIC[flags.to], flags.frames, flags.size
    )
    return form.write(flags.out, source)


def _line(about: dict) -> str:
    """What is said of a file that is written."""
    inputs = [
        f"{name} [{', '.join(map(str, each['shape']))}]" for name, each in about["inputs"].items()
    ]
    return f"{about['model']}, {' and '.join(inputs)} -> {', '.join(about['outputs'])}"


if __name__ == "__main__":
    cli.run(main)
