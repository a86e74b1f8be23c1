"""Figure 4: filters of the first layer over time, of the image network and of I3D.

    python experiments/figure4.py --preset miniature
    python experiments/figure4.py --preset paper --weights rgb_imagenet flow_imagenet

Each filter is a column, scaled to its own greatest value; grey is zero. The picture of published
weights, or of files, is drawn into runs/figure4.png; it needs nothing but the weights.
"""

import argparse
import base64
import pathlib
import sys

import numpy as np
from paper import results, runner
from paper.layout import NOT_RUN
from paper.miniature import SEEDS, images, on_videos
from paper.runs import Run

from i3d_jax import cli, files, weights

SEED = SEEDS[0]


def runs() -> list[Run]:
    parts = images(SEED), on_videos("i3d", SEED), on_videos("i3d_flow", SEED)
    return [Run(f"figure4-s{SEED}", SEED, {}, kind="filters", parts=parts)]


def stored_filters(folder: pathlib.Path) -> list[tuple[str, np.ndarray]] | None:
    """Titles and filters from the result file; None: not run."""
    found = results.find(folder, runs()[0])
    if found is None:
        return None
    kernels = [
        np.frombuffer(base64.b64decode(each["base64"]), np.uint8).reshape(each["shape"])
        for each in found["filters"].values()
    ]
    flat, rgb, flow = (kernel.astype(np.float32) / 127 - 128 / 127 for kernel in kernels)
    in_flow = np.repeat(flat.mean(-2, keepdims=True), 2, -2)
    in_flow /= abs(in_flow).reshape(-1, in_flow.shape[-1]).max(0)
    return [
        ("image network, and I3D on RGB before training, in every frame", flat[None]),
        ("I3D on RGB, trained; from above: frames 1 to 7", rgb),
        ("I3D on flow before training, in every frame (red: u, green: v)", in_flow[None]),
        ("I3D on flow, trained; frames 1 to 7", flow),
    ]


def draw(path: pathlib.Path, panels: list[tuple[str, np.ndarray]]) -> None:
    """Draws filters, a column each, with time going down.

    Args:
      path: of the PNG.
      panels: titles, and filters [T, H, W, 3 or 2, N], of which the greatest value is 1.
    """
    from matplotlib import figure

    pictures = [(title, mosaic(filters)) for title, filters in panels]
    heights = [picture.shape[0] for _, picture in pictures]
    width = pictures[0][1].shape[1]
    size = 10.0, 10.0 * sum(heights) / width + 0.4 * len(panels)
    made = figure.Figure(figsize=size, layout="constrained")
    axes = made.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for ax, (title, picture) in zip(axes, pictures, strict=True):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(title, fontsize=9, loc="left")
        ax.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as written:
        made.savefig(written, format="png", dpi=120, metadata={"Software": None})


def mosaic(filters: np.ndarray) -> np.ndarray:
    """Filters [T, H, W, C, N] as one picture, uint8 [rows, columns, 3]; white between them."""
    time, height, width, channels, number = filters.shape
    picture = np.full((time * (height + 1) + 1, number * (width + 1) + 1, 3), 255, np.uint8)
    for frame in range(time):
        for column in range(number):
            tile = np.zeros((height, width, 3))
            tile[..., :channels] = filters[frame, ..., column]
            top, left = frame * (height + 1) + 1, column * (width + 1) + 1
            shown = np.clip(np.rint(127.5 + 127.5 * tile), 0, 255).astype(np.uint8)
            picture[top : top + height, left : left + width] = shown
    return picture


def published(names: list[str], path: pathlib.Path) -> int:
    """Draws the filters of weights that are here or can be downloaded; returns the exit status."""
    panels = []
    for name in names:
        try:
            variables, info = weights.read(name)
        except (weights.WeightsError, OSError) as error:
            print(f"{name}: not drawn: {cli.one_line(error)}", file=sys.stderr)
            continue
        kernel = np.asarray(variables["params"]["Conv_1a"]["conv"]["kernel"])
        kernel = kernel if kernel.ndim == 5 else kernel[None]
        scaled = kernel / abs(kernel).reshape(-1, kernel.shape[-1]).max(0)
        panels.append((f"{name}, {info.model}; from above: frames 1 to {len(kernel)}", scaled))
    if panels:
        draw(path, panels)
        print(path)
    return 0 if len(panels) == len(names) else 1


def draw_stored(folder: pathlib.Path) -> None:
    """Draws the miniature's figure beside its result file, if that is there."""
    panels = stored_filters(folder)
    if panels is not None:
        draw(folder / "figure4.png", panels)


def text(folder: pathlib.Path) -> str:
    """The Markdown that shows the miniature's figure."""
    shown = "![First-layer filters](results/figure4.png)"
    return NOT_RUN if stored_filters(folder) is None else shown


def drawn(folder: pathlib.Path) -> str:
    draw_stored(folder)
    return text(folder)


TABLE = runner.Table("figure4", runs, drawn, lambda data_dir: [])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset")
    parser.add_argument("--weights", nargs="+", default=["rgb_imagenet", "flow_imagenet"])
    flags, rest = parser.parse_known_args(arguments)
    if flags.preset == "paper":
        return published(flags.weights, pathlib.Path("runs/figure4.png"))
    return runner.main(TABLE, rest, doc=__doc__)


if __name__ == "__main__":
    cli.run(main)
