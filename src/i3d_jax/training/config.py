"""Checks a run's config before anything is made or compiled.

A config's keys are the arguments of `loop.train`, and each of its sections holds the arguments of
one function (`sections`): their signatures and docstrings say what there is.
"""

import dataclasses
import difflib
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from i3d_jax import datasets, models
from i3d_jax.datasets import pipeline
from i3d_jax.models import Network
from i3d_jax.training import optimizers, validation


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key."""


class Section(NamedTuple):
    """What a config's section is.

    Attributes:
      function: whose arguments it holds; the class of networks for "model".
      given: arguments that the run itself sets, with values of the right kind.
    """

    function: Callable
    given: dict[str, Any]


def sections(model: str | None = None) -> dict[str, Section]:
    """The sections of a config by name.

    Args:
      model: name of the run's network, whose own options "model" then has; None: those of all.
    """
    of_processes = {"source": None, "process": 0, "processes": 1}
    network = models.MODELS[model].network if model in models.MODELS else Network
    given = {"num_classes": 1, "norm_group_size": 1, "remat": False, "freeze_backbone": False}
    train = of_processes | {"batch_size": 1, "seed": 0, "start": 0}
    evaluation = of_processes | {"timing": None, "done": (), "chunk": None}
    plateau = {"best": 0.0, "since": 0, "scale": 1.0, "loss": 0.0}
    return {
        "model": Section(network, given),
        "dataset": Section(datasets.available, {}),
        "train_clips": Section(pipeline.train_batches, train),
        "eval_clips": Section(pipeline.eval_chunks, evaluation),
        "optimizer": Section(optimizers.sgd, {"batch_size": 1, "only": None}),
        "plateau": Section(validation.reduce_on_plateau, plateau),
    }


def validate(config: dict, run: Callable) -> None:
    """Checks a config before anything is made or compiled.

    Args:
      config: the arguments of `run` but `workdir`.
      run: `loop.train`, whose signature says what there is and what may be left out.

    Raises:
      ConfigError: names the key that is missing, unknown, or does not fit.
    """
    check_arguments("config", run, config, workdir="")
    _check_json(config)
    _check_numbers(config)
    _check_validation(config)
    _check_sections(config)
    _check_start(config)
    builder, network = _data_set_and_network(config)
    if builder.final.exists():
        check_splits(builder, config, run)
    streams, eval_streams = _check_streams(config, builder)
    _check_batch_sizes(config)
    # After the numbers, as networks take seconds to be traced.
    clips = config["norm_group_size"] if config.get("norm_group_size") else config["batch_size"]
    crop, eval_crop = config["train_clips"]["crop"], config["eval_clips"]["crop"]
    _check_network("config.train_clips", streams, crop, network, clips)
    _check_network("config.eval_clips", eval_streams, eval_crop, network)
    if config.get("pretrain") is not None:
        try:
            validate(config["pretrain"], run)
        except ValueError as error:
            raise ConfigError(f"config.pretrain: {error}") from None


def validate_clips(config: dict, builder: datasets.ClipBuilder, run: Callable) -> None:
    """Checks what a config says of its clips, and nothing that depends on the machine.

    Args:
      config: the arguments of `run` but `workdir`.
      builder: of its data set, which is prepared.
      run: `loop.train`.

    Raises:
      ConfigError: as in `validate`.
    """
    check_arguments("config", run, config, workdir="")
    _check_numbers(config)
    for name in ("dataset", "train_clips", "eval_clips"):
        _check_section(name, config[name])
    check_splits(builder, config, run)
    _check_streams(config, builder)


def check_splits(builder: datasets.ClipBuilder, config: dict, run: Callable) -> None:
    """Checks that a data set that is prepared has the splits.

    Args:
      builder: of the data set.
      config: a run's.
      run: `loop.train`, which says what the splits are by default.

    Raises:
      ConfigError: it has not, or a split has no clips.
    """
    for name in ("train_split", "test_split", "validation_split"):
        split = config.get(name) or inspect.signature(run).parameters[name].default
        unused = name == "validation_split" and config.get("validate_every") is None
        if split is None or unused:
            continue
        if split.partition("[")[0] not in builder.info.splits:
            there = ", ".join(builder.info.splits)
            raise ConfigError(
                f"config.{name}: the data set has no split {split!r}; there are {there}"
            )
        try:
            number = builder.info.splits[split].num_examples
        except (ValueError, KeyError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"config.{name}: {split!r}: {reason}") from None
        if not number:
            raise ConfigError(f"config.{name}: {split!r} has no clips")


def check_arguments(where: str, function: Callable, section: Any, **given: Any) -> None:
    """Checks that a section can be the keyword arguments of a function.

    Args:
      where: the section's name, for errors.
      function: which takes them.
      section: a dictionary.
      given: arguments that the run itself sets.

    Raises:
      ConfigError: names the section and the argument.
    """
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: {section!r}, wanted a section")
    for name in given.keys() & section.keys():
        raise ConfigError(f"{where}.{name}: is not for a config to set")
    parameters = inspect.signature(function).parameters.values()
    named = [
        each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        check_keys(where, section, [each.name for each in named if each.name not in given])
    for each in named:
        if each.default is each.empty and each.name not in {**given, **section}:
            raise ConfigError(f"{where}.{each.name}: is missing")
    check_types(where, function, section)


def check_keys(where: str, section: dict, known: Sequence[str]) -> None:
    """Raises a ConfigError, which names the nearest known key, if a section has an unknown one."""
    for name in section:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{where}: there is no key {name!r}; {hint}there are {', '.join(known)}"
            )


def check_types(where: str, annotated: Any, section: dict) -> None:
    """Checks values against the annotations of a function's arguments, or a class's attributes.

    Args:
      where: the section's name, for errors.
      annotated: a function or class.
      section: values by name.

    Raises:
      ConfigError: names the value that is of another type.
    """
    hints = typing.get_type_hints(annotated)
    for name, value in section.items():
        if name in hints and not _has_type(value, hints[name]):
            raise ConfigError(f"{where}.{name}: {value!r}, wanted {describe_type(hints[name])}")


def check_positive(where: str, section: dict, *names: str) -> None:
    """Raises a ConfigError unless the numbers called so are positive, or missing, or None."""
    for name in names:
        value = section.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"{where}.{name}: {value!r} is not a positive whole number")


def _check_json(config: dict) -> None:
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except TypeError as error:
        wanted = "numbers, strings and tuples, dtype='bfloat16' for one"
        raise ConfigError(f"config: {error}; wanted {wanted}") from None
    except UnicodeEncodeError as error:
        text = error.object[: error.end][-60:]
        raise ConfigError(f"config: ...{text}: not text in UTF-8") from None


def _check_numbers(config: dict) -> None:
    numbers = "steps", "batch_size", "log_every", "checkpoint_every", "max_to_keep"
    check_positive("config", config, *numbers, "grad_accum_steps", "max_skipped_steps")
    check_positive("config", config, "norm_group_size", "validate_every")
    if not 0 <= config.get("seed", 0) < 2**32:
        raise ConfigError(
            f"config.seed: {config['seed']} is not a whole number from 0 to 2**32 - 1"
        )
    decay = config.get("ema_decay")
    if decay is not None and not 0 < decay < 1:
        raise ConfigError(f"config.ema_decay: {decay!r} is not a number between 0 and 1")
    profile = config.get("profile", ())
    if profile and not (len(profile) == 2 and min(profile) > 0):
        raise ConfigError(f"config.profile: {profile!r}, wanted (first step, number of steps)")


def _check_validation(config: dict) -> None:
    metric, plateau = config.get("best_metric", "top1"), config.get("plateau")
    if metric not in validation.METRICS:
        there = ", ".join(validation.METRICS)
        raise ConfigError(f"config.best_metric: {metric!r} is none of {there}")
    if plateau is None:
        return
    _check_section("plateau", plateau)
    if config.get("validate_every") is None:
        raise ConfigError("config.plateau: needs validations: set config.validate_every")
    check_positive("config.plateau", plateau, "patience")
    fits = {"factor": lambda x: 0 < x < 1, "threshold": lambda x: 0 <= x < 1}
    for name in fits.keys() & plateau.keys():
        if not fits[name](plateau[name]):
            raise ConfigError(
                f"config.plateau.{name}: {plateau[name]!r} is not a number between 0 and 1"
            )


def _check_sections(config: dict) -> None:
    for name in ("dataset", "train_clips", "eval_clips", "optimizer"):
        _check_section(name, config[name])
    _check_optimizer(config["optimizer"])
    model = config["model"]
    check_arguments("config.model", models.build, model, **sections()["model"].given)
    if model["name"] in models.MODELS:
        check_keys("config.model", model, ["name", *model_options(model["name"])])
        check_types("config.model", models.MODELS[model["name"]].network, model)


def model_options(model: str) -> dict[str, Any]:
    """The attributes of a network that a config may set, with their defaults; as JSON has them."""
    network = models.MODELS[model]
    ours = {*sections(model)["model"].given, *network.attributes, "parent", "name"}
    fields = [field for field in dataclasses.fields(network.network) if field.name not in ours]
    return {each.name: each.default for each in fields} | {"dtype": "float32"}


def _check_section(name: str, value: Any) -> None:
    section = sections()[name]
    check_arguments(f"config.{name}", section.function, value, **section.given)


def _check_optimizer(optimizer: dict) -> None:
    check_positive("config.optimizer", optimizer, "lr_batch_size")
    if optimizer.get("warmup", 0) < 0:
        raise ConfigError(f"config.optimizer.warmup: {optimizer['warmup']} is no number of steps")
    steps = [step for step, _ in optimizer.get("milestones", ())]
    if steps != sorted({step for step in steps if step > 0}):
        wanted = "positive ones, each above the one before"
        raise ConfigError(f"config.optimizer.milestones: steps {steps}, wanted {wanted}")


def _check_start(config: dict) -> None:
    pretrain, init_from = config.get("pretrain"), config.get("init_from")
    if config.get("freeze_backbone") and pretrain is None and init_from is None:
        raise ConfigError(
            "config.freeze_backbone: only the last layer is trained: "
            "config.init_from must say where the rest is from"
        )
    if pretrain is not None and init_from is not None:
        raise ConfigError(
            "config.pretrain and config.init_from: only one can say what to start from"
        )


def _data_set_and_network(config: dict) -> tuple[datasets.ClipBuilder, Network]:
    try:
        builder = datasets.available(**config["dataset"])
        network = models.build(
            num_classes=1, norm_group_size=config.get("norm_group_size"), **config["model"]
        )
    except ValueError as error:
        raise ConfigError(f"config: {error}") from None
    if config["model"]["name"] == "two_stream_i3d":
        raise ConfigError(
            "config.model.name: two_stream_i3d's streams are trained separately, as i3d, "
            "and fused by i3d_jax.evaluate"
        )
    return builder, network


def _check_streams(config: dict, builder: datasets.ClipBuilder) -> tuple[dict, dict]:
    """Checks both sections of clips, and returns their streams (`pipeline.streams`)."""
    train = _check_clips("config.train_clips", config["train_clips"], builder)
    evaluation = _check_clips("config.eval_clips", config["eval_clips"], builder)
    if set(train) != set(evaluation):
        found, wanted = sorted(evaluation), sorted(train)
        raise ConfigError(f"config.eval_clips: have {found}, but config.train_clips have {wanted}")
    return train, evaluation


def _check_clips(
    where: str, clips: dict, builder: datasets.ClipBuilder
) -> dict[str, tuple[int, int]]:
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
    for stream in streams:
        if stream not in builder.streams:
            raise ConfigError(f"{where}: the data set has no {stream}")
    if clips.get("short_side") and "flow" in streams:
        raise ConfigError(f"{where}: short_side: flow cannot be resized")
    return streams


def _check_batch_sizes(config: dict) -> None:
    batch_size, accumulated = config["batch_size"], config.get("grad_accum_steps", 1)
    group = config.get("norm_group_size")
    if accumulated > 1 and group is None:
        raise ConfigError(
            "config.norm_group_size: is needed with grad_accum_steps: "
            "micro-batches have no statistics of the whole batch"
        )
    micro_batch = batch_size // accumulated
    devices = jax.device_count()
    for name, size, what, divisor in (
        ("batch_size", batch_size, "grad_accum_steps", accumulated),
        ("batch_size", micro_batch, "norm_group_size", group or micro_batch),
        ("batch_size", micro_batch, "the number of devices", devices),
        (
            "eval_clips.batch_size",
            config["eval_clips"]["batch_size"],
            "the number of devices",
            devices,
        ),
    ):
        if size % divisor:
            whole = accumulated == 1 or what == "grad_accum_steps"
            clips = f"{size}" if whole else f"{size} clips per micro-batch"
            raise ConfigError(f"config.{name}: {clips} cannot be divided by {what}, {divisor}")


def _check_network(
    where: str,
    streams: dict[str, tuple[int, int]],
    crop: int,
    network: Network,
    batch_size: int | None = None,
) -> None:
    """Checks that a network takes such clips; in training if there is a `batch_size`."""
    train = batch_size is not None
    try:
        if not train:  # Of a test video the whole ticks are used.
            timing = network.timing
            frames = {stream: frames for stream, (frames, _) in streams.items()}
            for stream, number in frames.items():
                if number < (least := timing.least * timing.frames(stream)):
                    raise ValueError(
                        f"{stream}: {number} frames, and the network takes {least} at least"
                    )
            ticks = timing.ticks(frames, frames)
            streams = {stream: (ticks * timing.frames(stream), 1) for stream in streams}
        key = jax.random.key(0)
        clips = models.input_shapes(streams, crop, batch_size or 1)
        initialize = functools.partial(network.init, train=train)
        jax.eval_shape(initialize, {"params": key, "dropout": key}, clips)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


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


def describe_type(wanted: Any) -> str:
    """What a value of an annotated type is, in words: "a whole number or None"."""
    parts = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return " or ".join(map(describe_type, parts))
    if typing.get_origin(wanted) is tuple:
        inside = [describe_type(part) for part in parts if part is not ...]
        return f"({', '.join(inside)}{', ...' if ... in parts else ''})"
    return TYPE_NAMES.get(wanted, str(wanted))
