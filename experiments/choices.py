"""How the miniature's learning rates and steps were chosen: on another seed, on training videos.

    python experiments/choices.py
    python experiments/choices.py --list

A fifth of the training videos is held out, and no test video is used. The values that were chosen
are in `paper/miniature.py`.
"""

import pathlib

from paper import miniature, results, runner
from paper.miniature import on_transfer, on_videos, schedule
from paper.runs import Run

from i3d_jax import cli

SEED = miniature.CHOICE_SEED
# Of each network: steps and learning rates that were tried.
VIDEOS = {
    "i3d": ((250, 0.01), (250, 0.02), (250, 0.05)),
    "i3d_flow": ((250, 0.02), (250, 0.05)),
    "two_stream": ((250, 0.02), (250, 0.05)),
    "fused_two_stream": ((250, 0.02), (250, 0.05)),
    "convnet_lstm": ((800, 0.05), (800, 0.1)),
    "c3d": ((250, 0.01), (250, 0.02)),
}
TRANSFER = {
    "original": ((150, 0.02), (150, 0.05)),
    "fixed": ((150, 0.05), (150, 0.2)),
    "full": ((150, 0.01), (150, 0.02)),
}


def held_out(run: Run, steps: int, lr: float) -> Run:
    """A run that is trained on four fifths of its training videos, and tested on the others."""
    config = run.config | {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    config |= {"steps": steps}
    milestones = schedule(steps, lr)["optimizer.milestones"]
    config["optimizer"] = config["optimizer"] | {"lr": lr, "milestones": milestones}
    return run._replace(name=f"choice-{run.name}-{steps}_steps-{lr}", config=config)


def runs() -> list[Run]:
    on_large = [
        held_out(on_videos(name, SEED, first), *each)
        for name, tried in VIDEOS.items()
        for first in ((True, False) if name != "c3d" else (False,))
        for each in tried
    ]
    on_small = [
        held_out(on_transfer("i3d", SEED, how), *each)
        for how, tried in TRANSFER.items()
        for each in tried
    ]
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
