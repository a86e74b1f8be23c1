"""Table 5: I3D on the smaller data set, the mean of its three splits.

    python experiments/table5.py --preset miniature
    python experiments/table5.py --preset paper --data-dir data

Everything is trained further (Full-FT).
"""

import functools
import pathlib

from paper import full_size, runner
from paper.layout import Cell, accuracy, markdown, runs_of, show, values
from paper.miniature import SEEDS, on_transfer

from i3d_jax import cli

STREAMS = {"i3d": "RGB", "i3d_flow": "flow", "two_stream_i3d": "RGB + flow"}
SPLITS = 1, 2, 3
# The paper's top-1 on UCF-101 and HMDB-51, by stream.
PAPER = {
    True: {"i3d": "95.6 / 74.8", "i3d_flow": "96.7 / 77.1", "two_stream_i3d": "98.0 / 80.7"},
    False: {"i3d": "95.1 / 74.3", "i3d_flow": "96.5 / 77.3", "two_stream_i3d": "97.8 / 80.9"},
}
FIRST = {True: "ImageNet + Kinetics (here: images + videos)", False: "Kinetics (here: videos)"}


def cell(name: str, images_first: bool, split: int) -> Cell:
    return Cell(
        functools.partial(on_transfer, name, how="full", images_first=images_first, split=split)
    )


def runs():
    return runs_of(
        [cell(name, first, split) for first in FIRST for name in STREAMS for split in SPLITS]
    )


def mean_of_splits(folder: pathlib.Path, cells: list[Cell]) -> str:
    """The mean over splits, by seed; seeds that lack one are left out."""
    found = [values(folder, each) for each in cells]
    whole = [seed for seed in SEEDS if all(seed in each for each in found)]
    return show([sum(each[seed] for each in found) / len(found) for seed in whole])


def text(folder: pathlib.Path) -> str:
    header = ["trained on before", "streams", "paper: UCF-101 / HMDB-51"]
    header += ["here: mean", *(f"split {split}" for split in SPLITS)]
    rows = []
    for first, label in FIRST.items():
        for name, streams in STREAMS.items():
            cells = [cell(name, first, split) for split in SPLITS]
            here = [mean_of_splits(folder, cells), *(accuracy(folder, each) for each in cells)]
            rows.append([label, streams, PAPER[first][name], *here])
    return markdown(header, rows)


def commands(data_dir: str) -> list[full_size.Command]:
    data = [f"{name}/{split}" for name in ("ucf101", "hmdb51") for split in SPLITS]
    return [
        command for first in FIRST for command in full_size.transfer("full", data, data_dir, first)
    ]


TABLE = runner.Table("table5", runs, text, commands)

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
