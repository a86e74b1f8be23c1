"""Kills a training run many times, and shows that it still ends with bit-identical results.

    python experiments/kill.py --workdir runs/kill --kills 25 -- \\
        --config=configs/moving_shapes.py:frames --config.steps=200 --config.log_every=1 \\
        --config.checkpoint_every=10 --config.validate_every=50

The arguments after `--` are those of `python -m i3d_jax.main`; log_every must be 1.

The experiment makes the run once undisturbed. Then it starts the same run by one command again and
again, and kills it by SIGKILL. It does so in turn during the start, a step, the writing of a
checkpoint and a validation, each time at a random moment. The last time it lets the run end.

Parameters, optimizer state and log must equal those of the undisturbed run bit for bit, and no line
of the log may occur twice. Prints a Markdown table. The exit status is 1 if anything differs.
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

from i3d_jax import cli, weights
from i3d_jax.inflate import named_leaves

# The moments, and the most seconds between their begin and the kill.
WAITS = {"start": 0, "step": 0.5, "save": 0.05, "validation": 2.0}
MOMENTS = tuple(WAITS)
TIMINGS = "clips_per_second", "input_wait", "memory_mb"


def read_log(workdir: pathlib.Path) -> list[dict]:
    """The logged scalars of a run; a half-written line is left out."""
    path = workdir / "log.jsonl"
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("}")]


def last_logged_step(workdir: pathlib.Path) -> int:
    return max((line["step"] for line in read_log(workdir) if "loss" in line), default=0)


def is_saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half-written: Orbax has not yet renamed it."""
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def is_validating(workdir: pathlib.Path, every: int) -> bool:
    """Whether the last logged step is due for a validation that is not logged yet.

    Args:
      workdir: the run's.
      every: `validate_every` of its config.
    """
    step = last_logged_step(workdir)
    if step == 0 or step % every:
        return False
    return all("loss" in line for line in read_log(workdir) if line["step"] == step)


def last_checkpoint(workdir: pathlib.Path) -> int:
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill(
    command: list[str], workdir: pathlib.Path, moment: str, every: int, rng: random.Random
) -> dict | None:
    """Starts a run and kills it.

    Args:
      command: of the run.
      workdir: the run's.
      moment: one of MOMENTS.
      every: `validate_every` of its config.
      rng: source of the random moment.

    Returns:
      None if the run ended before the moment came. Otherwise "moment"; "start", the step it resumed
      from; "step", the last one it logged; "saving", whether a checkpoint was half-written.
    """
    log, start = workdir / "log.jsonl", last_checkpoint(workdir)
    before = log.stat().st_ino if log.exists() else None
    with (workdir.parent / "errors.txt").open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    until = time.time() + rng.uniform(0.5, 8.0)
    steps = rng.randint(1, 15)

    def has_come() -> bool:
        if moment == "start":
            return time.time() > until
        if not log.exists() or log.stat().st_ino == before:  # The run has not begun.
            return False
        if moment == "validation":
            return is_validating(workdir, every)
        return last_logged_step(workdir) > start + steps and (
            moment == "step" or is_saving(workdir)
        )

    while process.poll() is None and not has_come():
        time.sleep(0.002)
    end = time.time() + rng.uniform(0, WAITS[moment])
    # A short validation may be over sooner, and the run with it.
    while time.time() < end and (moment != "validation" or has_come()):
        time.sleep(0.002)
    ended = process.poll() is not None
    process.kill()
    process.wait()
    if ended:
        return None
    step = last_logged_step(workdir)
    return {"moment": moment, "start": start, "step": step, "saving": is_saving(workdir)}


