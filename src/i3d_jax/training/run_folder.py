"""A run's folder: it belongs to one run, all processes see it, and no other run works in it."""

import contextlib
import inspect
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import jax

from i3d_jax import distributed, files
from i3d_jax.models import MODELS
from i3d_jax.training.config import ConfigError, model_options, sections

# Keys that may differ when a run is resumed. The others make its result.
CHANGEABLE = (
    *("steps", "log_every", "checkpoint_every", "max_to_keep", "profile"),
    *("grad_accum_steps", "remat", "max_skipped_steps", "data_dir", "threads", "workers"),
)
# Keys that may differ between the processes of a run. The profile is the first process's.
PER_PROCESS = "data_dir", "threads", "workers", "profile"
# Keys of earlier versions, which configs in folders and checkpoints of their runs still have.
RENAMED = {
    "accumulate": "grad_accum_steps",
    "average": "ema_decay",
    "best": "best_metric",
    "clips": "train_clips",
    "fixed": "freeze_backbone",
    "init": "init_from",
    "keep": "max_to_keep",
    "most_bad": "max_skipped_steps",
    "norm_group": "norm_group_size",
    "test_clips": "eval_clips",
}
FOLDERS = "checkpoints", "set_aside", "profile", "pretrain"
FILES = "config.json", "log.jsonl", "weights.safetensors", "best.safetensors", ".lock"
PATIENCE = 90.0  # Seconds in which shared storage shows every process what one of them wrote.


@contextlib.contextmanager
def entered(folder: pathlib.Path, config: dict, run: Callable) -> Iterator[None]:
    """Has all processes of a run enter its folder, which is made if it is not there.

    Args:
      folder: the run's.
      config: arguments of `run`, which are written to it.
      run: `loop.train`.

    Raises:
      ConfigError: it is another run's, or another process works in it.
    """
    first = distributed.is_first_process()
    distributed.run_on_all_processes(lambda: check_file_kinds(folder) if first else None)
    patience = 0 if jax.process_count() == 1 else 180
    with distributed.on_first_process(locked(folder, patience)):
        distributed.run_on_all_processes(
            lambda: record_config(folder, config, run) if first else None
        )
        check_shared(folder)
        yield


def has_started(folder: pathlib.Path) -> bool:
    """Whether a run's folder has a checkpoint, or weights that were made from one."""
    return any((folder / "checkpoints").glob("*")) or (folder / "weights.safetensors").exists()


def record_config(folder: pathlib.Path, config: dict, run: Callable) -> None:
    """Writes a run's config to its folder; if the run has started, makes sure that it is the same.

    Args:
      folder: the run's.
      config: the arguments of `run`.
      run: `loop.train`.

    Raises:
      ConfigError: it is another, or its config is damaged.
    """
    path = folder / "config.json"
    own, pretraining = has_started(folder), has_started(folder / "pretrain")
    if path.exists() and (own or pretraining):
        try:
            other = _differences(files.read_json(path), config, run)
        except (ValueError, KeyError, TypeError, AttributeError):
            hint = (
                "move it away, and the same command goes on (checkpoints have the config as well)"
            )
            raise ConfigError(f"{path}: damaged; {hint}") from None
        for name, (earlier, now) in other.items():
            if own or name.startswith("pretrain"):
                raise ConfigError(
                    f"config.{name}: {now!r}, but {folder} was started with {earlier!r}; "
                    "use another workdir"
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
    except (ValueError, KeyError, TypeError, AttributeError):
        return "what it says of its run is damaged"
    for name, (earlier, now) in other.items():
        return f"is of another run: its config.{name} is {earlier!r}, this run's {now!r}"
    return None


def shared_settings(config: dict, run: Callable) -> dict[str, Any]:
    """The values that all processes of a run must share, by key; the config need not be valid."""
    try:
        whole = _with_defaults(config, run)
    except (KeyError, TypeError, AttributeError):  # Of a section that is none, for one.
        whole = json.loads(json.dumps(config, default=repr))
    return {
        f"config.{name}": value
        for name, value in _flatten(whole).items()
        if name.split(".")[-1] not in PER_PROCESS
    }


def check_file_kinds(folder: pathlib.Path) -> None:
    """Checks that what is in a run's folder is as a run has it: files are files, folders folders.

    Raises:
      ConfigError: something else is in the place of one, or the folder's name is not UTF-8.
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
    """Makes sure that all processes see one folder: the first writes a file that each must see.

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
                f"--workdir: process {jax.process_index()} does not see in {folder} "
                "what the first process writes; the workdir must be one folder for all processes"
            )

    try:
        distributed.run_on_all_processes(check)
    finally:
        if distributed.is_first_process():
            mark.unlink()


def locked(folder: pathlib.Path, patience: float = 0) -> contextlib.AbstractContextManager[None]:
    """Makes sure that no other run works in a folder.

    Args:
      folder: the run's.
      patience: seconds to wait for another to end. Shared storage holds the lock of a machine that
        is lost for a while.

    Raises:
      ConfigError: one does.
    """
    busy = ConfigError(f"{folder}: another process is training in it; use another workdir")
    return files.locked_folder(folder, busy, patience)


def _with_defaults(config: dict, run: Callable) -> dict:
    """A config as JSON has it, in today's keys, with the values of all keys that it leaves out.

    So an option that a new version adds, or renames, does not make another run.
    """

    def defaults(function: Callable) -> dict:
        arguments = inspect.signature(function).parameters.values()
        return {each.name: each.default for each in arguments if each.default is not each.empty}

    config = defaults(run) | {RENAMED.get(name, name): value for name, value in config.items()}
    model = config["model"]  # Which need not be a section in a config that is not valid.
    if isinstance(model, dict) and model.get("name") in MODELS:
        config["model"] = model_options(model["name"]) | model
    for name in ("train_clips", "eval_clips", "optimizer"):
        config[name] = defaults(sections()[name].function) | config[name]
    if config["pretrain"] is not None:
        config["pretrain"] = _with_defaults(config["pretrain"], run)
    return json.loads(json.dumps(config))


def _differences(earlier: dict, config: dict, run: Callable) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs are different runs, with the values of both."""
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
        pairs |= (
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return pairs
