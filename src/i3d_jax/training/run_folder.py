"""A run's folder: that it is of one run, whose processes all see it, and that no other works in it."""

import contextlib
import inspect
import json
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

import jax

from i3d_jax import distributed, files
from i3d_jax.datasets import pipeline
from i3d_jax.training import optimizers
from i3d_jax.training.config import ConfigError

# What may be another in a run that is resumed: the rest makes its result.
CHANGEABLE = (
    *("steps", "log_every", "checkpoint_every", "keep", "profile", "accumulate", "remat", "most_bad"),
    *("data_dir", "threads", "workers"),
)
# What may be another in every process of a run: the rest makes the result, or when processes meet. The first one's profile is made.
PER_PROCESS = "data_dir", "threads", "workers", "profile"
FOLDERS = "checkpoints", "set_aside", "profile", "pretrain"
FILES = "config.json", "log.jsonl", "weights.safetensors", "best.safetensors", ".lock"
PATIENCE = 90.0  # Seconds in which shared storage shows every process what one of them wrote.


def has_started(folder: pathlib.Path) -> bool:
    """Whether a run's folder has anything that another run would not have: a checkpoint, or what was made from it."""
    return any((folder / "checkpoints").glob("*")) or (folder / "weights.safetensors").exists()


def record_config(folder: pathlib.Path, config: dict, run: Callable) -> None:
    """Writes a run's config, the arguments of `run`, to its folder or, if the run has begun, makes sure that this is the same one.

    Raises:
      ConfigError: it is another, or its config is damaged.
    """
    path = folder / "config.json"
    own, pretraining = has_started(folder), has_started(folder / "pretrain")
    if path.exists() and (own or pretraining):
        try:
            other = _differences(files.read_json(path), config, run)
        except (ValueError, KeyError, TypeError):
            hint = "move it away, and the same command goes on (checkpoints say too of which run they are)"
            raise ConfigError(f"{path}: damaged; {hint}") from None
        for name, (earlier, now) in other.items():
            if own or name.startswith("pretrain"):
                raise ConfigError(
                    f"config.{name}: {now!r}, but {folder} was started with {earlier!r}; use another workdir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, config)


def why_another_run(about: Any, config: dict, run: Callable) -> str | None:
    """Why a checkpoint is not one of the run of a config, the arguments of `run`; None: it is.

    Args:
      about: what the checkpoint says of what made it; its "config" is that of its run.
    """
    try:
        other = _differences(about["config"], config, run)
    except (ValueError, KeyError, TypeError):
        return "what it says of its run is damaged"
    for name, (earlier, now) in other.items():
        return f"is of another run: its config.{name} is {earlier!r}, this run's {now!r}"
    return None


def shared_settings(config: dict, run: Callable) -> dict[str, Any]:
    """Of a config, which need not be a valid one, what all processes of its run must have alike, by key."""
    try:
        whole = _with_defaults(config, run)
    except (KeyError, TypeError):  # Of a section that is none, for one.
        whole = json.loads(json.dumps(config, default=repr))
    return {
        f"config.{name}": value for name, value in _flatten(whole).items() if name.split(".")[-1] not in PER_PROCESS
    }


def check_file_kinds(folder: pathlib.Path) -> None:
    """Raises a ConfigError if there is another thing in the place of a run's folder, or of a file or folder in it, or if its name
    cannot be written in UTF-8.
    """
    try:
        files.check_utf8(os.path.abspath(folder))
    except ValueError:
        raise ConfigError(
            f"--workdir: {os.path.abspath(folder)}: not a name in UTF-8, which checkpoints need"
        ) from None
    for path in (folder, *(folder / name for name in FOLDERS)):
        if os.path.lexists(path) and not path.is_dir():
            raise ConfigError(f"{path}: is no folder, as it is in a run; move it away")
    for path in (folder / name for name in FILES):
        if os.path.lexists(path) and not path.is_file():
            raise ConfigError(f"{path}: is no file, as it is in a run; move it away")


def check_shared(folder: pathlib.Path) -> None:
    """Makes sure that the workdirs of all processes are one folder: each must see a file that the first one writes.

    Raises:
      ConfigError: this process does not see it.
    """
    if jax.process_count() == 1:
        return
    mark = folder / f".shared.{distributed.all_gather_text(secrets.token_hex(8))[0]}"

    def write() -> None:
        for stale in folder.glob(".shared.*"):  # Of a run that was killed.
            stale.unlink()
        mark.touch()

    distributed.run_on_all_processes(lambda: write() if distributed.is_first_process() else None)
    distributed.wait_for_all(mark.exists, PATIENCE)

    def check() -> None:
        if not mark.exists():
            raise ConfigError(
                f"--workdir: process {jax.process_index()} does not see in {folder} what the first process writes; "
                "the workdir must be one folder for all processes"
            )

    try:
        distributed.run_on_all_processes(check)
    finally:
        if distributed.is_first_process():
            mark.unlink()


def locked(folder: pathlib.Path, patience: float = 0) -> contextlib.AbstractContextManager[None]:
    """Makes sure that no other run works in a folder.

    Args:
      patience: seconds to wait for another to end. Of a machine that is lost, shared storage holds the lock for a while.

    Raises:
      ConfigError: one does.
    """
    busy = ConfigError(f"{folder}: another process is training in it; use another workdir")
    return files.locked_folder(folder, busy, patience)


def _with_defaults(config: dict, run: Callable) -> dict:
    """A config as JSON has it, with what it leaves out: an option that a new version has makes no other run."""

    def defaults(function: Callable) -> dict:
        arguments = inspect.signature(function).parameters.values()
        return {each.name: each.default for each in arguments if each.default is not each.empty}

    config = defaults(run) | config
    for name, function in (
        ("clips", pipeline.train_batches),
        ("test_clips", pipeline.eval_chunks),
        ("optimizer", optimizers.sgd),
    ):
        config[name] = defaults(function) | config[name]
    if config["pretrain"] is not None:
        config["pretrain"] = _with_defaults(config["pretrain"], run)
    return json.loads(json.dumps(config))


def _differences(earlier: dict, config: dict, run: Callable) -> dict[str, tuple[Any, Any]]:
    """By key, where an earlier config makes another run than a config does, and the values of both."""
    before, now = (_flatten(_with_defaults(each, run)) for each in (earlier, config))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {
        name: (before.get(name), now.get(name))
        for name in changed
        if name.split(".")[-1] not in CHANGEABLE or name == "pretrain.steps"
    }


def _flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    pairs = {}
    for name, value in config.items():
        pairs |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return pairs
