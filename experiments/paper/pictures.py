"""The report's pictures, from result files."""

import functools
import pathlib
from typing import Any

import numpy as np
from matplotlib import figure

from i3d_jax import files
from paper import results
from paper.miniature import SEEDS, on_videos

SMOOTH = 4  # Points of a curve.
NETWORKS = {
    "i3d": "I3D, RGB",
    "i3d_flow": "I3D, flow",
    "two_stream": "Two-Stream",
    "fused_two_stream": "3D-Fused",
    "convnet_lstm": "ConvNet+LSTM",
    "c3d": "3D-ConvNet",
}


def found_of(folder: pathlib.Path, name: str, **options: Any) -> list[dict[str, Any]]:
    """The results of a network on videos, those seeds that are run."""
    make = functools.partial(on_videos, name, **options)
    return [result for seed in SEEDS if (result := results.find(folder, make(seed)))]


def curves(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Draws the loss of training batches by step, from scratch and images first."""
    picture = figure.Figure(figsize=(10, 6), layout="constrained")
    for ax, (name, title) in zip(picture.subplots(2, 3).flat, NETWORKS.items(), strict=True):
        kinds = (True, "images first", "C0"), (False, "from scratch", "C1")
        for first, label, colour in kinds:
            if name == "c3d" and first:
                continue
            found = found_of(folder, name, images_first=first)
            if not found:
                continue
            steps = [point[0] for point in found[0]["curve"]]
            loss = np.mean([[point[1] for point in each["curve"]] for each in found], 0)
            kernel = np.ones(SMOOTH) / SMOOTH
            seeds = f"{len(found)} seed{'s' if len(found) > 1 else ''}"
            smooth = np.convolve(loss, kernel, "valid")
            ax.plot(steps[SMOOTH - 1 :], smooth, colour, label=f"{label}, {seeds}")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.set_ylim(0, 3.4)
        if ax.lines:
            ax.legend(fontsize=8)
        else:
            ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
    save(picture, path)


def confusion(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Draws the confusion of I3D's streams and of their sum, over all seeds."""
    names = {"i3d": "I3D, RGB", "i3d_flow": "I3D, flow", "two_stream_i3d": "Two-Stream I3D"}
    picture = figure.Figure(figsize=(15, 6.5), layout="constrained")
    image = None
    for number, (ax, (name, title)) in enumerate(
        zip(picture.subplots(1, 3), names.items(), strict=True)
    ):
        ax.set_title(title)
        found = found_of(folder, name)
        if not found:
            ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
            continue
        matrix = sum(np.array(each["confusion"]) for each in found)
        shares = matrix / matrix.sum(1, keepdims=True)
        image = ax.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        classes = found[0]["classes"]
        ax.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        ax.set_yticks(range(len(classes)), classes if number == 0 else [], fontsize=7)
        ax.set_xlabel("predicted class")
    if image is not None:
        picture.colorbar(image, ax=picture.axes, shrink=0.6, label="share of the class's clips")
    save(picture, path)


def save(picture: figure.Figure, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as written:
        picture.savefig(written, format="png", dpi=100, metadata={"Software": None})
