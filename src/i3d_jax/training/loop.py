"""Training: a loop that schedules steps (`step.train_step`), validations and checkpoints.

A run is a folder: `checkpoints/`, `log.jsonl` (the durable record), TensorBoard event files and,
at its end, `weights.safetensors`. Started again with the same arguments, it resumes.
"""

import contextlib
import functools
import pathlib
import textwrap
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import NamedSharding

from i3d_jax import datasets, distributed, models, weights
from i3d_jax.datasets import pipeline
from i3d_jax.evaluation.protocol import evaluate
from i3d_jax.models.transfer import LAST_LAYER, plan_transfer, transfer_variables
from i3d_jax.stopping import StoppedError
from i3d_jax.training import checkpoints, fingerprint, optimizers, run_folder, validation
from i3d_jax.training.config import ConfigError, check_splits, validate
from i3d_jax.training.logs import Clock, Log, profiling
from i3d_jax.training.step import (
    EarlierState,
    State,
    initial_state,
    runs_per_micro_batch,
    train_step,
)


class DivergedError(ValueError):
    """A run whose updates are no longer finite."""


class Run(NamedTuple):
    """A run that is set up: all that its loop needs, and that no step changes.

    Attributes:
      folder: the run's.
      config: the arguments of `train`, those that were left out included.
      builder: the data set.
      network: the network that is trained.
      learning_rate: by step, before the validations scale it.
      update: `train_step`, to be compiled for (state, batch, key).
      key: the run's, for dropout.
      checkpoints: of the run.
      sharding: of a batch over all devices.
      replicated: of the state on all devices.
      info: description of the weights that the run exports.
      coverage: how many clips of each split are annotated and used.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    builder: datasets.ClipBuilder
    network: models.Network
    learning_rate: optax.Schedule
    update: jax.stages.Wrapped
    key: jax.Array
    checkpoints: checkpoints.Checkpoints
    sharding: NamedSharding
    replicated: NamedSharding
    info: weights.Info
    coverage: dict[str, float]


def train(
    workdir: str,
    *,
    steps: int,
    batch_size: int,
    model: dict,
    dataset: dict,
    train_clips: dict,
    eval_clips: dict,
    optimizer: dict,
    seed: int = 0,
    norm_group_size: int | None = None,
    grad_accum_steps: int = 1,
    remat: bool = False,
    freeze_backbone: bool = False,
    ema_decay: float | None = None,
    max_skipped_steps: int = 10,
    init_from: str | None = None,
    pretrain: dict | None = None,
    train_split: str = "train",
    test_split: str = "validation",
    validation_split: str | None = None,
    validate_every: int | None = None,
    best_metric: str = "top1",
    plateau: dict | None = None,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    max_to_keep: int = 2,
    profile: tuple[int, ...] = (),
) -> dict:
    """Trains a model, or resumes its training, and evaluates it at the end.

    All processes of a run call it with the same arguments, after `distributed.initialize`. Only
    those in `run_folder.PER_PROCESS` may differ. `fingerprint` has what else must be the same.

    Args:
      workdir: The run's folder. Several processes share it.
      steps: Updates in all.
      batch_size: Clips per update, over all devices.
      model: The network's name and its options.
      dataset: The data set's name and where it lies.
      train_clips: How clips are cut from the training videos.
      eval_clips: How videos are taken in validations and in the test.
      optimizer: Learning rate, momentum, weight decay.
      seed: Of everything random.
      norm_group_size: Clips that share batch norm statistics (the release: 6). None: all.
      grad_accum_steps: Micro-batches of a batch, one after another. Changes memory and time.
      remat: Compute activations again in the backward pass, block by block. Takes less memory.
      freeze_backbone: Train the last layer only (table 4's "Fixed"; False is its "Full-FT").
      ema_decay: Per step, of a moving average of the parameters, which is tested and exported.
      max_skipped_steps: Updates in a row that may be skipped since they are not finite.
      init_from: Weights to start from, all but the last layer. Weights of images are inflated.
      pretrain: Arguments of a run that makes these weights first, in workdir/pretrain.
      train_split: TFDS's name of the split to train on.
      test_split: The split of the test at the end.
      validation_split: The split of the validations before the end. None: test_split.
      validate_every: Steps from one validation to the next. None: only the test at the end.
      best_metric: The score that says which validation is the best: top1, top5, mean_class, loss.
      plateau: When the learning rate drops because the validation loss does not. None: never.
      log_every: Steps from one line of the log to the next.
      checkpoint_every: Steps from one checkpoint to the next. Every validation has one too.
      max_to_keep: Checkpoints that are kept, the best one apart.
      profile: (first step, number of steps) to profile, into workdir/profile.

    Returns:
      what `evaluate` returns on the test split; per split how many clips are annotated and used
      ("train_annotated" for one); "steps"; and "seconds", the time that this call took.

    Raises:
      StoppedError: SIGINT or SIGTERM came. The step it came in is saved, and the same call resumes.
      DivergedError: too many updates were not finite.
      ConfigError: an argument does not fit the others, or the run was started with another one.
      checkpoints.SaveError: a checkpoint could not be written. Those before it are as they were.
      checkpoints.DamagedError: there are checkpoints, and none of them can be used.
      distributed.ProcessError: another process failed, or differs in something that matters.
    """
    config = dict(locals())
    del config["workdir"]
    distributed.check_same(run_folder.shared_settings(config, train) | fingerprint.of_code())
    distributed.run_on_all_processes(lambda: validate(config, train))
    began, folder = time.time(), pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_folder.entered(folder, config, train))
        initial_weights = _make_initial_weights(folder, config)
        run, start, state = _set_up(folder, config, initial_weights, stack)
        result = _run_steps(run, start, state)
    return result | run.coverage | {"steps": steps, "seconds": time.time() - began}


def _make_initial_weights(folder: pathlib.Path, config: dict) -> str | None:
    """Where the weights to start from are; they are looked for, or made by `pretrain`, first."""
    init_from, pretrain = config["init_from"], config["pretrain"]
    if init_from is not None and not distributed.any_process(run_folder.has_started(folder)):
        # A mistake is better known before the data set is made.
        distributed.run_on_all_processes(functools.partial(weights.check_exists, init_from))
    if pretrain is None:
        return init_from
    made = folder / "pretrain" / "weights.safetensors"
    if distributed.any_process(not made.exists()):
        train(str(folder / "pretrain"), **pretrain)
    return str(made)


def _set_up(
    folder: pathlib.Path, config: dict, initial_weights: str | None, stack: contextlib.ExitStack
) -> tuple[Run, int, State]:
    """Makes all that a run needs, and restores or makes its state.

    Args:
      folder: the run's, which this process has entered.
      config: arguments of `train`.
      initial_weights: to start from, if the run has no checkpoint.
      stack: closes the checkpoints.

    Returns:
      the run, the step it is at, and its state.
    """
    builder = distributed.run_on_all_processes(lambda: _data_set(config))
    distributed.check_same(fingerprint.of_data_set(builder))
    network = _network(config, builder)
    tx, learning_rate = optimizers.sgd(
        batch_size=config["batch_size"],
        only=LAST_LAYER if config["freeze_backbone"] else None,
        **config["optimizer"],
    )
    replicated, sharding = distributed.data_parallel_shardings()
    about = {"config": config, "versions": fingerprint.versions()}
    saved = checkpoints.Checkpoints(folder / "checkpoints", config["max_to_keep"], about)
    run = Run(
        folder=folder,
        config=config,
        builder=builder,
        network=network,
        learning_rate=learning_rate,
        update=_update(config, network, tx, replicated),
        key=jax.random.key(config["seed"]),
        checkpoints=stack.enter_context(saved),
        sharding=sharding,
        replicated=replicated,
        info=_info(folder, config, builder),
        coverage=_coverage(config, builder),
    )
    start, state = _restore(run, tx) or (0, _fresh_state(run, tx, initial_weights))
    if start > config["steps"]:
        raise ConfigError(
            f"config.steps: {config['steps']}, "
            f"but {folder} has a checkpoint of step {start} already"
        )
    saved.keep_best(int(state.validation.best_step))
    return run, start, state


def _data_set(config: dict) -> datasets.ClipBuilder:
    try:
        builder = datasets.prepared(**config["dataset"])
    except ValueError as error:
        raise ConfigError(f"config.dataset: {error}") from None
    check_splits(builder, config, train)
    return builder


def _network(config: dict, builder: datasets.ClipBuilder) -> models.Network:
    names = "norm_group_size", "remat", "freeze_backbone"
    options = {name: config[name] for name in names} | config["model"]
    return models.build(num_classes=len(builder.class_names), **options)


def _update(
    config: dict,
    network: models.Network,
    tx: optax.GradientTransformation,
    replicated: NamedSharding,
) -> jax.stages.Wrapped:
    return jax.jit(
        update_function(config, network, tx, jax.device_count()),
        donate_argnums=0,
        out_shardings=replicated,
        compiler_options=models.compiler_options(),
    )


def update_function(
    config: dict, network: models.Network, tx: optax.GradientTransformation, devices: int
) -> Callable:
    """A run's update, a function of (state, batch, key) that is not compiled yet.

    Args:
      config: arguments of `train`.
      network: the network that is trained.
      tx: the optimizer.
      devices: number of devices that a batch is spread over.
    """
    accumulated = config["grad_accum_steps"]
    runs = runs_per_micro_batch(
        config["batch_size"], accumulated, config["norm_group_size"], devices
    )
    return functools.partial(
        train_step,
        model=network,
        tx=tx,
        micro_batches=accumulated,
        runs=runs,
        ema_decay=config["ema_decay"],
    )


def _info(folder: pathlib.Path, config: dict, builder: datasets.ClipBuilder) -> weights.Info:
    clips = config["eval_clips"]
    return weights.Info(
        config["model"]["name"],
        builder.class_names,
        {name: value for name, value in config["model"].items() if name != "name"},
        footprint=pipeline.streams(clips.get("rgb"), clips.get("flow")),
        short_side=clips.get("short_side") or builder.SHORT_SIDE,
        crop=clips["crop"],
        source=f"trained in {folder}",
    )


def _coverage(config: dict, builder: datasets.ClipBuilder) -> dict[str, float]:
    splits = config["train_split"], config["test_split"]
    return {
        f"{split}_{name}": builder.statistics[split.partition("[")[0]][name]
        for split in splits
        for name in ("used", "annotated")
    }


def _example(run: Run) -> Any:
    """Zeros of the shape of a training clip."""
    clips = run.config["train_clips"]
    streams = pipeline.streams(clips.get("rgb"), clips.get("flow"))
    shapes = models.input_shapes(streams, clips["crop"])
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _restore(run: Run, tx: optax.GradientTransformation) -> tuple[int, State] | None:
    """The step and state of the run's last good checkpoint; None if it has none."""
    ema = run.config["ema_decay"] is not None
    shapes = jax.eval_shape(
        lambda: initial_state(run.network.init(run.key, _example(run)), tx, ema)
    )
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=run.replicated), shapes
    )
    refuse = functools.partial(run_folder.why_another_run, config=run.config, run=train)
    return run.checkpoints.restore(like, refuse, EarlierState(*like))


