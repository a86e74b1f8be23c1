"""Ablations of I3D on RGB: what the paper argues from, one change at a time.

    python experiments/ablations.py --preset miniature

Where time is pooled (section 2.4.3), how many frames a clip has, how filters are inflated
(section 2.4.1), whose statistics batch norm takes, and what single frames are worth.
"""

import functools
import pathlib
from typing import Any

from paper import full_size, runner
from paper.layout import Cell, accuracy, gain, markdown, runs_of
from paper.miniature import on_videos

from i3d_jax import cli


def variant(label: str = "", inflation: str = "mean", first: bool = True, **changes: Any) -> Cell:
    """I3D with changes of its config; "__" in a name is a point."""
    return Cell(
        functools.partial(
            on_videos,
            "i3d",
            images_first=first,
            label=label,
            changes={path.replace("__", "."): value for path, value in changes.items()},
            inflation=inflation,
        )
    )


BASE = variant()
ROWS = {
    "I3D as in table 2": BASE,
    "strides in time of the four pools: 2, 2, 1, 1, not 1, 1, 2, 2": variant(
        "early_pools", model__name="i3d_early_pools"
    ),
    "clips of 10 frames, not 16": variant("10_frames", train_clips__rgb=(10, 1)),
    "clips of 24 frames, not 16": variant("24_frames", train_clips__rgb=(24, 1)),
    "inflated into the centre frame, not by the mean": variant("centre", "centre"),
    "not inflated: from scratch": variant(first=False),
    "batch norm by groups of 8 clips, not by all 32": variant("groups_of_8", norm_group_size=8),
    "batch norm by groups of 4 clips": variant("groups_of_4", norm_group_size=4),
    "no time: the image network on single frames": Cell(functools.partial(on_videos, "frames")),
}


def runs():
    return runs_of(list(ROWS.values()))


def text(folder: pathlib.Path) -> str:
    rows = [
        [
            label,
            accuracy(folder, cell),
            "–" if cell is BASE else gain(folder, cell, BASE),
        ]
        for label, cell in ROWS.items()
    ]
    return markdown(["change", "top-1", "above I3D of table 2, by seed"], rows)


def commands(data_dir: str) -> list[full_size.Command]:
    return []  # The paper reports none of these in numbers.


TABLE = runner.Table("ablations", runs, text, commands)

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
