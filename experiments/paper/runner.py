"""Makes the runs of a table that have no result file yet, one after another.

A run that is interrupted resumes when the same command is given again. A run that fails is said,
and the others go on.
"""

import base64
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from i3d_jax import cli, compilation, datasets, files, weights
from i3d_jax.evaluation import metrics, protocol
from i3d_jax.evaluation import results as evaluations
from i3d_jax.inflate import inflate_params, named_leaves
from i3d_jax.stopping import StoppedError
from i3d_jax.training import fingerprint, loop
from i3d_jax.weights import metadata
from paper import full_size, results, variants
from paper.runs import Run, unique

SCORES = "top1", "top5", "mean_class"


class Table(NamedTuple):
    """A table of the paper, or an experiment of ours.

    Attributes:
      name: of the script.
      runs: the runs of the miniature, those of the first seed first.
      text: the miniature's table in Markdown, from the folder of result files.
      commands: the full-size runs, from the folder of prepared data sets.
    """

    name: str
    runs: Callable[[], list[Run]]
    text: Callable[[pathlib.Path], str]
    commands: Callable[[str], list[full_size.Command]]


class Places(NamedTuple):
    """Where a runner reads and writes.

    Attributes:
      results: folder of result files.
      work: folder of runs in progress, with their weights and predictions.
      data: folder of prepared data sets.
    """

    results: pathlib.Path
    work: pathlib.Path
    data: str

    def folder(self, run: Run) -> pathlib.Path:
        return self.work / f"{run.name}.{run.fingerprint[:8]}"

    def has_outputs(self, run: Run) -> bool:
        """Whether a run's weights and predictions are on this machine."""
        return (self.folder(run) / "test" / "scores.json").exists()


def main(table: Table, arguments: Sequence[str] | None = None, doc: str | None = None) -> int:
    """The command of a table.

    Args:
      table: the table.
      arguments: of the command line; None: `sys.argv[1:]`.
      doc: for --help.

    Returns:
      the exit status: 1 if a run failed or is missing, 2 for a mistake.
    """
    cli.call(f"python experiments/{table.name}.py")
    parser = cli.parser(table.name, doc)
    parser.add_argument(
        "--preset",
        choices=("miniature", "paper"),
        default="miniature",
        help="miniature: on moving_shapes, on this machine; paper: full size (default: miniature)",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help='runs of these names; "*i3d*" is all with i3d'
    )
    parser.add_argument(
        "--budget-minutes", type=float, metavar="M", help="start no run after so many minutes"
    )
    parser.add_argument("--list", action="store_true", help="list the runs, and end")
    parser.add_argument("--go", action="store_true", help="with --preset paper: run the commands")
    parser.add_argument("--results", type=pathlib.Path, default=results.FOLDER, help="result files")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/paper"))
    parser.add_argument("--data-dir", default="runs/data", help="prepared data sets")
    flags = parser.parse_args(arguments)
    if flags.preset == "paper":
        return full_size.main(table.commands(flags.data_dir), flags.data_dir, flags.only, flags.go)
    places = Places(flags.results, flags.work, flags.data_dir)
    runs = [run for run in unique(table.runs()) if full_size.is_chosen(run.name, flags.only)]
    if flags.only and not runs:
        cli.print_error(f"--only {' '.join(flags.only)}: no run is called so (--list names all)")
        return 2
    try:
        if flags.list:
            print("\n".join(f"{run.name}: {state(places, run)}" for run in runs))
            return 0
        failed = run_all(runs, places, flags.budget_minutes)
        print(table.text(places.results))
        return 1 if failed else 0
    except (results.ResultError, OSError) as error:
        cli.print_error(error)
        return 2
    except StoppedError as stopped:
        cli.print_error(str(stopped))
        return stopped.status


def state(places: Places, run: Run) -> str:
    """What there is of a run, in a few words."""
    found = results.find(places.results, run)
    if found is not None and "scores" not in found:
        return "done"
    if found is not None:
        return f"top-1 {found['scores']['top1']:.1%} ({found['seconds']:.0f} s)"
    if why := results.why_stale(places.results, run):
        return f"not run; its result file is of another config: {why}"
    return "begun" if places.folder(run).exists() else "not run"