def _fresh_state(run: Run, tx: optax.GradientTransformation, initial_weights: str | None) -> State:
    name, freeze = run.config["model"]["name"], run.config["freeze_backbone"]
    start_from = (name, run.network, run.key, _example(run), initial_weights, freeze)
    variables = distributed.run_on_all_processes(lambda: initial_variables(*start_from))
    digest = weights.fingerprint(variables)
    distributed.check_same({"the weights to start from (SHA-256)": digest})
    state = initial_state(variables, tx, run.config["ema_decay"] is not None)
    return jax.device_put(state, run.replicated)


def initial_variables(
    name: str,
    network: models.Network,
    key: jax.Array,
    video: Any,
    init_from: str | None,
    freeze_backbone: bool = False,
) -> dict:
    """The variables that a run starts with.

    Args:
      name: of the model.
      network: the model.
      key: for what is drawn at random.
      video: an example of its input.
      init_from: weights for all but the last layer (`weights.load`, `transfer_variables`), or None.
      freeze_backbone: whether nothing but the last layer may be new.

    Raises:
      weights.WeightsError: the weights do not fit, or leave more new than they may.
    """
    source = None if init_from is None else weights.load(init_from)
    variables = jax.jit(network.init)(key, video)
    if source is None:
        return variables
    backbones = models.MODELS[name].backbones
    try:
        rows = plan_transfer(source, variables, backbones) if freeze_backbone else []
        new = [row.leaf for row in rows if row.action == "new"]
        if others := [leaf for leaf in new if LAST_LAYER not in leaf.split("/")]:
            raise ValueError(
                f"freeze_backbone: {len(others)} leaves are not in them "
                f"and would never be trained: {', '.join(others)}"
            )
        return transfer_variables(source, variables, backbones)
    except ValueError as error:
        raise weights.WeightsError(f"{init_from}: {textwrap.shorten(str(error), 300)}") from None


