"""Table 4: what the large data set is worth on a smaller one.

    python experiments/table4.py --preset miniature
    python experiments/table4.py --preset paper --data-dir data

Original: trained on the small data set alone. Fixed: a new last layer on the features of the large
one. Full-FT: everything is trained further. Each is with and without the image network first. The
miniature has Two-Stream and I3D; its small data set has other shapes, textures and movements.
"""

import functools
import pathlib

from paper import full_size, runner
from paper.layout import Cell, accuracy, gain, markdown, runs_of
from paper.miniature import on_transfer

from i3d_jax import cli

WAYS = {"original": "Original", "fixed": "Fixed", "full": "Full-FT"}
# The paper's top-1 with / without ImageNet, of Original, Fixed and Full-FT: UCF-101, HMDB-51.
PAPER = {
    "convnet_lstm": (
        ("81.0 / 54.2", "88.1 / 82.6", "91.0 / 86.8"),
        ("36.0 / 18.3", "50.8 / 47.1", "53.4 / 49.7"),
    ),
    "c3d": (("– / 51.6", "– / 76.0", "– / 79.9"), ("– / 24.3", "– / 47.0", "– / 49.4")),
    "two_stream": (
        ("91.2 / 83.6", "93.9 / 93.3", "94.2 / 93.8"),
        ("58.3 / 47.1", "66.6 / 65.9", "66.6 / 64.3"),
    ),
    "fused_two_stream": (
        ("89.3 / 69.5", "94.3 / 89.8", "94.2 / 91.5"),
        ("56.8 / 37.3", "69.9 / 64.6", "71.0 / 66.5"),
    ),
    "two_stream_i3d": (
        ("93.4 / 88.8", "97.7 / 97.4", "98.0 / 97.6"),
        ("66.4 / 62.2", "79.7 / 78.6", "81.2 / 81.3"),
    ),
}
HERE = "two_stream", "i3d", "i3d_flow", "two_stream_i3d"


def cell(name: str, how: str, images_first: bool) -> Cell:
    return Cell(functools.partial(on_transfer, name, how=how, images_first=images_first))


def runs():
    return runs_of(
        [cell(name, how, first) for name in HERE for first in (True, False) for how in WAYS]
    )


def text(folder: pathlib.Path) -> str:
    header = ["network", "images first", *WAYS.values(), "Full-FT above Original, by seed"]
    rows = []
    for name in HERE:
        for first in (True, False):
            found = {how: cell(name, how, first) for how in WAYS}
            rows.append(
                [
                    f"`{name}`",
                    "yes" if first else "no",
                    *(accuracy(folder, each) for each in found.values()),
                    gain(folder, found["full"], found["original"]),
                ]
            )
    paper = [
        [f"`{name}`", data, *numbers]
        for name, both in PAPER.items()
        for data, numbers in zip(("UCF-101", "HMDB-51"), both, strict=True)
    ]
    return "\n\n".join(
        [
            "Here, on moving_shapes/transfer_1:",
            markdown(header, rows),
            "The paper, with / without ImageNet first:",
            markdown(["network", "data", *WAYS.values()], paper),
        ]
    )


def commands(data_dir: str) -> list[full_size.Command]:
    data = "ucf101/1", "hmdb51/1"
    return [
        command
        for first in (True, False)
        for how in WAYS
        for command in full_size.transfer(how, data, data_dir, first)
    ]


TABLE = runner.Table("table4", runs, text, commands)

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