def run_all(runs: Sequence[Run], places: Places, minutes: float | None = None) -> int:
    """Makes all runs that have no result.

    Args:
      runs: the runs, each after those that it needs (`runs.unique`).
      places: see `Places`.
      minutes: start no run after so many; None: no limit.

    Returns:
      the number of runs that failed or are still missing.
    """
    began, missing = time.monotonic(), 0
    commit()  # Of the code as it is now: this process has it to the end.
    for number, run in enumerate(runs, 1):
        if results.find(places.results, run) is not None:
            continue
        where = f"{number} of {len(runs)}, {run.name}"
        if minutes is not None and time.monotonic() - began > minutes * 60 - 1e-3:
            missing += 1
            continue
        print(f"{where}: {state(places, run)}", file=sys.stderr)
        try:
            complete(run, places)
            print(f"{where}: {state(places, run)}", file=sys.stderr)
        except (KeyboardInterrupt, StoppedError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other runs go on
            print(f"{where}: failed: {cli.one_line(error)}", file=sys.stderr)
            missing += 1
    if missing:
        print(f"{missing} of {len(runs)} runs have no result yet", file=sys.stderr)
    return missing


def complete(run: Run, places: Places) -> None:
    """Makes a run, and before it what it needs; writes the result files that are missing."""
    for need in run.needs:
        # Weights and predictions are not in git: on another machine they are made again.
        if not places.has_outputs(need):
            complete(need, places)
    make = {"train": train, "sum": add_logits, "filters": first_filters}[run.kind]
    with variants.known():
        content = make(run, places)
    if results.find(places.results, run) is None:
        results.write(results.path_of(places.results, run.name), content)


def train(run: Run, places: Places) -> dict[str, Any]:
    """Trains and tests a network, or resumes that; returns the content of its result file."""
    folder = places.folder(run)
    config = dict(run.config)
    dataset, test_split = config["dataset"]["name"], config["test_split"]
    config["dataset"] = config["dataset"] | {"data_dir": places.data}
    # The test is `evaluate_weights`, which keeps the predictions. `train` makes one of a few clips.
    config["test_split"] = f"{test_split}[:5%]" if "[" not in test_split else test_split
    if run.start is not None:
        config["init_from"] = str(starting_weights(run, places))
    compilation.enable_persistent_cache()
    datasets.prepared(dataset, places.data)  # Before the clock starts.
    with clock(folder / "sittings.json"):
        if not (folder / "weights.safetensors").exists():
            loop.train(str(folder), **config)
        scores = test(folder, dataset, test_split, places, folder / "test")
    logged = [line for line in read_log(folder) if "loss" in line]
    speeds = [line["clips_per_second"] for line in logged[1:]]
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    jax.clear_caches()
    return content(run, places, scores) | {
        **files.read_json(folder / "sittings.json"),
        "weights": weights_of(run, places),
        "clips_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "parameters": parameters(folder / "weights.safetensors"),
        "curve": [
            [line["step"], round(line["loss"], 4), round(line["accuracy"], 4)]
            for line in thinned(logged, 40)
        ],
    }


@contextlib.contextmanager
def clock(path: pathlib.Path) -> Iterator[None]:
    """Adds the seconds of a block, and those of all cores, to a file, unless it is killed.

    The file also has how many sittings there were, and the commits of their code.
    """
    earlier = files.read_json(path) if path.exists() else {}
    began, cpu_began = time.time(), time.process_time()
    try:
        yield
    finally:
        spent = {
            "seconds": time.time() - began,
            "cpu_seconds": time.process_time() - cpu_began,
            "sittings": 1,
        }
        sums = {name: round(earlier.get(name, 0) + value, 1) for name, value in spent.items()}
        commits = dict.fromkeys([*earlier.get("commit", "").split(), commit()])
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, sums | {"commit": " ".join(commits)})


def test(
    folder: pathlib.Path, dataset: str, split: str, places: Places, out: pathlib.Path
) -> dict[str, Any]:
    """The paper's test of a run's weights.

    Args:
      folder: the run's.
      dataset: the data set.
      split: its split, or a part of one.
      places: see `Places`.
      out: the folder for the results.

    Returns:
      what scores.json has.
    """
    file = str(folder / "weights.safetensors")
    whole, _, part = split.partition("[")
    if not part:
        return protocol.evaluate_weights(
            out, file, dataset=dataset, data_dir=places.data, split=whole, batch_size=32
        )
    # A part of a split, for choosing: scores alone.
    last = [line for line in read_log(folder) if f"{split}_top1" in line][-1]
    found = {
        name.removeprefix(f"{split}_"): value
        for name, value in last.items()
        if name.startswith(f"{split}_")
    }
    out.mkdir(exist_ok=True)
    files.write_json(out / "scores.json", found)
    return found


def add_logits(run: Run, places: Places) -> dict[str, Any]:
    """Adds the logits of a run's parts; returns the content of its result file."""
    began, folder = time.time(), places.folder(run)
    dataset, tests = run.config["dataset"]["name"], {}
    for part in run.parts:
        own = part.config["dataset"]["name"]
        tests[part.name] = places.folder(part) / "test"
        if own != dataset:  # The same videos with another flow: the sum is of tests on one.
            tests[part.name] = folder / part.name
            test(places.folder(part), dataset, part.config["test_split"], places, tests[part.name])
    scores = evaluations.fuse(list(tests.values()), folder / "test")
    parts = {
        name: {"top1": files.read_json(out / "scores.json")["top1"]} for name, out in tests.items()
    }
    return content(run, places, scores) | {
        "seconds": round(time.time() - began, 1),
        "parts": parts,
    }


