"""What a run's config must be, checked before anything is made or compiled."""

import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any

import jax

from i3d_jax import datasets, models
from i3d_jax.datasets import pipeline
from i3d_jax.training import optimizers, validation


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key."""


def validate(config: dict, run: Callable) -> None:
    """Checks a config, the arguments of `run` but `workdir`, before anything is made or compiled.

    Args:
      run: `loop.train`, which says what there is and what is left out.

    Raises:
      ConfigError: names the argument or section that is missing, unknown or does not fit.
    """
    check_arguments("config", run, config, workdir="")
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except TypeError as error:
        raise ConfigError(f"config: {error}; wanted numbers, strings and tuples, dtype='bfloat16' for one") from None
    except UnicodeEncodeError as error:
        raise ConfigError(f"config: ...{error.object[: error.end][-60:]}: not text in UTF-8") from None
    numbers = "steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate", "most_bad"
    check_positive("config", config, *numbers, "norm_group", "validate_every")
    if not 0 <= config.get("seed", 0) < 2**32:
        raise ConfigError(f"config.seed: {config['seed']} is not a whole number from 0 to 2**32 - 1")
    average = config.get("average")
    if average is not None and not 0 < average < 1:
        raise ConfigError(f"config.average: {average!r} is not a number between 0 and 1")
    validate_validation(config)
    profile = config.get("profile", ())
    if profile and not (len(profile) == 2 and min(profile) > 0):
        raise ConfigError(f"config.profile: {profile!r}, wanted (first step, number of steps)")
    given = dict(source=None, batch_size=1, seed=0, start=0, process=0, processes=1)
    check_arguments("config.dataset", datasets.available, config["dataset"])
    check_arguments("config.clips", pipeline.train_batches, config["clips"], **given)
    given = dict(source=None, timing=None, done=(), chunk=None, process=0, processes=1)
    check_arguments("config.test_clips", pipeline.eval_chunks, config["test_clips"], **given)
    validate_optimizer(config["optimizer"])
    check_arguments(
        "config.model", models.build, config["model"], num_classes=1, norm_groups=1, remat=False, fixed=False
    )
    if config["model"]["name"] in models.MODELS:
        check_types("config.model", models.MODELS[config["model"]["name"]].network, config["model"])
    try:
        builder = datasets.available(**config["dataset"])
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


def check_positive(where: str, section: dict, *names: str) -> None:
    """Raises a ConfigError unless those of the numbers that there are, and are not None, are positive."""
    for name in names:
        value = section.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"{where}.{name}: {value!r} is not a positive whole number")


def validate_optimizer(section: dict) -> None:
    """Checks what a config says of the optimiser."""
    check_arguments("config.optimizer", optimizers.sgd, section, batch_size=1, only=None)
    check_positive("config.optimizer", section, "lr_batch_size")
    if section.get("warmup", 0) < 0:
        raise ConfigError(f"config.optimizer.warmup: {section['warmup']} is no number of steps")
    steps = [step for step, _ in section.get("milestones", ())]
    if steps != sorted({step for step in steps if step > 0}):
        raise ConfigError(
            f"config.optimizer.milestones: steps {steps}, wanted positive ones, each above the one before"
        )


def validate_validation(config: dict) -> None:
    """Checks what a config says of validations."""
    best, plateau = config.get("best", "top1"), config.get("plateau")
    if best not in validation.METRICS:
        raise ConfigError(f"config.best: {best!r} is none of {', '.join(validation.METRICS)}")
    if plateau is None:
        return
    check_arguments("config.plateau", validation.reduce_on_plateau, plateau, best=0.0, since=0, scale=1.0, loss=0.0)
    if config.get("validate_every") is None:
        raise ConfigError("config.plateau: needs validations: set config.validate_every")
    check_positive("config.plateau", plateau, "patience")
    for name, good in (("factor", lambda x: 0 < x < 1), ("threshold", lambda x: 0 <= x < 1)):
        if name in plateau and not good(plateau[name]):
            raise ConfigError(f"config.plateau.{name}: {plateau[name]!r} is not a number between 0 and 1")


def validate_splits(builder: datasets.ClipBuilder, config: dict, run: Callable) -> None:
    """Checks that a data set that is prepared has the splits."""
    for name in ("train_split", "test_split", "validation_split"):
        split = config.get(name) or inspect.signature(run).parameters[name].default
        if split is None or name == "validation_split" and config.get("validate_every") is None:
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
    """Checks that a data set has such clips; returns their streams (`pipeline.streams`)."""
    check_positive(where, clips, "batch_size", "threads", "crop", "short_side")
    if clips.get("workers", 0) < 0:
        raise ConfigError(f"{where}.workers: {clips['workers']} is no number of processes")
    side, crop = clips.get("short_side") or builder.SHORT_SIDE, clips["crop"]
    try:
        pipeline.check_even(crop)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from None
    if crop > side:
        raise ConfigError(f"{where}.crop: {crop} pixels of frames whose short side has {side}")
    try:
        streams = pipeline.streams(clips.get("rgb"), clips.get("flow"))
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
        key, batch = jax.random.key(0), models.input_shapes(streams, crop, norm_group or 1)
        keys = {"params": key, "dropout": key}
        jax.eval_shape(functools.partial(network.init, train=norm_group is not None), keys, batch)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def check_arguments(where: str, function: Callable, section: Any, **given: Any) -> None:
    """Checks that `section` can be the keyword arguments of `function`, but for those `given` to it.

    Raises:
      ConfigError: names the section, `where`, and the argument.
    """
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: {section!r}, wanted a section")
    for name in given.keys() & section.keys():
        raise ConfigError(f"{where}.{name}: is not for a config to set")
    try:
        inspect.signature(function).bind(**given, **section)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    check_types(where, function, section)


def check_types(where: str, of: Any, section: dict) -> None:
    """Raises a ConfigError unless values are of the types that a function's arguments, or a class's attributes, are said to be."""
    hints = typing.get_type_hints(of)
    for name, value in section.items():
        if name in hints and not _has_type(value, hints[name]):
            raise ConfigError(f"{where}.{name}: {value!r}, wanted {_describe_type(hints[name])}")


# What a config's values can be.
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    dict: "a section",
    types.NoneType: "None",
}


def _has_type(value: Any, wanted: Any) -> bool:
    parts = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return any(_has_type(value, part) for part in parts)
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, tuple | list):
            return False
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(value) == len(parts) and all(map(_has_type, value, parts))
    if isinstance(value, bool):
        return wanted in (bool, Any)
    if wanted is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return wanted is Any or isinstance(value, wanted)


def _describe_type(wanted: Any) -> str:
    parts = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return " or ".join(map(_describe_type, parts))
    if typing.get_origin(wanted) is tuple:
        inside = [_describe_type(part) for part in parts if part is not ...]
        return f"({', '.join(inside)}{', ...' if ... in parts else ''})"
    return TYPE_NAMES.get(wanted, str(wanted))
