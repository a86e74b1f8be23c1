"""The result file of a run: a few kB of JSON with a checksum, so that a changed number is noticed.

A file has: "name", "seed", "fingerprint" and "run" (`Run.description`); "commit" of the code
(several, if it ran in sittings), "versions", "machine" and "date"; "weights", a hash of the trained
ones, and "made_from", those of the runs that it needed; "seconds" of training and test,
"cpu_seconds", the same over all cores, which other programs on the machine hardly change, and
"sittings", in how many; "scores" (`metrics.scores`), "streams", the accuracies of single streams;
"classes", "class_accuracy", and "confusion", the counts of clips by class and predicted class;
"curve", triples of step, loss and accuracy of that step's batch.
"""

import hashlib
import json
import pathlib
from typing import Any

from i3d_jax import files
from paper.runs import Run, differences

FOLDER = pathlib.Path(__file__).parents[1] / "results"


class ResultError(ValueError):
    """A result file that cannot be used."""


def path_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.json"


def checksum(content: dict[str, Any]) -> str:
    """The SHA-256 of a result's content, without its checksum."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a result, a line per entry."""
    content = json.loads(json.dumps(content))
    content["checksum"] = checksum(content)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as written:
        written.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
      ResultError: it is damaged, or was changed by hand.
    """
    try:
        content = files.read_json(path)
    except ValueError as error:
        raise ResultError(str(error)) from None
    if content.get("checksum") != checksum(content):
        raise ResultError(
            f"{path}: changed since it was written (its checksum is another); "
            "take it from git again, or remove it and run it again"
        )
    return content


def find(folder: pathlib.Path, run: Run) -> dict[str, Any] | None:
    """The result of a run; None: there is none, or it is of another config (`why_stale`).

    Raises:
      ResultError: see `read`.
    """
    path = path_of(folder, run.name)
    content = read(path) if path.exists() else None
    return content if content and content["fingerprint"] == run.fingerprint else None


def why_stale(folder: pathlib.Path, run: Run) -> str | None:
    """How the config of a run's result file differs from the run's; None: there is none, or not."""
    path = path_of(folder, run.name)
    if not path.exists():
        return None
    found = differences(read(path)["run"], run.description)
    return "; ".join(found)[:300] or None
