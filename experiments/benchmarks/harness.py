"""What the benchmarks share: timing in turns, what a measurement was made on, and how it is told."""

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

# PyTorch needs room on an accelerator, too; before JAX looks for one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def interleaved(
    variants: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds per call of every variant, by round; each returns when it is done.

    The variants take turns, so that a machine that is slow for a while is slow for all, and each is called once, unmeasured, right before
    it is measured: the first call after another program has run can take twice as long.
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
    """Per variant the median and the spread of its seconds, and how many times as fast as variant `than` it is, round by round."""
    return {
        name: {
            "seconds": statistics.median(each),
            "spread": [min(each), max(each)],
            "times_as_fast": statistics.median(
                one / other for one, other in zip(seconds[than], each, strict=True)
            ),
        }
        for name, each in seconds.items()
    }


def spread(each: dict) -> str:
    """The median and the spread of one variant of a `summary`."""
    median, low, high = (
        f"{x:#.3g}" if x < 99.95 else f"{x:.0f}" for x in (each["seconds"], *each["spread"])
    )
    return f"{median} ({low} to {high})"


def parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A command line with what all benchmarks take."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=positive, default=rounds, help=f"default: {rounds}")
    made.add_argument("--json", type=output, help="file for the figures")
    return made


def positive(text: str) -> int:
    """A number on the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def output(text: str) -> pathlib.Path:
    """A file that is to be written: better known now than after an hour that it cannot be."""
    path = pathlib.Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, or in none")
    return path


def table(rows: dict[str, list[str]], heads: list[str]) -> str:
    """Rows by their first cell, as Markdown."""
    lines = [heads, ["---"] * len(heads), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(*packages: str) -> dict:
    """The date, the processor, and the versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu(), "versions": found}


def cpu() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line for line in lines if "model name" in line]
    return models[0].partition(": ")[2] if models else platform.machine()


def tell(text: str, result: dict, about: dict, path: pathlib.Path | None) -> None:
    """Prints a benchmark's text and what it was made on; writes its figures to `path`, if there is one."""
    versions = ", ".join(" ".join(each) for each in about["versions"].items())
    device = f", {about['device']}" if about.get("device", "cpu") != "cpu" else ""
    print(f"{text}\n\n{about['date']}, {about['cpu']}{device}, {versions}")
    if path is not None:
        path.write_text(json.dumps(about | result, indent=2) + "\n")