def _run_steps(run: Run, start: int, state: State) -> dict:
    """Trains from a step to the end, tests and exports; returns the scores of the test."""
    config, steps = run.config, run.config["steps"]
    first = distributed.is_first_process()
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(_batches(run, start)))
        log = distributed.run_on_all_processes(
            lambda: stack.enter_context(Log(run.folder, start)) if first else None
        )
        bar = tqdm.tqdm(
            total=steps, initial=start, desc=run.folder.name, unit="step", disable=not first
        )
        stack.enter_context(bar)
        profile = config["profile"] if first else ()
        trace = stack.enter_context(profiling(run.folder / "profile", profile))
        stop_signal = stack.enter_context(distributed.synchronized_stop())
        clock, scalars, result, saved_step = Clock(start), {}, {}, start
        step, validating = start, False
        compiled: jax.stages.Compiled | None = None

        def stop_if_asked() -> None:
            if number := stop_signal():
                if saved_step != step:
                    run.checkpoints.save(step, state)
                run.checkpoints.wait()
                message = f"stopped; {run.folder} has step {step}, and the same command goes on"
                raise StoppedError([number], message)

        for step in range(start, steps + 1):
            # A validation belongs to what comes after its step: a run that resumes makes it again.
            validating = step > 0 and _is_due(step, config["validate_every"])
            if step > start and (_is_due(step, config["log_every"]) or step == steps):
                _report(run, step, state, scalars, clock, log, bar)
                clock = Clock(step)
            due = _is_due(step, config["checkpoint_every"]) or step == steps or validating
            if step > start and due:
                if log:
                    log.sync()
                run.checkpoints.save(step, state)
                saved_step = step
            stop_if_asked()
            if validating:
                split = config["validation_split"] or config["test_split"]
                result = _evaluate(run, step, state, split, log, stop_if_asked)
                state = _note_validation(run, step, state, result)
                clock = Clock(step)
            if step == steps:
                break
            trace(step, state)
            batch = clock.next(batches, scalars.get("loss"))
            batch = distributed.shard_batch(batch, run.sharding)
            if compiled is None:
                compiled = distributed.compile_on_all_processes(run.update, state, batch, run.key)
            before, (state, scalars) = scalars, compiled(state, batch, run.key)
            jax.block_until_ready(before)  # Not more than a step ahead: batches take memory.
            bar.update()
        if not validating or config["validation_split"] not in (None, config["test_split"]):
            result = _evaluate(run, step, state, config["test_split"], log, stop_if_asked)
        _export(run, state, "weights.safetensors")  # Last: it says that the run is complete.
        return result


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _batches(run: Run, start: int) -> Generator[dict, None, None]:
    return training_batches(run.config, run.builder.records(run.config["train_split"]), start)


