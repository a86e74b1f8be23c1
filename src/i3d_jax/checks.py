"""What a run's config must be, checked before anything is made or compiled; and that a folder is of one run."""

import contextlib
import functools
import inspect
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from i3d_jax import data, datasets, files, models, optimizers, validation

# What may be another in a run that is resumed: the rest makes its result.
CHANGEABLE = (
    *("steps", "log_every", "checkpoint_every", "keep", "profile", "accumulate", "remat", "most_bad"),
    *("data_dir", "threads", "workers"),
)


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key."""


def note_config(folder: pathlib.Path, config: dict) -> None:
    """Writes a run's config to its folder or, if it is there, makes sure that this is the same run.

    Raises:
      ConfigError: it is another, or its config is damaged.
    """
    path = folder / "config.json"
    if path.exists():
        try:
            earlier, now = _flat(files.read_json(path)), _flat(json.loads(json.dumps(config)))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for name in {**earlier, **now}:
            changeable = name.split(".")[-1] in CHANGEABLE and name != "pretrain.steps"
            if earlier.get(name) != now.get(name) and not changeable:
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
    return files.locked(folder / ".lock", busy, patience)


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    pairs = {}
    for name, value in config.items():
        pairs |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return pairs


def validate(config: dict, run: Callable) -> None:
    """Checks a config, the arguments of `run` but `workdir`, before anything is made or compiled.

    Args:
      run: `train.train`, which says what there is and what is left out.

    Raises:
      ConfigError: names the argument or section that is missing, unknown or does not fit.
    """
    bind("config", run, config, workdir="")
    numbers = "steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate", "most_bad"
    for name in (*numbers, "norm_group", "validate_every"):
        value = config.get(name, 1)
        if not (is_count(value) or name not in numbers and value is None):
            raise ConfigError(f"config.{name}: {value!r} is not a positive whole number")
    for name in ("remat", "fixed"):
        if not isinstance(config.get(name, False), bool):
            raise ConfigError(f"config.{name}: {config[name]!r} is neither True nor False")
    average = config.get("average")
    if average is not None and not (isinstance(average, float) and 0 < average < 1):
        raise ConfigError(f"config.average: {average!r} is not a number between 0 and 1")
    try:
        json.dumps(config)
    except TypeError as error:
        raise ConfigError(f"config: {error}; wanted numbers, strings and tuples, dtype='bfloat16' for one") from None
    validate_validation(config)
    profile = config.get("profile", ())
    if profile and not (isinstance(profile, tuple | list) and len(profile) == 2 and all(map(is_count, profile))):
        raise ConfigError(f"config.profile: {profile!r}, wanted (first step, number of steps)")
    given = dict(source=None, batch_size=1, seed=0, start=0, process=0, processes=1)
    bind("config.dataset", datasets.readable, config["dataset"])
    bind("config.clips", data.train_batches, config["clips"], **given)
    given = dict(source=None, timing=None, done=(), chunk=None, process=0, processes=1)
    bind("config.test_clips", data.test_pieces, config["test_clips"], **given)
    bind("config.optimizer", optimizers.sgd, config["optimizer"], batch_size=1, only=None)
    for name, value in config["optimizer"].items():
        if name != "milestones" and not (is_number(value) or value is None and name == "lr_batch_size"):
            raise ConfigError(f"config.optimizer.{name}: {value!r} is not a number")
    size = config["optimizer"].get("lr_batch_size")
    if size is not None and not is_count(size):
        raise ConfigError(f"config.optimizer.lr_batch_size: {size!r} is no number of clips")
    bind("config.model", models.build, config["model"], num_classes=1, norm_groups=1, remat=False, fixed=False)
    try:
        builder = datasets.readable(**config["dataset"])
        network = models.build(num_classes=1, norm_groups=1, **config["model"])
    except ValueError as error:
        raise ConfigError(f"config: {error}") from None
    if builder.final.exists():
        validate_splits(builder, config, run)
    if config["model"]["name"] == "two_stream_i3d":
        raise ConfigError(
            "config.model.name: two_stream_i3d's streams are trained separately, as i3d, and fused by i3d_jax.evaluate"
        )
    streams = validate_clips("config.clips", config["clips"], builder)
    test_streams = validate_clips("config.test_clips", config["test_clips"], builder)
    same = [set(config[section]) & {"rgb", "flow"} for section in ("clips", "test_clips")]
    if same[0] != same[1]:
        raise ConfigError(f"config.test_clips: have {sorted(same[1])}, but config.clips have {sorted(same[0])}")
    batch_size, test_batch_size = config["batch_size"], config["test_clips"]["batch_size"]
    accumulate, norm_group = config.get("accumulate", 1), config.get("norm_group")
    if accumulate > 1 and norm_group is None:
        raise ConfigError(
            "config.norm_group: is needed, as parts of a batch (accumulate) have no statistics of the whole"
        )
    for name, size, what, part in (
        ("batch_size", batch_size, "accumulate", accumulate),
        ("batch_size", batch_size // accumulate, "norm_group", norm_group or batch_size // accumulate),
        ("batch_size", batch_size // accumulate, "the number of devices", jax.device_count()),
        ("test_clips.batch_size", test_batch_size, "the number of devices", jax.device_count()),
    ):
        if size % part:
            whole = f"{size}" if accumulate == 1 or what == "accumulate" else f"{size} clips per part"
            raise ConfigError(f"config.{name}: {whole} cannot be divided by {what}, {part}")
    if config.get("fixed") and config.get("init") is None and config.get("pretrain") is None:
        raise ConfigError(
            "config.fixed: what is before the last layer is not trained: config.init must say where it is from"
        )
    if config.get("pretrain") is not None and config.get("init") is not None:
        raise ConfigError("config.pretrain and config.init: only one can say what to start from")
    # After the numbers, as networks take seconds to be traced.
    validate_network("config.clips", streams, config["clips"]["crop"], network, norm_group or batch_size)
    validate_network("config.test_clips", test_streams, config["test_clips"]["crop"], network)
    if config.get("pretrain") is not None:
        try:
            validate(config["pretrain"], run)
        except ValueError as error:
            raise ConfigError(f"config.pretrain: {error}") from None


def is_count(value: Any) -> bool:
    """Whether it is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def validate_validation(config: dict) -> None:
    """Checks what a config says of validations."""
    best, plateau = config.get("best", "top1"), config.get("plateau")
    if best not in list(validation.METRICS):
        raise ConfigError(f"config.best: {best!r} is none of {', '.join(validation.METRICS)}")
    if plateau is None:
        return
    if not isinstance(plateau, dict):
        raise ConfigError(f"config.plateau: {plateau!r}, wanted a section")
    bind("config.plateau", validation.scaled, plateau, best=0.0, since=0, scale=1.0, loss=0.0)
    if config.get("validate_every") is None:
        raise ConfigError("config.plateau: needs validations: set config.validate_every")
    for name, good in (("factor", lambda x: 0 < x < 1), ("patience", is_count), ("threshold", lambda x: 0 <= x < 1)):
        value = plateau.get(name)
        if value is not None and not (isinstance(value, int | float) and good(value)):
            wanted = "a positive whole number" if name == "patience" else "a number between 0 and 1"
            raise ConfigError(f"config.plateau.{name}: {value!r} is not {wanted}")


