"""Table 2: five architectures on RGB, flow and both.

    python experiments/table2.py --preset miniature
    python experiments/table2.py --preset paper --data-dir data

R is RGB, F flow. All but C3D start from the image network. The miniature has the renderer's flow,
which is exact, and TV-L1's (preset `fast`), which is computed from the frames and has errors.
Two-Stream is trained on both streams together; its R and F are the streams of that network.
"""

import functools
import pathlib

from paper import full_size, runner
from paper.layout import Cell, accuracy, markdown, runs_of
from paper.miniature import TVL1, on_transfer, on_videos

from i3d_jax import cli

# The paper's top-1 on UCF-101, HMDB-51 and Kinetics: R / F / R+F.
PAPER = {
    "convnet_lstm": ("81.0 / – / –", "36.0 / – / –", "63.3 / – / –"),
    "c3d": ("51.6 / – / –", "24.3 / – / –", "56.1 / – / –"),
    "two_stream": ("83.6 / 85.6 / 91.2", "43.2 / 56.3 / 58.3", "62.2 / 52.4 / 65.6"),
    "fused_two_stream": ("83.2 / 85.8 / 89.3", "49.2 / 55.5 / 56.8", "– / – / 67.2"),
    "two_stream_i3d": ("84.5 / 90.6 / 93.4", "49.8 / 61.9 / 66.4", "71.1 / 63.4 / 74.2"),
}


def cells(name: str, run) -> list[Cell | None]:
    """RGB, flow and both.

    Args:
      name: the network.
      run: the run of a network and a seed.
    """
    if name == "two_stream_i3d":
        return [Cell(functools.partial(run, each)) for each in ("i3d", "i3d_flow", name)]
    cell = Cell(functools.partial(run, name))
    if name == "two_stream":
        return [cell._replace(score="rgb_top1"), cell._replace(score="flow_top1"), cell]
    return [None, None, cell] if name == "fused_two_stream" else [cell, None, None]


def with_tvl1(name: str) -> list[Cell | None]:
    """Flow and both, with TV-L1's flow; RGB has none."""
    has_flow = "two_stream" in name
    run = functools.partial(on_videos, dataset=TVL1)
    return cells(name, run)[1:] if has_flow else [None, None]


def original(name: str, seed: int):
    return on_transfer(name, seed, "original")


ROWS = {name: (cells(name, on_videos), with_tvl1(name), cells(name, original)) for name in PAPER}


def runs():
    return runs_of([cell for row in ROWS.values() for group in row for cell in group])


def text(folder: pathlib.Path) -> str:
    header = (
        *("network", "Kinetics, paper", "videos: R", "F", "R+F", "TV-L1: F", "R+F"),
        *("UCF-101, paper", "HMDB-51, paper", "transfer: R", "F", "R+F"),
    )
    rows = []
    for name, (large, tvl1, small) in ROWS.items():
        ucf, hmdb, kinetics = PAPER[name]
        here = [[accuracy(folder, cell) for cell in group] for group in (large, tvl1, small)]
        rows.append([f"`{name}`", kinetics, *here[0], *here[1], ucf, hmdb, *here[2]])
    return markdown(header, rows)


def commands(data_dir: str) -> list[full_size.Command]:
    networks = "convnet_lstm", "c3d", "two_stream", "fused_two_stream", "i3d_rgb", "i3d_flow"
    return [
        *(full_size.kinetics(name, data_dir) for name in networks),
        *full_size.fused("runs/i3d_rgb", "runs/i3d_flow", "kinetics/400", data_dir),
        *full_size.transfer("original", ("ucf101/1", "hmdb51/1"), data_dir),
    ]


TABLE = runner.Table("table2", runs, text, commands)

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
