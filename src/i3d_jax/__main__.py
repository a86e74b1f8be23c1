"""I3D and its peers for human action recognition in video.

    i3d-jax predict video.mp4
    i3d-jax train --config=moving_shapes --workdir=runs/i3d
    i3d-jax COMMAND --help

Each command can also be called as a module, `python -m i3d_jax.predict` for one.

commands:
"""

import importlib
import os
import sys

from i3d_jax import cli

# By name: the module with its `main`, and what it does.
COMMANDS = {
    "predict": ("i3d_jax.predict", "classify the action in video files"),
    "live": ("i3d_jax.live", "classify a webcam, a stream or a file as it plays"),
    "demo": ("i3d_jax.demo.__main__", "serve a web page that analyses videos"),
    "weights": ("i3d_jax.weights.__main__", "list, fetch, verify and convert weights"),
    "models": ("i3d_jax.models.__main__", "print the zoo: parameters, multiply-adds, memory"),
    "flow": ("i3d_jax.flow.__main__", "compute optical flow of video files"),
    "features": ("i3d_jax.features.__main__", "compute features of videos over time"),
    "fvd": ("i3d_jax.fvd.__main__", "compute the Fréchet Video Distance of generated videos"),
    "export": ("i3d_jax.export.__main__", "write a network as StableHLO or ONNX"),
    "datasets": ("i3d_jax.datasets.__main__", "check, prepare and show data sets"),
    "train": ("i3d_jax.main", "train a model, or resume its training"),
    "evaluate": ("i3d_jax.evaluate", "run the paper's test on a data set"),
}


def main() -> int | None:
    called = "i3d-jax" if os.path.basename(sys.argv[0]) == "i3d-jax" else "python -m i3d_jax"
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        module, _ = COMMANDS[name]
        cli.call(f"{called} {name}")
        return importlib.import_module(module).main(sys.argv[2:])
    cli.call(called)
    parser = cli.parser("i3d_jax", f"{__doc__}{_table()}")
    parser.add_argument("command", metavar="COMMAND", help="one of these")
    found = parser.parse_args(sys.argv[1:] or ["--help"])
    parser.error(f"there is no command {found.command!r}; there are {', '.join(COMMANDS)}")


def _table() -> str:
    lines = []
    for name, (module, what) in COMMANDS.items():
        called = f"python -m {module.removesuffix('.__main__')}"
        lines.append(f"    {name:10}{called:30}{what}")
    return "\n".join(lines)


def script() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    script()
