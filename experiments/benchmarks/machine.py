"""What a measurement was made on."""

import contextlib
import importlib.metadata
import pathlib
import platform
import time


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


def line(about: dict) -> str:
    """`about` for below a table."""
    return f"{about['date']}, {about['cpu']}, {', '.join(' '.join(each) for each in about['versions'].items())}"
