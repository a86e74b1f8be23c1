"""Training: one pure step on the global batch, and a loop that schedules it.

A run is a folder: `checkpoints/`, `log.jsonl` (the durable record), TensorBoard event files and, at its end,
`weights.safetensors`. Started again with the same arguments it goes on where it was stopped.
"""

import contextlib
import functools
import inspect
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from i3d_jax import checkpoints, data, datasets, models, planes, weights
from i3d_jax.evaluate import evaluate, shardings
from i3d_jax.logs import Log
from i3d_jax.models import layers
from i3d_jax.models.initial import initial

# What may be another in a run that is resumed: the rest makes its result.
CHANGEABLE = ("steps", "log_every", "checkpoint_every", "data_dir", "threads", "workers")


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key."""


class State(NamedTuple):
    """All that a run changes."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def train_step(state: State, batch: dict, key: jax.Array, *, model: nn.Module, tx: optax.GradientTransformation):
    """One update on the global batch; returns the new state and scalars.

    `batch` has packed clips (see `planes.unpacked`) and "label" int32 [B]; `key` is the run's, not the step's. A network
    that gives logits per step in time in training is taught every one of them.
    """
    video = models.the_input(planes.unpacked(batch))

    def loss_and_updates(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            video,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, state.step)},
        )
        label = batch["label"].reshape(-1, *(1,) * (logits.ndim - 2))
        label = jnp.broadcast_to(label, logits.shape[:-1])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return loss, (updates["batch_stats"], (logits.argmax(-1) == label).mean())

    (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(loss_and_updates, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.tree.norm(grads)}
    return State(state.step + 1, params, batch_stats, opt_state), scalars


def sgd(
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-7,
    warmup: int = 0,
    milestones: tuple[tuple[int, float], ...] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """SGD with momentum, the paper's, and its learning rate by step.

    The rate is `lr` times the factor of the last of the `milestones` (step, factor) reached, linear from 0 over the
    first `warmup` steps. Weight decay is an L2 penalty on kernels only.
    """
    rates = [optax.constant_schedule(lr * factor) for factor in (1.0, *(factor for _, factor in milestones))]
    constant = optax.join_schedules(rates, [step for step, _ in milestones])

    def rate(step):
        return constant(step) * jnp.minimum(1.0, (step + 1) / max(1, warmup))

    kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(optax.add_decayed_weights(weight_decay, kernels), optax.sgd(rate, momentum)), rate


def initial_variables(name: str, network: models.Network, key: jax.Array, video: Any, init: str | None) -> dict:
    """Fresh variables of the model called `name`, or those that weights `init` make (`weights.load`, `initial`)."""
    source = None if init is None else weights.load(init)
    variables = jax.jit(network.init)(key, video)
    if source is None:
        return variables
    try:
        return initial(source, variables, models.MODELS[name].trunks)
    except ValueError as error:
        raise weights.WeightsError(f"{init}: {' '.join(str(error).split())[:300]}") from None


def train(
    workdir: str,
    *,
    steps: int,
    batch_size: int,
    model: dict,
    dataset: dict,
    clips: dict,
    test_clips: dict,
    optimizer: dict,
    seed: int = 0,
    norm_group: int | None = None,
    init: str | None = None,
    pretrain: dict | None = None,
    train_split: str = "train",
    test_split: str = "validation",
    log_every: int = 10,
    checkpoint_every: int = 1000,
) -> dict:
    """Trains a model, or goes on training it, and evaluates it at the end.

    Args:
      workdir: the run's folder.
      steps: updates in all.
      batch_size: clips per update, over all devices.
      model: arguments of `models.build` but `num_classes`, which is the data set's.
      dataset: arguments of `datasets.builder`.
      clips, test_clips: arguments of `data.train_batches` and `data.test_pieces`.
      optimizer: arguments of `sgd`.
      seed: of everything random.
      norm_group: clips that share batch norm statistics (the release: 6). None: the whole batch.
      init: weights to start from, all but the last layer; weights of images are inflated.
      pretrain: arguments of a run that makes these weights first, in workdir/pretrain.
      train_split, test_split: TFDS's names.
      log_every, checkpoint_every: in steps.

    Returns:
      What `evaluate` returns on the test split; per split how many clips are annotated and used, "train_annotated" for
      one; "steps" and "seconds", the time this call took.

    Raises:
      ConfigError: an argument that does not fit the others (see `validate`) or those the run was started with.
    """
    config = dict(locals())
    del config["workdir"]
    validate(config)
    began = time.time()
    folder = pathlib.Path(workdir)
    note_config(folder, config)
    if pretrain is not None:
        init = str(folder / "pretrain" / "weights.safetensors")
        if not pathlib.Path(init).exists():
            train(str(folder / "pretrain"), **pretrain)
    try:
        builder = datasets.prepared(**dataset)
    except ValueError as error:
        raise ConfigError(f"config.dataset: {error}") from None
    validate_splits(builder, config)
    classes = builder.class_names
    groups = 1 if norm_group is None else batch_size // norm_group
    network = models.build(num_classes=len(classes), norm_groups=groups, **model)
    tx, rate = sgd(**optimizer)
    key = jax.random.key(seed)

    replicated, sharded = shardings()
    streams = data.streams(clips.get("rgb"), clips.get("flow"))
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), models.example(streams, clips["crop"]))

    def fresh(variables: Any) -> State:
        params, batch_stats = variables["params"], variables["batch_stats"]
        return State(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params))

    shapes = jax.eval_shape(lambda: fresh(network.init(key, example)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes)
    with checkpoints.manager(folder / "checkpoints") as saved:
        start, state = checkpoints.restore(saved, like) or (0, None)
        if start > steps:
            raise ConfigError(f"config.steps: {steps}, but {folder} has a checkpoint of step {start} already")
        if state is None:
            state = jax.device_put(fresh(initial_variables(model["name"], network, key, example, init)), replicated)
        batches = data.train_batches(
            builder.records(train_split),
            batch_size=batch_size,
            seed=seed,
            start=start,
            process=jax.process_index(),
            processes=jax.process_count(),
            **clips,
        )
        update = jax.jit(
            train_step, static_argnames=("model", "tx"), donate_argnums=0, compiler_options=layers.compiler_options()
        )
        bar = tqdm.tqdm(total=steps, initial=start, desc=folder.name, unit="step")
        with Log(folder, start) as log, contextlib.closing(batches), bar:
            clock, clock_step = time.time(), start
            for step in range(start + 1, steps + 1):
                batch = {name: jax.make_array_from_process_local_data(sharded, x) for name, x in next(batches).items()}
                state, scalars = update(state, batch, key, model=network, tx=tx)
                if step % log_every == 0 or step == steps:
                    scalars = {name: float(value) for name, value in scalars.items()}
                    scalars["lr"] = float(np.asarray(rate(step - 1)))
                    scalars["clips_per_second"] = (step - clock_step) * batch_size / (time.time() - clock)
                    clock, clock_step = time.time(), step
                    log(step, scalars)
                    bar.set_postfix(loss=f"{scalars['loss']:.3f}", accuracy=f"{scalars['accuracy']:.2f}", refresh=False)
                bar.update()
                if step % checkpoint_every == 0 or step == steps:
                    checkpoints.save(saved, step, state)
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            options = {name: value for name, value in model.items() if name != "name"}
            info = weights.Info(
                model["name"],
                classes,
                options,
                footprint=data.streams(test_clips.get("rgb"), test_clips.get("flow")),
                short_side=test_clips.get("short_side") or builder.SHORT_SIDE,
                crop=test_clips["crop"],
                source=f"trained in {folder}",
            )
            weights.save(folder / "weights.safetensors", variables, info)
            result = evaluate(network, variables, builder.records(test_split), sharded, **test_clips)
            shares = {split: builder.statistics[split.partition("[")[0]] for split in (train_split, test_split)}
            shares = {f"{split}_{name}": of[name] for split, of in shares.items() for name in ("used", "annotated")}
            log(steps, {f"{test_split}_{name}": value for name, value in result.items()} | shares)
    return result | shares | {"steps": steps, "seconds": time.time() - began}


def note_config(folder: pathlib.Path, config: dict) -> None:
    """Writes a run's config to its folder or, if it is there, makes sure that this is the same run."""
    path, text = folder / "config.json", json.dumps(config, indent=2)
    if path.exists():
        earlier, now = _flat(json.loads(path.read_text())), _flat(json.loads(text))
        for name in {**earlier, **now}:
            if earlier.get(name) != now.get(name) and name.split(".")[-1] not in CHANGEABLE:
                raise ConfigError(
                    f"config.{name}: {now.get(name)!r}, but {folder} was started with {earlier.get(name)!r}; "
                    "use another workdir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    pairs = {}
    for name, value in config.items():
        pairs |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return pairs


def validate(config: dict) -> None:
    """Checks a config, the arguments of `train` but `workdir`, before anything is made or compiled.

    Raises:
      ConfigError: names the argument or section that is missing, unknown or does not fit.
    """
    bind("config", train, config, workdir="")
    for name in ("steps", "batch_size", "log_every", "checkpoint_every", "norm_group"):
        value = config.get(name, 1)
        if not (isinstance(value, int) and value > 0 or name == "norm_group" and value is None):
            raise ConfigError(f"config.{name}: {value!r} is not a positive whole number")
    try:
        json.dumps(config)
    except TypeError as error:
        raise ConfigError(f"config: {error}; wanted numbers, strings and tuples, dtype='bfloat16' for one") from None
    given = dict(source=None, batch_size=1, seed=0, start=0, process=0, processes=1)
    bind("config.dataset", datasets.readable, config["dataset"])
    bind("config.clips", data.train_batches, config["clips"], **given)
    bind("config.test_clips", data.test_pieces, config["test_clips"], source=None, timing=None, done=(), chunk=None)
    bind("config.optimizer", sgd, config["optimizer"])
    bind("config.model", models.build, config["model"], num_classes=1, norm_groups=1)
    try:
        builder = datasets.readable(**config["dataset"])
        network = models.build(num_classes=1, norm_groups=1, **config["model"])
    except ValueError as error:
        raise ConfigError(f"config: {error}") from None
    if builder.final.exists():
        validate_splits(builder, config)
    if config["model"]["name"] == "two_stream_i3d":
        raise ConfigError(
            "config.model.name: two_stream_i3d's streams are trained separately, as i3d, and fused by i3d_jax.evaluate"
        )
    group = config.get("norm_group") or config["batch_size"]
    validate_clips("config.clips", config["clips"], builder, network, group)
    validate_clips("config.test_clips", config["test_clips"], builder, network)
    same = [set(config[section]) & {"rgb", "flow"} for section in ("clips", "test_clips")]
    if same[0] != same[1]:
        raise ConfigError(f"config.test_clips: have {sorted(same[1])}, but config.clips have {sorted(same[0])}")
    batch_size, test_batch_size = config["batch_size"], config["test_clips"]["batch_size"]
    for name, size, what, part in (
        ("batch_size", batch_size, "norm_group", config.get("norm_group") or batch_size),
        ("batch_size", batch_size, "the number of devices", jax.device_count()),
        ("test_clips.batch_size", test_batch_size, "the number of devices", jax.device_count()),
    ):
        if size % part:
            raise ConfigError(f"config.{name}: {size} cannot be divided by {what}, {part}")
    if config.get("pretrain") is not None:
        if config.get("init") is not None:
            raise ConfigError("config.pretrain and config.init: only one can say what to start from")
        try:
            validate(config["pretrain"])
        except ValueError as error:
            raise ConfigError(f"config.pretrain: {error}") from None


def validate_splits(builder: datasets.ClipBuilder, config: dict) -> None:
    """Checks that a data set that is prepared has the splits."""
    for name in ("train_split", "test_split"):
        split = config.get(name) or inspect.signature(train).parameters[name].default
        if split.partition("[")[0] not in builder.info.splits:
            raise ConfigError(
                f"config.{name}: the data set has no split {split!r}; there are {', '.join(builder.info.splits)}"
            )


def validate_clips(
    where: str, clips: dict, builder: Any, network: models.Network, norm_group: int | None = None
) -> None:
    """Checks that a data set has such clips and a network takes them; in training if there is a `norm_group`."""
    for name in ("batch_size", "threads", "crop"):
        value = clips.get(name, 1)
        if not (isinstance(value, int) and value > 0):
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
        lacking = [stream for stream in streams if stream not in builder.streams]
        if lacking:
            raise ValueError(f"the data set has no {lacking[0]}")
        if clips.get("short_side") and "flow" in streams:
            raise ValueError("short_side: flow cannot be resized")
        if norm_group is None:  # Of a test video the whole ticks are used.
            timing = network.timing
            most = {stream: frames for stream, (frames, _) in streams.items()}
            for stream, frames in most.items():
                if frames < (least := timing.least * timing.frames(stream)):
                    raise ValueError(f"{stream}: {frames} frames, and the network takes {least} at least")
            ticks = timing.ticks(most, most)
            streams = {stream: (ticks * timing.frames(stream), 1) for stream in streams}
        key, batch = jax.random.key(0), models.example(streams, crop, norm_group or 1)
        variables = jax.eval_shape(network.init, key, batch)
        if norm_group is not None:
            train = functools.partial(network.apply, train=True, mutable=["batch_stats"], rngs={"dropout": key})
            jax.eval_shape(train, variables, batch)
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
