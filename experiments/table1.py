"""Table 1: parameters, and the footprints of training and test clips.

    python experiments/table1.py

Nothing is trained. Parameters are counted in the networks as built, for 400 classes; beside them
are those of the miniature's, for 24.
"""

import pathlib
from typing import Any

import jax
from paper import full_size, runner
from paper.layout import markdown
from paper.miniature import ON_VIDEOS, settings

from i3d_jax import cli, models

# The paper's: parameters in millions, training clip, test clip.
PAPER = {
    "convnet_lstm": ("9M", "25 RGB, 5 s", "50 RGB, 10 s"),
    "c3d": ("79M", "16 RGB, 0.64 s", "240 RGB, 9.6 s"),
    "two_stream": ("12M", "1 RGB, 10 flow, 0.4 s", "25 RGB, 250 flow, 10 s"),
    "fused_two_stream": ("39M", "5 RGB, 50 flow, 2 s", "25 RGB, 250 flow, 10 s"),
    "two_stream_i3d": ("25M", "64 RGB, 64 flow, 2.56 s", "250 RGB, 250 flow, 10 s"),
}


def parameters(network: models.Network, clips: dict[str, Any], crop: int) -> int:
    """The number of parameters; nothing is computed."""
    shapes = models.input_shapes(clips, crop)
    made = jax.eval_shape(network.init, jax.random.key(0), shapes)
    return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


def in_miniature(name: str) -> int:
    """The parameters of the miniature's network."""
    if name == "two_stream_i3d":
        return in_miniature("i3d") + in_miniature("i3d_flow")
    config = settings(name, 1, ON_VIDEOS[name])
    clips = {key: pair for key, pair in config["train_clips"].items() if key in models.STREAMS}
    network = models.build(num_classes=24, **config["model"])
    return parameters(network, clips, config["train_clips"]["crop"])


def describe(clips: dict[str, tuple[int, int]]) -> str:
    """A clip as the paper writes it: "16 RGB, 0.64 s"."""
    names = {"rgb": "RGB", "flow": "flow"}
    counts = ", ".join(f"{frames} {names[stream]}" for stream, (frames, _) in clips.items())
    seconds = max(frames * stride for frames, stride in clips.values()) / 25
    return f"{counts}, {seconds:g} s"


def text(folder: pathlib.Path) -> str:
    header = ("network", "paper: parameters", "here", "miniature", "training clip", "test clip")
    rows = []
    for name, (count, train, test) in PAPER.items():
        entry = models.MODELS[name]
        network = models.build(name, num_classes=400)
        clips = describe(entry.train), describe(entry.test)
        same = [
            here if here == theirs else f"{here} (paper: {theirs})"
            for here, theirs in zip(clips, (train, test), strict=True)
        ]
        counted = parameters(network, entry.train, entry.crop)
        rows.append([f"`{name}`", count, f"{counted:,}", f"{in_miniature(name):,}", *same])
    return markdown(header, rows)


def commands(data_dir: str) -> list[full_size.Command]:
    return []


TABLE = runner.Table("table1", list, text, commands)

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
