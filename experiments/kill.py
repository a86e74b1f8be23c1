"""Kills a training run again and again, and shows that it ends as if nothing had been.

    python experiments/kill.py --workdir runs/kill --kills 25 -- --config=configs/moving_shapes.py:frames \
        --config.steps=200 --config.checkpoint_every=10 --config.validate_every=50 --config.log_every=1

What comes after `--` are arguments of `python -m i3d_jax.main`; log_every must be 1. The run is made once undisturbed. Then it is started again
and again by one command, and killed by SIGKILL: while it starts, in a step, while a checkpoint is written, in a
validation, in turn, each at a random moment of it. At last it may end. Parameters, optimiser state and everything that is logged must be those of
the undisturbed run to the bit, with no line twice. Prints a Markdown table; exit status 1 if anything differs.
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

from i3d_jax import weights
from i3d_jax.inflate import named_leaves

MOMENTS = "start", "step", "save", "validation"
TIMINGS = "clips_per_second", "input_wait", "memory_mb"


def lines(workdir: pathlib.Path) -> list[dict]:
    """What a run has logged, whole lines only."""
    path = workdir / "log.jsonl"
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("}")]


def step_of(workdir: pathlib.Path) -> int:
    return max((line["step"] for line in lines(workdir) if "loss" in line), default=0)


def is_saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half-written: not Orbax's last rename yet."""
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def is_validating(workdir: pathlib.Path, every: int) -> bool:
    """Whether a step has been logged that a validation follows, and that has not been logged."""
    step = step_of(workdir)
    return (
        step > 0
        and step % every == 0
        and not any("loss" not in x for x in lines(workdir) if x["step"] == step)
    )


def last_checkpoint(workdir: pathlib.Path) -> int:
    return max(
        (int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()),
        default=0,
    )


def kill(
    command: list[str], workdir: pathlib.Path, moment: str, every: int, rng: random.Random
) -> dict | None:
    """Starts a run and kills it at such a moment; None: it ended before one came.

    Returns:
      "moment"; "start" and "step", the step it went on from and the last one it logged; "saving", whether a checkpoint was
      half-written.
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
        if not log.exists() or log.stat().st_ino == before:  # It has not begun.
            return False
        if moment == "validation":
            return is_validating(workdir, every)
        return step_of(workdir) > start + steps and (moment == "step" or is_saving(workdir))

    while process.poll() is None and not has_come():
        time.sleep(0.002)
    time.sleep(rng.uniform(0, {"start": 0, "step": 0.5, "save": 0.05, "validation": 2.0}[moment]))
    ended = process.poll() is not None
    process.kill()
    process.wait()
    return (
        None
        if ended
        else {
            "moment": moment,
            "start": start,
            "step": step_of(workdir),
            "saving": is_saving(workdir),
        }
    )


def state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The last checkpoint's leaves: parameters, statistics, optimiser state, counts."""
    path = (workdir / "checkpoints" / str(last_checkpoint(workdir)) / "state").absolute()
    with ocp.StandardCheckpointer() as reader:
        return {name: np.asarray(leaf) for name, leaf in named_leaves(reader.restore(path)).items()}


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What is not the same to the bit in two runs' ends."""
    found = []
    for what, read in (
        ("state", state),
        ("weights", lambda run: named_leaves(weights.read(run / "weights.safetensors")[0])),
    ):
        first, second = read(one), read(other)
        found += [
            f"{what}: {n}"
            for n in {**first, **second}
            if not np.array_equal(first.get(n), second.get(n))
        ]
    logs = []
    for run in (one, other):
        untimed = [
            {name: value for name, value in line.items() if name not in TIMINGS}
            for line in lines(run)
        ]
        keys = [(line["step"], "loss" in line) for line in untimed]
        found += [
            f"{run}: step {step} is logged twice"
            for step, kind in set(keys)
            if keys.count((step, kind)) > 1
        ]
        logs.append(untimed)
    return found + ([] if logs[0] == logs[1] else ["the logs"])


def experiment(
    workdir: pathlib.Path, kills: int, arguments: list[str], every: int, seed: int = 0
) -> tuple[list, list]:
    """Returns what `kill` did, and the differences in the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    # Starting takes seconds then, not a minute.
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
            raise SystemExit(f"the run ended after {len(done)} kills; it takes more steps")
        done.append(found | {"next": last_checkpoint(killed)})
        print(f"kill {len(done)}: {done[-1]}", file=sys.stderr)
    subprocess.run([*command, f"--workdir={killed}"], check=True)
    return done, differences(undisturbed, killed)


def table(done: list[dict]) -> str:
    rows = [
        "| killed | times | of these with a half-written checkpoint | steps made again, mean and most |",
        "|---|---|---|---|",
    ]
    names = {
        "start": "while it starts",
        "step": "in a step",
        "save": "while it saves",
        "validation": "in a validation",
    }
    for moment, name in names.items():
        of = [each for each in done if each["moment"] == moment]
        if of:
            lost = [each["step"] - each["next"] for each in of]
            saving = sum(each["saving"] for each in of)
            rows.append(
                f"| {name} | {len(of)} | {saving} | {sum(lost) / len(lost):.1f}, {max(lost)} |"
            )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="folder for both runs; must not exist"
    )
    parser.add_argument("--kills", type=int, default=25, help="default: 25")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("arguments", nargs="+", help="of python -m i3d_jax.main, but --workdir")
    flags = parser.parse_args()
    if flags.workdir.exists():
        parser.error(f"{flags.workdir} exists")
    every = re.search(r"--config.validate_every=(\d+)", " ".join(flags.arguments))
    done, different = experiment(
        flags.workdir, flags.kills, flags.arguments, int(every[1]) if every else 10**9, flags.seed
    )
    print(table(done))
    print(
        f"\n{len(done)} kills; "
        + (f"different: {', '.join(different)}" if different else "the same to the bit")
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
