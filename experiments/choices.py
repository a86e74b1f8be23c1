"""How the miniature's learning rates and steps were chosen: on another seed, on training videos.

    python experiments/choices.py
    python experiments/choices.py --list

A fifth of the training videos is held out, and no test video of table 2 to 4 is used. As with
UCF-101, the splits of the small data set share videos: those that were used here, of split 1, are
test videos of splits 2 and 3 in table 5. The values that were chosen are in `paper/miniature.py`.
"""

import pathlib

from paper import miniature, results, runner
from paper.miniature import on_transfer, on_videos, schedule
from paper.runs import Run

from i3d_jax import cli

SEED = miniature.CHOICE_SEED
# Network, whether images came first, steps, learning rate.
VIDEOS = (
    ("i3d", True, 250, 0.01),
    ("i3d", True, 250, 0.02),
    ("i3d", True, 400, 0.02),
    ("i3d", True, 400, 0.05),
    ("i3d", False, 400, 0.02),
    ("i3d", False, 400, 0.05),
    ("c3d", False, 400, 0.01),
    ("c3d", False, 400, 0.02),
    ("convnet_lstm", True, 800, 0.05),
    ("convnet_lstm", True, 1200, 0.05),
)
LARGE = 400, 0.02  # Of the run from which "fixed" and "full" start.
# How I3D on RGB is trained on the small data set, steps, learning rate.
TRANSFER = (
    ("original", 200, 0.02),
    ("original", 200, 0.05),
    ("fixed", 200, 0.05),
    ("fixed", 200, 0.2),
    ("fixed", 200, 1.0),
    ("full", 200, 0.01),
    ("full", 200, 0.02),
    ("full", 200, 0.05),
)


def held_out(run: Run, steps: int, lr: float) -> Run:
    """A run that is trained on four fifths of its training videos, and tested on the others."""
    config = run.config | {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    config |= {"steps": steps}
    milestones = schedule(steps, lr)["optimizer.milestones"]
    config["optimizer"] = config["optimizer"] | {"lr": lr, "milestones": milestones}
    return run._replace(name=f"choice-{run.name}-{steps}_steps-{lr}", config=config)


def runs() -> list[Run]:
    on_large = [
        held_out(on_videos(name, SEED, first), steps, lr) for name, first, steps, lr in VIDEOS
    ]
    large = held_out(on_videos("i3d", SEED), *LARGE)
    on_small = []
    for how, steps, lr in TRANSFER:
        run = held_out(on_transfer("i3d", SEED, how), steps, lr)
        on_small.append(run if how == "original" else run._replace(start=large))
    return on_large + on_small


def text(folder: pathlib.Path) -> str:
    lines = ["| run | top-1 of held-out training videos | seconds |", "|---|---|---|"]
    for run in runs():
        found = results.find(folder, run)
        cells = "not run | –"
        if found is not None:
            cells = f"{found['scores']['top1']:.1%} | {found['seconds']:.0f}"
        lines.append(f"| {run.name.removeprefix('choice-')} | {cells} |")
    return "\n".join(lines)


TABLE = runner.Table("choices", runs, text, lambda data_dir: [])

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