def training_batches(
    config: dict, records: Sequence[dict], start: int = 0
) -> Generator[dict, None, None]:
    """Yields this process's share of a run's training batches (see `pipeline.train_batches`).

    Args:
      config: the run's; "seed" must be in it.
      records: of its training split.
      start: the step to begin with.
    """
    return pipeline.train_batches(
        records,
        batch_size=config["batch_size"],
        seed=config["seed"],
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
        **config["train_clips"],
    )


def _report(
    run: Run,
    step: int,
    state: State,
    scalars: dict,
    clock: Clock,
    log: Log | None,
    bar: tqdm.tqdm,
) -> None:
    """Logs the last step's scalars.

    Raises:
      DivergedError: too many updates in a row were skipped.
    """
    found = {name: float(value) for name, value in scalars.items()}
    scale = float(state.validation.scale)
    found["lr"] = float(np.asarray(run.learning_rate(step - 1))) * scale
    found |= clock.scalars(step, run.config["batch_size"])
    if log:
        log(step, found)
    loss, accuracy = f"{found['loss']:.3f}", f"{found['accuracy']:.2f}"
    bar.set_postfix(loss=loss, accuracy=accuracy, refresh=False)
    skipped = found["skipped_in_a_row"]
    if skipped >= run.config["max_skipped_steps"]:
        raise DivergedError(
            f"step {step}: loss or gradient of the last {skipped:.0f} steps was not finite; "
            f"{run.folder / 'checkpoints'} has the last good parameters: start in another workdir "
            "with a lower learning rate, or resume with a larger max_skipped_steps"
        )


def _variables(run: Run, state: State) -> dict:
    """The variables that are tested and exported."""
    params = state.params if run.config["ema_decay"] is None else state.ema_params
    return {"params": params, "batch_stats": state.batch_stats}


def _evaluate(
    run: Run,
    step: int,
    state: State,
    split: str,
    log: Log | None,
    after_batch: Callable[[], None],
) -> dict:
    """The scores of a split, which are logged too."""
    records, variables = run.builder.records(split), _variables(run, state)
    clips = run.config["eval_clips"]
    found = evaluate(run.network, variables, records, run.sharding, after_batch, **clips)
    if log:
        log(step, {f"{split}_{name}": value for name, value in found.items()} | run.coverage)
    return found


def _note_validation(run: Run, step: int, state: State, scores: dict) -> State:
    """The state after a validation; the best checkpoint so far is kept and exported."""
    metric, plateau = run.config["best_metric"], run.config["plateau"]
    known = validation.update(state.validation, step, scores, metric, plateau)
    state = state._replace(validation=jax.device_put(known, run.replicated))
    if known.best_step == step:
        run.checkpoints.keep_best(step)
        _export(run, state, "best.safetensors")
    return state


def _export(run: Run, state: State, name: str) -> None:
    variables = _variables(run, state)
    first = distributed.is_first_process()
    distributed.run_on_all_processes(
        lambda: weights.save(run.folder / name, variables, run.info) if first else None
    )