def validate_splits(builder: datasets.ClipBuilder, config: dict, run: Callable) -> None:
    """Checks that a data set that is prepared has the splits."""
    for name in ("train_split", "test_split", "validation_split"):
        split = config.get(name) or inspect.signature(run).parameters[name].default
        if split is None:
            continue
        if split.partition("[")[0] not in builder.info.splits:
            raise ConfigError(
                f"config.{name}: the data set has no split {split!r}; there are {', '.join(builder.info.splits)}"
            )
        try:
            number = builder.info.splits[split].num_examples
        except (ValueError, KeyError, AssertionError) as error:
            raise ConfigError(f"config.{name}: {split!r}: {' '.join(str(error).split())[:200]}") from None
        if not number:
            raise ConfigError(f"config.{name}: {split!r} has no clips")


def validate_clips(where: str, clips: dict, builder: datasets.ClipBuilder) -> dict[str, tuple[int, int]]:
    """Checks that a data set has such clips; returns their streams (`data.streams`)."""
    for name in ("batch_size", "threads", "crop"):
        value = clips.get(name, 1)
        if not is_count(value):
            raise ConfigError(f"{where}.{name}: {value!r} is not a positive whole number")
    workers = clips.get("workers", 0)
    if not (isinstance(workers, int) and workers >= 0):
        raise ConfigError(f"{where}.workers: {workers!r} is not a whole number of processes")
    side, crop = clips.get("short_side") or builder.SHORT_SIDE, clips["crop"]
    try:
        data.even(crop)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from None
    if crop > side:
        raise ConfigError(f"{where}.crop: {crop} pixels of frames whose short side has {side}")
    try:
        streams = data.streams(clips.get("rgb"), clips.get("flow"))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    lacking = [stream for stream in streams if stream not in builder.streams]
    if lacking:
        raise ConfigError(f"{where}: the data set has no {lacking[0]}")
    if clips.get("short_side") and "flow" in streams:
        raise ConfigError(f"{where}: short_side: flow cannot be resized")
    return streams


def validate_network(
    where: str, streams: dict[str, tuple[int, int]], crop: int, network: models.Network, norm_group: int | None = None
) -> None:
    """Checks that a network takes clips of these streams; in training if there is a `norm_group`."""
    try:
        if norm_group is None:  # Of a test video the whole ticks are used.
            timing = network.timing
            most = {stream: frames for stream, (frames, _) in streams.items()}
            for stream, frames in most.items():
                if frames < (least := timing.least * timing.frames(stream)):
                    raise ValueError(f"{stream}: {frames} frames, and the network takes {least} at least")
            ticks = timing.ticks(most, most)
            streams = {stream: (ticks * timing.frames(stream), 1) for stream in streams}
        key, batch = jax.random.key(0), models.example(streams, crop, norm_group or 1)
        keys = {"params": key, "dropout": key}
        jax.eval_shape(functools.partial(network.init, train=norm_group is not None), keys, batch)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def bind(where: str, function: Callable, section: dict, **given: Any) -> None:
    """Checks that `section` can be the keyword arguments of `function`, but for those `given` to it.

    Raises:
      ConfigError: names the section, `where`, and the argument.
    """
    for name in given.keys() & section.keys():
        raise ConfigError(f"{where}.{name}: is not for a config to set")
    try:
        inspect.signature(function).bind(**given, **section)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
