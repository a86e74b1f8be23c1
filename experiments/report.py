"""Writes REPORT.md and its pictures, from the result files alone.

    python experiments/report.py
    python experiments/report.py --compare FOLDER

Nothing is trained. Runs without a result file are listed as not run. With --compare it writes
nothing, and says which results of another folder, made again, have other numbers.
"""

import argparse
import functools
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import ablations
import choices
import figure4
import numpy as np
import table1
import table2
import table3
import table4
import table5
from paper import pictures, results
from paper.layout import NOT_RUN, Cell, markdown, show, values
from paper.miniature import SEEDS, TVL1, on_transfer, on_videos
from paper.runs import Run, unique

from i3d_jax import cli, files

REPORT = pathlib.Path(__file__).parent / "REPORT.md"
TABLES = (table1, table2, table3, table4, table5, ablations, figure4)
# The 97.5 % quantile of Student's distribution, by degrees of freedom.
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776}


class Effect(NamedTuple):
    """An effect that the paper reports, as a difference of two accuracies.

    Attributes:
      name: what it says.
      more: the cell that is higher in the paper.
      less: the other one.
      paper: the paper's difference, in points.
      note: what a reader must know of it; why the miniature lacks it, if it does.
    """

    name: str
    more: Cell
    less: Cell
    paper: float
    note: str = ""


def on_large(name: str, score: str = "top1", **options: Any) -> Cell:
    return Cell(functools.partial(on_videos, name, **options), score)


def on_small(name: str, how: str, first: bool = True) -> Cell:
    return Cell(functools.partial(on_transfer, name, how=how, images_first=first))


TWO_STREAM = (
    "A class here is a shape, which one frame shows, and a movement, which ten frames of flow "
    "show: Two-Stream lacks nothing."
)
EFFECTS = (
    Effect(
        "I3D is better than ConvNet+LSTM (RGB)",
        on_large("i3d"),
        on_large("convnet_lstm"),
        7.8,
        "ConvNet+LSTM ends at 800 steps, for the sake of time. It would still gain from more.",
    ),
    Effect("I3D is better than 3D-ConvNet (RGB)", on_large("i3d"), on_large("c3d"), 15.0),
    Effect(
        "I3D is better than Two-Stream (both streams)",
        on_large("two_stream_i3d", dataset=TVL1),
        on_large("two_stream", dataset=TVL1),
        8.6,
        TWO_STREAM,
    ),
    Effect(
        "I3D is better than 3D-Fused (both streams)",
        on_large("two_stream_i3d", dataset=TVL1),
        on_large("fused_two_stream", dataset=TVL1),
        7.0,
        "As for Two-Stream.",
    ),
    Effect(
        "RGB is better than flow (I3D)",
        on_large("i3d"),
        on_large("i3d_flow", dataset=TVL1),
        7.7,
    ),
    Effect(
        "both streams are better than RGB (I3D)",
        on_large("two_stream_i3d", dataset=TVL1),
        on_large("i3d"),
        3.1,
    ),
    Effect(
        "images first is better than from scratch (I3D, RGB)",
        on_large("i3d"),
        on_large("i3d", images_first=False),
        2.7,
    ),
    Effect(
        "images first is better than from scratch (I3D, exact flow)",
        on_large("i3d_flow"),
        on_large("i3d_flow", images_first=False),
        1.9,
    ),
    Effect(
        "images first is better than from scratch (ConvNet+LSTM)",
        on_large("convnet_lstm"),
        on_large("convnet_lstm", images_first=False),
        9.4,
        "The image network's averaged features name the shape and hardly show where it is. "
        "Starting from them, the network mistakes no shape and learns movements late; "
        "from scratch it learns features that show both.",
    ),
    Effect(
        "Full-FT is better than Original (I3D, both; UCF-101)",
        on_small("two_stream_i3d", "full"),
        on_small("two_stream_i3d", "original"),
        4.6,
    ),
    Effect(
        "Full-FT is better than Original, without images (I3D, both; UCF-101)",
        on_small("two_stream_i3d", "full", False),
        on_small("two_stream_i3d", "original", False),
        8.8,
    ),
    Effect(
        "Fixed is better than Original (I3D, both; UCF-101)",
        on_small("two_stream_i3d", "fixed"),
        on_small("two_stream_i3d", "original"),
        4.3,
        "24 classes of four shapes and six movements make features for these; the small data set "
        "has others. Kinetics' 400 classes make features for anything.",
    ),
    Effect(
        "Full-FT is better than Fixed (I3D, both; UCF-101)",
        on_small("two_stream_i3d", "full"),
        on_small("two_stream_i3d", "fixed"),
        0.3,
    ),
)


