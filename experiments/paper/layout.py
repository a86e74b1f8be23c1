"""Tables in Markdown, from result files: means over seeds, their spread, and paired differences."""

import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from paper import results
from paper.miniature import SEEDS
from paper.runs import Run

NOT_RUN = "not run"


class Cell(NamedTuple):
    """A number of a table: an accuracy, measured with every seed.

    Attributes:
      run: the run of a seed.
      score: "top1", or that of a stream of the network, "rgb_top1".
    """

    run: Callable[[int], Run]
    score: str = "top1"


def values(folder: pathlib.Path, cell: Cell) -> dict[int, float]:
    """A cell's accuracy by seed, in percent; without those that are not run."""
    found = {seed: results.find(folder, cell.run(seed)) for seed in SEEDS}
    return {seed: 100 * score_of(result, cell.score) for seed, result in found.items() if result}


def score_of(result: dict[str, Any], score: str) -> float:
    return result["streams"][score] if score in result["streams"] else result["scores"][score]


def show(numbers: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation of numbers, "81.0 ± 2.1"; how many there are, if some lack."""
    if not numbers:
        return NOT_RUN
    text = f"{statistics.mean(numbers):{sign}.1f}"
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):.1f}"
    return text if len(numbers) == len(SEEDS) else f"{text} ({len(numbers)} of {len(SEEDS)} seeds)"


def accuracy(folder: pathlib.Path, cell: Cell | None) -> str:
    return "–" if cell is None else show(list(values(folder, cell).values()))


def gain(folder: pathlib.Path, cell: Cell, base: Cell) -> str:
    """How much higher a cell is than another one, of the same seeds: mean and deviation."""
    these, others = values(folder, cell), values(folder, base)
    return show([these[seed] - others[seed] for seed in these if seed in others], "+")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def runs_of(cells: Sequence[Cell | None]) -> list[Run]:
    """The runs of cells, those of the first seed first."""
    return [cell.run(seed) for seed in SEEDS for cell in cells if cell is not None]
