"""The paper's own runs: their commands, and what they cost.

Costs are accelerator-hours of one H200 in bfloat16: steps times clips per step, divided by measured
clips per second (docs/performance.md).
"""

import fnmatch
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from i3d_jax import cli, datasets
from i3d_jax.training import config_files

TRAINING = 344.0  # Clips per second: I3D, 64 frames, training, 16 clips at once.
FORWARD = 1356.0  # The same forward, 32 clips at once.
# Forward passes of the older networks, clips per second. Their training was not measured: it is
# taken to be as much slower than a forward pass as I3D's.
FORWARD_OF = {
    "convnet_lstm": 32 / 0.0150,
    "c3d": 32 / 0.00430,
    "two_stream": 32 / 0.00434,
    "fused_two_stream": 32 / 0.00969,
}
MEASURED = "measured with micro-batches of 16 clips"
ESTIMATED = "estimated from the measured forward pass"
IMAGENET = "inception_v1.ckpt"


class Command(NamedTuple):
    """A command of a full-size run.

    Attributes:
      name: what it does.
      line: the words of the command.
      dataset: the data set that it needs.
      hours: accelerator-hours; None: seconds to minutes.
      basis: how the hours were found.
    """

    name: str
    line: tuple[str, ...]
    dataset: str
    hours: float | None = None
    basis: str = ""


def main(commands: Sequence[Command], data_dir: str, only: Sequence[str] | None, go: bool) -> int:
    """Prints the commands and their costs, and runs them if asked and if their data is there.

    Args:
      commands: in the order in which they must run.
      data_dir: folder of prepared data sets.
      only: see `is_chosen`.
      go: whether to run them.

    Returns:
      the exit status: that of the first command that fails, 1 if data is missing, 2 if no command
      has a name of `only`.
    """
    if not commands:
        print("# no full-size runs")
    chosen = [command for command in commands if is_chosen(command.name, only)]
    if only and not chosen:
        cli.print_error(f"--only {' '.join(only)}: no command is called so")
        return 2
    for command in chosen:
        cost = "" if command.hours is None else f": {command.hours:,.1f} h, {command.basis}"
        print(f"# {command.name}{cost}\n{shlex.join(command.line)}\n")
    total = sum(command.hours or 0.0 for command in chosen)
    print(f"# {total:,.0f} accelerator-hours of training in all, on H200s in bfloat16")
    needed = dict.fromkeys(command.dataset for command in chosen)
    problems = {name: lack(name, data_dir) for name in needed}
    missing = {name: why for name, why in problems.items() if why is not None}
    for why in missing.values():
        print(f"# not run: {why}")
    if not go:
        return 0
    for command in chosen:
        if command.dataset in missing:
            continue
        print(f"{command.name}: {shlex.join(command.line)}", file=sys.stderr)
        if status := subprocess.run(command.line, check=False).returncode:
            return status
    return 1 if missing else 0


def is_chosen(name: str, only: Sequence[str] | None) -> bool:
    """Whether a name is one of some, in which "*" is any text; None: all names are."""
    return only is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)


def lack(dataset: str, data_dir: str) -> str | None:
    """Why a data set cannot be used; None: it can."""
    try:
        datasets.available(dataset, data_dir)
    except ValueError as error:
        return str(error)
    return None


def hours_of(config: dict[str, Any], clips_per_second: float) -> float:
    return config["steps"] * config["batch_size"] / clips_per_second / 3600


def basis_of(config: dict[str, Any], clips_per_second: float, how: str) -> str:
    return (
        f"{config['steps']:,} steps of {config['batch_size']} clips at "
        f"{clips_per_second:,.0f} clips/s ({how})"
    )


