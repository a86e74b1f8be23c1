"""What all benchmarks share: timing variants in turns, summaries, tables and output."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

from i3d_jax import cli

# JAX must leave memory of the accelerator to PyTorch. Set before JAX looks for devices.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def interleaved(
    variants: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Measures variants in turns.

    A machine that is slow for a while is then slow for all of them. Each variant is called once,
    unmeasured, right before it is measured: the first call after another program can take twice as
    long.

    Args:
      variants: functions by name, which return when their work is done.
      rounds: number of measurements of each.
      repeats: calls per measurement.

    Returns:
      seconds per call of every variant, by round.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()  # Compiles.
    for _ in range(rounds):
        for name, variant in variants.items():
            variant()
            began = time.perf_counter()
            for _ in range(repeats):
                variant()
            found[name].append((time.perf_counter() - began) / repeats)
    return found


def summary(seconds: dict[str, list[float]], than: str) -> dict[str, dict]:
    """Summarises the result of `interleaved`.

    Args:
      seconds: that result.
      than: name of the variant that all are compared with.

    Returns:
      for each variant "seconds", the median; "spread", minimum and maximum; and "times_as_fast", the
      median over rounds of the speed relative to `than`.
    """
    found = {}
    for name, each in seconds.items():
        ratios = [one / other for one, other in zip(seconds[than], each, strict=True)]
        found[name] = {
            "seconds": statistics.median(each),
            "spread": [min(each), max(each)],
            "times_as_fast": statistics.median(ratios),
        }
    return found


def spread(each: dict) -> str:
    """The median and the spread of one variant of a `summary`, as text."""
    median, low, high = (
        f"{x:#.3g}" if x < 99.95 else f"{x:.0f}" for x in (each["seconds"], *each["spread"])
    )
    return f"{median} ({low} to {high})"


def parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the arguments that all benchmarks have.

    Args:
      description: the module's docstring.
      rounds: default number of rounds.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--rounds",
        type=cli.positive,
        default=rounds,
        help=f"measurements of each variant (default: {rounds})",
    )
    made.add_argument("--json", type=output, help="file for the results")
    return made


def output(text: str) -> pathlib.Path:
    """A file to write, as `type=` of an argument.

    An impossible path is an error before the measurements, which can take an hour.
    """
    path = pathlib.Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, or in none")
    return path


def table(rows: dict[str, list[str]], heads: list[str]) -> str:
    """A Markdown table.

    Args:
      rows: the other cells of each row by its first cell.
      heads: the column heads.
    """
    lines = [heads, ["---"] * len(heads), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(*packages: str) -> dict:
    """The date, the processor, and the versions of the packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu(), "versions": found}


def cpu() -> str:
    """The name of the processor."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line for line in lines if "model name" in line]
    return models[0].partition(": ")[2] if models else platform.machine()


def report(text: str, result: dict, about: dict, path: pathlib.Path | None) -> None:
    """Prints and writes the results of a benchmark.

    Args:
      text: the tables to print.
      result: the results to write as JSON.
      about: the result of `about`, perhaps with "device".
      path: the file to write; None: no file.
    """
    versions = ", ".join(" ".join(each) for each in about["versions"].items())
    device = f", {about['device']}" if about.get("device", "cpu") != "cpu" else ""
    print(f"{text}\n\n{about['date']}, {about['cpu']}{device}, {versions}")
    if path is not None:
        path.write_text(json.dumps(about | result, indent=2) + "\n")
