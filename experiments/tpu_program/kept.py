"""The file of `tpu_compile.py --json`: what the compiler made of programs, by their hash."""

import json
import pathlib
from typing import Any

from i3d_jax import cli, files


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The programs of a file, in the order in which they were compiled.

    Raises:
      ValueError: it cannot be read, or is no such file.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(cli.one_line(error)) from None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    rows = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(row, dict) and "program" in row for row in rows):
        raise ValueError(f"{path}: is no file of tpu_compile.py --json")
    return found


def write(path: pathlib.Path, programs: dict[str, dict[str, Any]]) -> None:
    with files.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(programs, indent=1) + "\n")
