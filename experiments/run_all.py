"""All tables of the miniature: makes the runs that have no result file yet.

    python experiments/run_all.py --budget-minutes 60
    python experiments/run_all.py --list

Runs of all tables are made seed by seed, so that every table has its first seed early. Stopped at
any time, the same command goes on. About three hours on two idle cores in all.
"""

import pathlib

import choices
import report
from paper import runner
from paper.runs import Run

from i3d_jax import cli


def runs() -> list[Run]:
    # A sort keeps the order of the runs of one seed.
    return sorted([*choices.runs(), *report.all_runs()], key=lambda run: run.seed % 100)


def text(folder: pathlib.Path) -> str:
    return "python experiments/report.py writes the tables"


TABLE = runner.Table("run_all", runs, text, lambda data_dir: [])

if __name__ == "__main__":
    cli.run(lambda: runner.main(TABLE, doc=__doc__))
