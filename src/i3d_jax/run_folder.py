"""A run's folder: that it is of one run, and that one process works in it."""

import contextlib
import inspect
import json
import pathlib
from collections.abc import Callable
from typing import Any

from i3d_jax import data, files, optimizers
from i3d_jax.checks import ConfigError

# What may be another in a run that is resumed: the rest makes its result.
CHANGEABLE = (
    *("steps", "log_every", "checkpoint_every", "keep", "profile", "accumulate", "remat", "most_bad"),
    *("data_dir", "threads", "workers"),
)


def begun(folder: pathlib.Path) -> bool:
    """Whether a run's folder has anything that another run would not have: a checkpoint, or what was made from it."""
    return any((folder / "checkpoints").glob("*")) or (folder / "weights.safetensors").exists()


def note(folder: pathlib.Path, config: dict, run: Callable) -> None:
    """Writes a run's config, the arguments of `run`, to its folder or, if the run has begun, makes sure that this is the same one.

    Raises:
      ConfigError: it is another, or its config is damaged.
    """
    path = folder / "config.json"
    own, pretraining = begun(folder), begun(folder / "pretrain")
    if path.exists() and (own or pretraining):
        try:
            earlier, now = (_flat(_whole(each, run)) for each in (files.read_json(path), config))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except (KeyError, TypeError):
            raise ConfigError(f"{path}: damaged") from None
        for name in {**earlier, **now}:
            changeable = name.split(".")[-1] in CHANGEABLE and name != "pretrain.steps"
            fixed = (own or pretraining and name.startswith("pretrain")) and not changeable
            if earlier.get(name) != now.get(name) and fixed:
                raise ConfigError(
                    f"config.{name}: {now.get(name)!r}, but {folder} was started with {earlier.get(name)!r}; "
                    "use another workdir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, config)


def only_process(folder: pathlib.Path, patience: float = 0) -> contextlib.AbstractContextManager[None]:
    """Makes sure that no other run works in a folder.

    Args:
      patience: seconds to wait for another to end. Of a machine that is lost, shared storage holds the lock for a while.

    Raises:
      ConfigError: one does.
    """
    busy = ConfigError(f"{folder}: another process is training in it; use another workdir")
    return files.locked_folder(folder, busy, patience)


def _whole(config: dict, run: Callable) -> dict:
    """A config as JSON has it, with what it leaves out: an option that a new version has makes no other run."""

    def defaults(function: Callable) -> dict:
        arguments = inspect.signature(function).parameters.values()
        return {each.name: each.default for each in arguments if each.default is not each.empty}

    config = defaults(run) | config
    for name, function in (
        ("clips", data.train_batches),
        ("test_clips", data.test_pieces),
        ("optimizer", optimizers.sgd),
    ):
        config[name] = defaults(function) | config[name]
    if config["pretrain"] is not None:
        config["pretrain"] = _whole(config["pretrain"], run)
    return json.loads(json.dumps(config))


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    pairs = {}
    for name, value in config.items():
        pairs |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return pairs