def first_filters(run: Run, places: Places) -> dict[str, Any]:
    """The first layer's filters of a run's parts; returns the content of its result file.

    Filters are bytes from 1 to 255, where 128 is zero, each scaled by its own greatest value.
    """
    kernels = {}
    for part in run.parts:
        params = weights.load(places.folder(part) / "weights.safetensors")["params"]
        kernel = np.asarray(params["Conv_1a"]["conv"]["kernel"])
        scaled = kernel / abs(kernel).reshape(-1, kernel.shape[-1]).max(0)
        stored = np.rint(127 * scaled + 128).astype(np.uint8)
        text = base64.b64encode(stored.tobytes()).decode()
        kernels[part.name] = {"shape": kernel.shape, "base64": text}
    return about(run) | made_from(run, places) | {"seconds": 0.0, "filters": kernels}


@functools.cache
def versions() -> dict[str, str]:
    return fingerprint.versions()


def commit() -> str:
    return versions().get("commit", "unknown")


def weights_of(run: Run, places: Places) -> str:
    """A hash of the weights that a run on this machine has."""
    return weights.fingerprint(weights.load(places.folder(run) / "weights.safetensors"))[:16]


def made_from(run: Run, places: Places) -> dict[str, dict[str, str]]:
    """Which weights a run started from, or added the logits of.

    Another machine makes other weights of the same run, and with them other results.
    """
    return {"made_from": {need.name: weights_of(need, places) for need in run.needs}}


def about(run: Run) -> dict[str, Any]:
    """What all result files have."""
    return {
        "name": run.name,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "run": run.description,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }


def content(run: Run, places: Places, scores: dict[str, Any]) -> dict[str, Any]:
    """What the result files of tests have."""
    folder = places.folder(run)
    wanted = {"loss", "clips"} | {
        f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")
    }
    found = (
        about(run)
        | made_from(run, places)
        | {
            "scores": {name: value for name, value in scores.items() if name in wanted},
            "streams": {name: scores[name] for name in ("rgb_top1", "flow_top1") if name in scores},
        }
    )
    if "classes" not in scores:
        return found
    clips = evaluations.read_predictions(folder / "test", scores["classes"]).values()
    matrix = metrics.confusion_matrix(
        np.stack([clip["logits"] for clip in clips]), np.array([clip["label"] for clip in clips])
    )
    return found | {
        "classes": scores["classes"],
        "class_accuracy": [
            round(float(row[number] / row.sum()), 4) for number, row in enumerate(matrix)
        ],
        "confusion": matrix.tolist(),
    }


def starting_weights(run: Run, places: Places) -> pathlib.Path:
    """The file of the weights that a run starts from; inflated ones are made if they must be."""
    assert run.start is not None
    path = places.folder(run.start) / "weights.safetensors"
    if run.inflation == "mean":
        return path  # `train` inflates so.
    made = places.folder(run.start) / f"inflated_{run.inflation}.safetensors"
    if not made.exists():
        _, variables, info = weights.network(path)
        info = dataclasses.replace(info, model="i3d", footprint={"rgb": (16, 1)})
        shapes = jax.eval_shape(
            lambda: metadata.network(info).init(
                jax.random.key(0), np.zeros((1, 16, info.crop, info.crop, 3), np.float32)
            )
        )
        weights.save(made, inflate_params(variables, like=shapes, how=run.inflation), info)
    return made


def parameters(path: pathlib.Path) -> int:
    return sum(leaf.size for leaf in named_leaves(weights.load(path)["params"]).values())


def read_log(folder: pathlib.Path) -> list[dict[str, Any]]:
    lines = files.complete_lines(folder / "log.jsonl", truncate=False)
    return [json.loads(line) for line in lines]


def thinned(lines: list[Any], most: int) -> list[Any]:
    """At most so many of the lines, at equal distances, the last one among them."""
    every = -(-len(lines) // most)
    return lines[::-1][::every][::-1]


def machine() -> dict[str, Any]:
    """The processor, its cores, and how busy it is (processes that ran, on average of a minute)."""
    kind = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        kind = names[0].partition(":")[2].strip() if names else kind
    flags = info.read_text() if info.exists() else ""
    return {
        "processor": kind + (" with AVX-512" if " avx512f" in flags else ""),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "platform": jax.default_backend(),
    }