def effect_row(folder: pathlib.Path, effect: Effect) -> list[str]:
    """An effect with the miniature's paired difference, its interval, and whether it is there."""
    more, less = values(folder, effect.more), values(folder, effect.less)
    found = [more[seed] - less[seed] for seed in SEEDS if seed in more and seed in less]
    interval = verdict = "–"
    if len(found) == len(SEEDS):
        half = STUDENT[len(found) - 1] * statistics.stdev(found) / len(found) ** 0.5
        mean = statistics.mean(found)
        interval = f"{mean - half:+.1f} to {mean + half:+.1f}"
        verdict = "yes" if mean > 0 else "**the reverse**"
        if abs(mean) <= half:
            verdict = f"not decided; in {sum(each > 0 for each in found)} of {len(found)} seeds"
    return [effect.name, f"{effect.paper:+.1f}", show(found, "+"), interval, verdict, effect.note]


def errors_row(folder: pathlib.Path, label: str, make: Callable[[int], Run]) -> list[str]:
    """What a network's mistakes on videos are, over all seeds, in percent of the clips."""
    found = [result for seed in SEEDS if (result := results.find(folder, make(seed)))]
    if not found:
        return [label, *[NOT_RUN] * 5]
    matrix = sum(np.array(result["confusion"]) for result in found)
    names = [name.split(" ", 1) for name in found[0]["classes"]]
    kinds = {"right": 0, "reversed": 0, "movement": 0, "shape": 0, "both": 0}
    for row, (shape, movement) in enumerate(names):
        for column, (other_shape, other_movement) in enumerate(names):
            if shape == other_shape and movement == other_movement:
                kind = "right"
            elif shape == other_shape:
                pair = {names[row ^ 1][1], names[row][1]}  # Movements come in pairs.
                kind = "reversed" if other_movement in pair else "movement"
            else:
                kind = "shape" if movement == other_movement else "both"
            kinds[kind] += matrix[row, column]
    return [label, *(f"{100 * count / matrix.sum():.1f}" for count in kinds.values())]


SHOWN = {
    "`convnet_lstm`": functools.partial(on_videos, "convnet_lstm"),
    "`c3d`": functools.partial(on_videos, "c3d"),
    "`two_stream`": functools.partial(on_videos, "two_stream"),
    "`fused_two_stream`": functools.partial(on_videos, "fused_two_stream"),
    "I3D, RGB": functools.partial(on_videos, "i3d"),
    "I3D, flow": functools.partial(on_videos, "i3d_flow"),
    "Two-Stream I3D": functools.partial(on_videos, "two_stream_i3d"),
}


def class_table(folder: pathlib.Path) -> str:
    """Accuracy by class, the mean over seeds."""
    columns = {
        label: [result for seed in SEEDS if (result := results.find(folder, make(seed)))]
        for label, make in SHOWN.items()
    }
    classes = next((found[0]["classes"] for found in columns.values() if found), None)
    if classes is None:
        return NOT_RUN
    rows = []
    for number, name in enumerate(classes):
        cells = [
            f"{100 * statistics.mean(result['class_accuracy'][number] for result in found):.0f}"
            if found
            else "–"
            for found in columns.values()
        ]
        rows.append([name, *cells])
    return markdown(["class", *columns], rows)