def state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The leaves of the last checkpoint: parameters, statistics, optimizer state, counts."""
    path = (workdir / "checkpoints" / str(last_checkpoint(workdir)) / "state").absolute()
    with ocp.StandardCheckpointer() as reader:
        return {name: np.asarray(leaf) for name, leaf in named_leaves(reader.restore(path)).items()}


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """The names of all that is not bit-identical in two finished runs.

    Args:
      one: workdir of a run.
      other: workdir of the other one.
    """

    def saved_weights(workdir: pathlib.Path) -> dict[str, np.ndarray]:
        return named_leaves(weights.read(workdir / "weights.safetensors")[0])

    found = []
    for what, read in (("state", state), ("weights", saved_weights)):
        first, second = read(one), read(other)
        for name in {**first, **second}:
            if not np.array_equal(first.get(name), second.get(name)):
                found.append(f"{what}: {name}")
    logs = []
    for run in (one, other):
        untimed = [
            {name: value for name, value in line.items() if name not in TIMINGS}
            for line in read_log(run)
        ]
        keys = [(line["step"], "loss" in line) for line in untimed]
        for step, kind in set(keys):
            if keys.count((step, kind)) > 1:
                found.append(f"{run}: step {step} is logged twice")
        logs.append(untimed)
    return found + ([] if logs[0] == logs[1] else ["the logs"])


def experiment(
    workdir: pathlib.Path, kills: int, arguments: list[str], every: int, seed: int = 0
) -> tuple[list, list]:
    """Makes the undisturbed run and the killed one.

    Args:
      workdir: folder for both.
      kills: number of kills.
      arguments: of `python -m i3d_jax.main`, without --workdir.
      every: `validate_every` of the config.
      seed: of the random moments.

    Returns:
      (the results of `kill`, the `differences` in the end).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # Compiled programs are kept, so that starting takes seconds instead of a minute.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((workdir / "compiled").absolute())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    command = [sys.executable, "-m", "i3d_jax.main", *arguments]
    undisturbed, killed = workdir / "undisturbed", workdir / "killed"
    subprocess.run([*command, f"--workdir={undisturbed}"], check=True)
    rng, done = random.Random(seed), []
    while len(done) < kills:
        kind = MOMENTS[len(done) % len(MOMENTS)]
        found = kill([*command, f"--workdir={killed}"], killed, kind, every, rng)
        if found is None:
            raise SystemExit(f"the run ended after {len(done)} kills; give it more steps")
        done.append(found | {"next": last_checkpoint(killed)})
        print(f"kill {len(done)}: {done[-1]}", file=sys.stderr)
    subprocess.run([*command, f"--workdir={killed}"], check=True)
    return done, differences(undisturbed, killed)


def table(done: list[dict]) -> str:
    """Counts of kills by moment, as Markdown.

    Args:
      done: results of `kill`, each with "next", the step that the next start resumes from.
    """
    heads = (
        "killed",
        "times",
        "of these with a half-written checkpoint",
        "steps repeated, mean and maximum",
    )
    rows = [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    names = "during the start", "in a step", "during a save", "in a validation"
    for moment, name in zip(MOMENTS, names, strict=True):
        of = [each for each in done if each["moment"] == moment]
        if of:
            lost = [each["step"] - each["next"] for each in of]
            saving = sum(each["saving"] for each in of)
            repeated = f"{sum(lost) / len(lost):.1f}, {max(lost)}"
            rows.append(f"| {name} | {len(of)} | {saving} | {repeated} |")
    return "\n".join(rows)


def main() -> int:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="new folder for both runs"
    )
    parser.add_argument("--kills", type=int, default=25, help="number of kills (default: 25)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments (default: 0)"
    )
    parser.add_argument("arguments", nargs="+", help="of python -m i3d_jax.main, without --workdir")
    flags = parser.parse_args()
    if flags.workdir.exists():
        parser.error(f"{flags.workdir} exists")
    given = re.search(r"--config.validate_every=(\d+)", " ".join(flags.arguments))
    every = int(given[1]) if given else 10**9
    done, different = experiment(flags.workdir, flags.kills, flags.arguments, every, flags.seed)
    print(table(done))
    result = f"different: {', '.join(different)}" if different else "bit-identical results"
    print(f"\n{len(done)} kills; {result}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