def kinetics(name: str, data_dir: str, images_first: bool = True) -> Command:
    """Trains a network on Kinetics-400; the run tests itself at its end.

    Args:
      name: of a run of configs/kinetics.py.
      data_dir: folder of prepared data sets.
      images_first: whether it starts from ImageNet's weights.
    """
    config = config_files.load(f"kinetics:{name}").to_dict()
    first = images_first and name != "c3d"
    workdir = f"runs/{name}" if images_first else f"runs/{name}_scratch"
    speed, how = TRAINING, MEASURED
    if name in FORWARD_OF:
        speed = FORWARD_OF[name] * TRAINING / FORWARD
        how = ESTIMATED
    elif name == "i3d_flow":
        how = f"{MEASURED} on RGB"
    line = [
        *("python", "-m", "i3d_jax.main", f"--config=kinetics:{name}", f"--workdir={workdir}"),
        *(f"--config.dataset.data_dir={data_dir}", "--config.model.dtype=bfloat16"),
        f"--config.grad_accum_steps={config['batch_size'] // config['norm_group_size']}",
        *([f"--config.init_from={IMAGENET}"] if first else []),
    ]
    return Command(
        f"train {name}{', ImageNet first' if first else ', from scratch'}",
        tuple(line),
        "kinetics/400",
        hours_of(config, speed),
        basis_of(config, speed, how),
    )


def evaluate(weights: str, dataset: str, split: str, data_dir: str, out: str) -> Command:
    line = ("python", "-m", "i3d_jax.evaluate", "--weights", weights, "--dataset", dataset)
    rest = ("--split", split, "--data-dir", data_dir, "--out", out)
    return Command(f"test {weights} on {dataset}", line + rest, dataset)


def fused(
    rgb: str, flow: str, dataset: str, data_dir: str, split: str = "validation"
) -> list[Command]:
    """Tests two runs, given by their folders, and adds their logits."""
    outs = [run.replace("runs/", "results/") for run in (rgb, flow)]
    both = f"{outs[0]}_and_flow"
    line = ("python", "-m", "i3d_jax.evaluate", "--fuse", *outs, "--out", both)
    return [
        *(
            evaluate(f"{run}/weights.safetensors", dataset, split, data_dir, out)
            for run, out in zip((rgb, flow), outs, strict=True)
        ),
        Command(f"fuse {outs[0]} and {outs[1]}", line, dataset),
    ]


def transfer(
    how: str, data: Sequence[str], data_dir: str, images_first: bool = True
) -> list[Command]:
    """Trains both streams of I3D on smaller data sets, tests them, and adds their logits.

    Args:
      how: "original", "fixed" or "full".
      data: data sets, "ucf101/1".
      data_dir: folder of prepared data sets.
      images_first: whether ImageNet came first.
    """
    kind = "imagenet" if images_first else "scratch"
    found = []
    for dataset in data:
        folders = []
        for stream in ("rgb", "flow"):
            end = "" if stream == "rgb" else ",flow"
            config = config_files.load(f"transfer:{how},{dataset}{end}").to_dict()
            start = f"{stream}_{kind}"
            if how == "original":
                start = IMAGENET if images_first else None
            workdir = f"runs/{dataset.replace('/', '_')}_{how}_{stream}_{kind}"
            # A linear probe computes no gradients but the last layer's.
            speed, known = TRAINING, f"{MEASURED} on RGB"
            if how == "fixed":
                speed, known = FORWARD, ESTIMATED
            accumulated = config["batch_size"] // config["norm_group_size"]
            line = [
                *("python", "-m", "i3d_jax.main", f"--config=transfer:{how},{dataset}{end}"),
                *(f"--workdir={workdir}", f"--config.dataset.data_dir={data_dir}"),
                *("--config.model.dtype=bfloat16", f"--config.grad_accum_steps={accumulated}"),
                *([f"--config.init_from={start}"] if start else []),
            ]
            name = f"{how}, {dataset}, {stream}, from {start or 'scratch'}"
            hours, basis = hours_of(config, speed), basis_of(config, speed, known)
            found.append(Command(name, tuple(line), dataset, hours, basis))
            folders.append(workdir)
        found += fused(folders[0], folders[1], dataset, data_dir, "test")
    return found