RUN_COLUMNS = (
    *("run", "top-1", "clips", "seconds", "CPU seconds"),
    *("processor", "load", "commit", "date"),
)


def run_rows(folder: pathlib.Path, runs: list[Run]) -> list[list[str]]:
    rows = []
    for run in runs:
        found = results.find(folder, run)
        if found is None or "scores" not in found:
            continue
        scores = found["scores"]
        accuracy = f"{scores['top1']:.1%} ({scores['top1_low']:.1%} to {scores['top1_high']:.1%})"
        rows.append(
            [
                run.name,
                accuracy,
                str(scores["clips"]),
                f"{found['seconds']:.0f}",
                f"{found['cpu_seconds']:.0f}" if "cpu_seconds" in found else "–",
                found["machine"]["processor"],
                f"{found['machine']['load']}",
                found["commit"],
                found["date"],
            ]
        )
    return rows


def paragraphs(doc: str | None) -> list[str]:
    """The paragraphs of a script's docstring, without commands."""
    return [part for part in (doc or "").strip().split("\n\n") if not part.startswith(" ")]


def all_runs() -> list[Run]:
    """The runs of all tables, each once."""
    return unique([run for module in TABLES for run in module.TABLE.runs()])


def unexpected(folder: pathlib.Path, runs: list[Run]) -> list[str]:
    """Result files that no table has, or that are of another config."""
    known = {run.name: run for run in unique([*runs, *choices.runs()])}
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in known:
            found.append(f"{path.name}: no table has this run")
        elif why := results.why_stale(folder, known[path.stem]):
            found.append(f"{path.name}: of another config: {why}")
    return found


OTHER_WEIGHTS = """
These runs started from, or added, other weights than those of the result named: weights are not in
git, and another machine made them again.
"""


def of_other_weights(folder: pathlib.Path, runs: list[Run]) -> list[str]:
    """Results that are not made from the weights of the results that they name, as list items."""
    found = []
    for run in runs:
        made_from = (results.find(folder, run) or {}).get("made_from", {})
        for need in run.needs:
            result = results.find(folder, need)
            if result and need.name in made_from and made_from[need.name] != result.get("weights"):
                found.append(f"- {run.name}: {need.name}")
    return found


def summary(folder: pathlib.Path, runs: list[Run], missing: list[str]) -> list[str]:
    """What the report is, and which effects are there."""
    others = " The others are [listed below](#not-run)." if missing else ""
    return [
        "# The paper's experiments in miniature",
        f"""
Written by `python experiments/report.py` from the files in `experiments/results`; do not edit it.

Small networks learn small data sets here, in the order in which the paper's learn ImageNet,
Kinetics and UCF-101. The data sets are rendered on your machine: images of shapes, videos of
moving shapes (24 classes: a shape and a movement; chance is 4.2 %, and a single frame gives at
most 16.7 %), and a smaller set of other shapes, textures and movements. "Images first" means that
a network starts from one that was trained on the images. Networks have a quarter of the paper's
channels and see 48x48 pixels; `experiments/paper/miniature.py` has the rest.

Accuracies are top-1 in percent: mean ± standard deviation over seeds {", ".join(map(str, SEEDS))}.
A difference is the mean of differences of the same seed. Compare differences with the paper's, not
accuracies.""",
        f"{len(runs) - len(missing)} of {len(runs)} runs have a result.{others}",
        "## Does the miniature show what the paper shows?",
        """
Flow is TV-L1's on the videos, where nothing else is said, and the renderer's on the smaller set.
The interval is that of the mean difference (95 %, Student's distribution) over the seeds, on the
same test videos. "Yes" and "the reverse" mean that it does not contain zero. Where it does, three
seeds are too few to decide, and the number of those that show the effect is given. Of so many
effects, one in every second report is expected to be judged wrong.""",
        markdown(
            ["effect", "paper", "here", "95 % interval", "there?", "remark"],
            [effect_row(folder, effect) for effect in EFFECTS],
        ),
    ]


