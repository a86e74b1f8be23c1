"""Draws the README's picture: a clip, its optical flow in colours, and the five likeliest classes.

    python docs/picture.py CLIP docs/images/overview.png [--weights rgb_scratch]

CLIP is the release's sample, `v_CricketShot_g04_c01_rgb.gif` of google-deepmind/kinetics-i3d, or
any other video.
"""

import argparse
import pathlib

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from i3d_jax import flow, predict, video
from i3d_jax.flow.colours import flow_to_rgb

COLUMNS = 5  # Frames that are shown.
LONGEST_FLOW = 4.0  # Pixels per frame that have the full colour.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=pathlib.Path, help="video to show")
    parser.add_argument("target", type=pathlib.Path, help="PNG file to write")
    parser.add_argument("--weights", default="rgb_scratch", help="name or file of RGB weights")
    flags = parser.parse_args()
    frames = video.decode(flags.clip, short_side=256, crop=224, frames=250)
    names, shares = top_five(frames, flags.weights)
    shown = np.linspace(0, len(frames) - 2, COLUMNS).astype(int)
    draw(frames[shown], flow_in_colours(frames, shown), names, shares, flags.target)


def top_five(frames: np.ndarray, name: str) -> tuple[list[str], np.ndarray]:
    """Returns the names and probabilities of the five likeliest classes of a clip."""
    classifier = predict.classifier(name)
    logits = classifier.logits({"rgb": frames})
    best = np.argsort(-logits)[:5]
    return [classifier.info.classes[each] for each in best], np.asarray(jax.nn.softmax(logits))[
        best
    ]


def flow_in_colours(frames: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Returns the TV-L1 flow from each of the frames to the next one, as colours."""
    grey = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return flow_to_rgb(np.asarray(jax.jit(flow.tv_l1)(grey[shown], grey[shown + 1])), LONGEST_FLOW)


def draw(
    frames: np.ndarray,
    flows: np.ndarray,
    names: list[str],
    shares: np.ndarray,
    target: pathlib.Path,
) -> None:
    """Writes the picture: frames above their flow, and the classes' probabilities as bars."""
    figure = plt.figure(figsize=(10, 2.9), dpi=110)
    frames_at = dict(left=0.03, right=0.68, bottom=0.04, top=0.96, wspace=0.04, hspace=0.04)
    grid = figure.add_gridspec(2, COLUMNS, **frames_at)
    for row, (images, label) in enumerate(((frames, "video"), (flows, "flow"))):
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(label)
    bars = figure.add_axes((0.72, 0.04, 0.26, 0.82))
    bars.barh(np.arange(5) + 0.2, shares, height=0.3, color="#4477aa")
    for row, (name, share) in enumerate(zip(names, shares, strict=True)):
        bars.text(0.01, row, f"{name}  {share:.2%}", va="bottom", fontsize=9)
    bars.set(xlim=(0, 1), ylim=(4.6, -0.5), xticks=[], yticks=[])
    bars.set_title("top five of 400 classes", fontsize=10)
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(target)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
