"""Table 3: training from scratch, and from an image network whose filters are inflated.

    python experiments/table3.py --preset miniature
    python experiments/table3.py --preset paper --data-dir data

Runs with the same seed see the same clips in the same order. Two-Stream is trained end to end; its
rows for one stream are that stream of the same network.
"""

import functools
import pathlib

from paper import full_size, runner
from paper.layout import Cell, accuracy, gain, markdown, runs_of
from paper.miniature import on_videos

from i3d_jax import cli

# The paper's top-1 on Kinetics: from scratch, ImageNet first.
ROWS = {
    "ConvNet+LSTM": ("convnet_lstm", "top1", "53.9", "63.3"),
    "3D-ConvNet": ("c3d", "top1", "56.1", "–"),
    "Two-Stream, RGB": ("two_stream", "rgb_top1", "57.9", "62.2"),
    "Two-Stream, flow": ("two_stream", "flow_top1", "49.6", "52.4"),
    "Two-Stream": ("two_stream", "top1", "62.8", "65.6"),
    "3D-Fused Two-Stream": ("fused_two_stream", "top1", "62.7", "67.2"),
    "I3D, RGB": ("i3d", "top1", "68.4", "71.1"),
    "I3D, flow": ("i3d_flow", "top1", "61.5", "63.4"),
    "Two-Stream I3D": ("two_stream_i3d", "top1", "71.6", "74.2"),
}


def cells(label: str) -> tuple[Cell, Cell | None]:
    """From scratch, and from the image network."""
    name, score, *_ = ROWS[label]
    scratch = Cell(functools.partial(on_videos, name, images_first=False), score)
    return scratch, None if name == "c3d" else Cell(functools.partial(on_videos, name), score)


def runs():
    return runs_of([cell for label in ROWS for cell in cells(label)])


def text(folder: pathlib.Path) -> str:
    header = (
        *("network", "paper: scratch", "ImageNet first", "gain"),
        *("here: scratch", "images first", "gain, by seed"),
    )
    rows = []
    for label, (_, _, before, after) in ROWS.items():
        scratch, images = cells(label)
        paper_gain = "–" if images is None else f"{float(after) - float(before):+.1f}"
        here = accuracy(folder, scratch), accuracy(folder, images)
        own_gain = "–" if images is None else gain(folder, images, scratch)
        rows.append([label, before, after, paper_gain, *here, own_gain])
    return markdown(header, rows)


def commands(data_dir: str) -> list[full_size.Command]:
    networks = "convnet_lstm", "two_stream", "fused_two_stream", "i3d_rgb", "i3d_flow"
    found = [full_size.kinetics("c3d", data_dir)]
    for first in (False, True):
        found += [full_size.kinetics(name, data_dir, first) for name in networks]
        end = "" if first else "_scratch"
        found += full_size.fused(
            f"runs/i3d_rgb{end}", f"runs/i3d_flow{end}", "kinetics/400", data_dir
        )
    return found


TABLE = runner.Table("table3", runs, text, commands)

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