def details(folder: pathlib.Path, runs: list[Run]) -> list[str]:
    """Curves, errors, classes, choices and single runs."""
    return [
        "## Learning curves",
        """
Loss of training batches on moving_shapes/videos, the mean over seeds and four logged batches.""",
        "![Learning curves](results/curves.png)",
        "## What is confused with what",
        """
Of all test clips, over all seeds, in percent. A movement and its reversal have the same frames in
another order.""",
        markdown(
            ["network", "right", "reversed", "other movement", "other shape", "both wrong"],
            [errors_row(folder, label, make) for label, make in SHOWN.items()],
        ),
        "![Confusion of classes](results/confusion.png)",
        "## Accuracy by class",
        """
Percent of 20 test videos per class, the mean over seeds. For one seed, the 95 % Wilson interval of
10 in 20 is 30 to 70 %, and that of 20 in 20 is 84 to 100 %.""",
        class_table(folder),
        "## How rates and steps were chosen",
        *paragraphs(choices.__doc__)[1:],
        choices.text(folder),
        "## All runs",
        """
Top-1 with its 95 % Wilson interval, over test clips. Seconds are of training and test; CPU seconds
are those of both cores. Load is the number of processes that wanted a core when the run ended: with
more than about 2, seconds say little.""",
        markdown(RUN_COLUMNS, run_rows(folder, runs)),
    ]


def render(folder: pathlib.Path, write_pictures: bool = False) -> str:
    """The report.

    Args:
      folder: of result files.
      write_pictures: whether to draw the pictures into the folder.
    """
    runs = all_runs()
    missing = [run.name for run in runs if results.find(folder, run) is None]
    parts = summary(folder, runs, missing)
    for module in TABLES:
        title, *remarks = paragraphs(module.__doc__)
        parts += [f"## {title.rstrip('.')}", *remarks, module.text(folder)]
    parts += details(folder, runs)
    if missing:
        parts += ["## Not run", "\n".join(f"- {name}" for name in missing)]
    if mixed := of_other_weights(folder, runs):
        parts += ["## Not of the same weights", OTHER_WEIGHTS, "\n".join(mixed)]
    if odd := unexpected(folder, runs):
        parts += ["## Files that are not used", "\n".join(f"- {line}" for line in odd)]
    if write_pictures:
        pictures.curves(folder, folder / "curves.png")
        pictures.confusion(folder, folder / "confusion.png")
        figure4.draw_stored(folder)
    return "\n\n".join(part.strip() for part in parts) + "\n"


COMPARED = "scores", "streams", "confusion", "curve", "weights", "made_from"


def compare(folder: pathlib.Path, again: pathlib.Path) -> int:
    """Prints what differs between the results of two folders; the exit status: 1 if anything does.

    Args:
      folder: of result files.
      again: of results of some of the same runs.
    """
    paths, differ = sorted(again.glob("*.json")), False
    if not paths:
        raise results.ResultError(f"{again}: no result files are there")
    for path in paths:
        second = results.read(path)
        if not (folder / path.name).exists():
            print(f"{path.stem}: only in {again}")
            continue
        first = results.read(folder / path.name)
        other = [name for name in COMPARED if first.get(name) != second.get(name)]
        print(f"{path.stem}: {'differs in ' + ', '.join(other) if other else 'the same'}")
        differ |= bool(other)
    return int(differ)


def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=results.FOLDER)
    parser.add_argument("--out", type=pathlib.Path, default=REPORT)
    parser.add_argument("--compare", type=pathlib.Path, metavar="FOLDER")
    flags = parser.parse_args(arguments)
    try:
        if not flags.results.is_dir():
            raise results.ResultError(f"{flags.results}: no such folder")
        if flags.compare:
            return compare(flags.results, flags.compare)
        text = render(flags.results, write_pictures=True)
        with files.atomic_write(flags.out) as written:
            written.write_text(text)
    except (results.ResultError, OSError) as error:
        cli.print_error(error)
        return 2
    print(flags.out)
    return 0


if __name__ == "__main__":
    cli.run(main)
