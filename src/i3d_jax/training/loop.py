"""Training: a loop that schedules steps (`step.train_step`), validations and checkpoints.

A run is a folder: `checkpoints/`, `log.jsonl` (the durable record), TensorBoard event files and, at its end,
`weights.safetensors`. Started again with the same arguments it goes on where it was stopped.
"""

import contextlib
import functools
import pathlib
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from i3d_jax import datasets, distributed, models, weights
from i3d_jax.datasets import pipeline
from i3d_jax.evaluation.protocol import evaluate
from i3d_jax.models.initial import LAST, plan_transfer, transfer_variables
from i3d_jax.stopping import StoppedError
from i3d_jax.training import checkpoints, fingerprint, optimizers, run_folder, validation
from i3d_jax.training.config import ConfigError, validate_splits
from i3d_jax.training.config import validate as validate_config
from i3d_jax.training.logs import Clock, Log, profiling
from i3d_jax.training.step import State, initial_state, runs_per_micro_batch, train_step


class DivergedError(ValueError):
    """A run whose updates are not finite any more."""


def initial_variables(
    name: str, network: models.Network, key: jax.Array, video: Any, init: str | None, fixed: bool = False
) -> dict:
    """Fresh variables of the model called `name`, or those that weights `init` make (`weights.load`, `initial`).

    Raises:
      weights.WeightsError: they do not fit, or, if all but the last layer is to be `fixed`, leave more than that new.
    """
    source = None if init is None else weights.load(init)
    variables = jax.jit(network.init)(key, video)
    if source is None:
        return variables
    trunks = models.MODELS[name].trunks
    try:
        new = [row.leaf for row in plan_transfer(source, variables, trunks) if row.action == "new"] if fixed else []
        if others := [leaf for leaf in new if LAST not in leaf.split("/")]:
            raise ValueError(
                f"fixed: {len(others)} leaves are not in them and would never be trained: {', '.join(others)}"
            )
        return transfer_variables(source, variables, trunks)
    except ValueError as error:
        raise weights.WeightsError(f"{init}: {textwrap.shorten(str(error), 300)}") from None


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
    accumulate: int = 1,
    remat: bool = False,
    fixed: bool = False,
    average: float | None = None,
    most_bad: int = 10,
    init: str | None = None,
    pretrain: dict | None = None,
    train_split: str = "train",
    test_split: str = "validation",
    validation_split: str | None = None,
    validate_every: int | None = None,
    best: str = "top1",
    plateau: dict | None = None,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    keep: int = 2,
    profile: tuple[int, ...] = (),
) -> dict:
    """Trains a model, or goes on training it, and evaluates it at the end.

    All processes of a run call it with the same arguments, after `distributed.initialize`; which ones may differ, and what else may
    not, is in `run_folder.PER_PROCESS` and `fingerprint`.

    Args:
      workdir: the run's folder; several processes share it.
      steps: updates in all.
      batch_size: clips per update, over all devices.
      model: arguments of `models.build` but `num_classes`, which is the data set's, and those that are arguments here.
      dataset: arguments of `datasets.builder`.
      clips, test_clips: arguments of `pipeline.train_batches` and `pipeline.eval_chunks`.
      optimizer: arguments of `optimizers.sgd`.
      seed: of everything random.
      norm_group: clips that share batch norm statistics (the release: 6). None: the whole batch.
      accumulate: parts that a batch is taken in, of whole groups, one after another; changes nothing but the memory that
        a step takes, its time, and rounding.
      remat: whether activations are computed again in the backward pass, block by block; changes nothing but those.
      fixed: whether only the last layer is trained, the rest being as `init` gives it, its statistics too (table 4's
        "Fixed"; with false it is "Full-FT"). Dropout right before the last layer stays on (see `models.Network`).
      average: decay per step of an exponential moving average of the parameters, which is then tested and exported.
      most_bad: updates in a row that may be passed over, since they would not be finite; counted every `log_every` steps.
      init: weights to start from, all but the last layer; weights of images are inflated.
      pretrain: arguments of a run that makes these weights first, in workdir/pretrain.
      train_split, test_split: TFDS's names.
      validation_split: of the validations before the end, if there are any; None: `test_split`.
      validate_every: steps; None: there are none, but the test at the end.
      best: which score of a validation (`validation.METRICS`) says that it is the best so far; its checkpoint is kept, and
        its weights are exported as `best.safetensors`.
      plateau: arguments of `validation.reduce_on_plateau`: the learning rate drops when the validation loss does not. None: it does not.
      log_every, checkpoint_every: in steps; every validation has a checkpoint.
      keep: checkpoints that are kept, the best one apart.
      profile: (first step, number of steps) to be profiled, into workdir/profile.

    Returns:
      What `evaluate` returns on the test split; per split how many clips are annotated and used, "train_annotated" for
      one; "steps" and "seconds", the time this call took.

    Raises:
      StoppedError: SIGINT or SIGTERM came; the step it came in has been saved, and the same call goes on.
      DivergedError: too many updates were not finite.
      ConfigError: an argument that does not fit the others (see `config.validate`) or those the run was started with.
      checkpoints.SaveError: a checkpoint could not be written; those before it are as they were.
      distributed.ProcessError: another process failed, or the processes differ in what the result depends on.
      checkpoints.DamagedError: there are checkpoints, and none of them can be used.
    """
    config = dict(locals())
    del config["workdir"]
    distributed.check_same(run_folder.shared_settings(config, train) | fingerprint.of_code())
    distributed.run_on_all_processes(lambda: validate_config(config, train))
    began = time.time()
    folder = pathlib.Path(workdir)
    first = distributed.is_first_process()
    with contextlib.ExitStack() as stack:
        distributed.run_on_all_processes(lambda: run_folder.check_file_kinds(folder) if first else None)
        patience = 0 if jax.process_count() == 1 else 180
        stack.enter_context(distributed.on_first_process(run_folder.locked(folder, patience)))
        distributed.run_on_all_processes(lambda: run_folder.record_config(folder, config, train) if first else None)
        run_folder.check_shared(folder)
        if init is not None and not distributed.any_process(run_folder.has_started(folder)):
            # Better now than after the data set has been made.
            distributed.run_on_all_processes(functools.partial(weights.find, init))
        if pretrain is not None:
            init = str(folder / "pretrain" / "weights.safetensors")
            if distributed.any_process(not pathlib.Path(init).exists()):
                train(str(folder / "pretrain"), **pretrain)
        builder = distributed.run_on_all_processes(lambda: _data_set(config))
        distributed.check_same(fingerprint.of_data_set(builder))
        classes = builder.class_names
        groups = 1 if norm_group is None else batch_size // accumulate // norm_group
        parts = accumulate, runs_per_micro_batch(batch_size, accumulate, norm_group, jax.device_count())
        options = {"norm_groups": groups, "remat": remat, "fixed": fixed}
        network = models.build(num_classes=len(classes), **options, **model)
        tx, rate = optimizers.sgd(batch_size=batch_size, only=LAST if fixed else None, **optimizer)
        key = jax.random.key(seed)

        replicated, sharded = distributed.data_parallel_shardings()
        streams = pipeline.streams(clips.get("rgb"), clips.get("flow"))
        example = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), models.input_shapes(streams, clips["crop"])
        )
        shapes = jax.eval_shape(lambda: initial_state(network.init(key, example), tx, average is not None))
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes)
        about = {"config": config, "versions": fingerprint.versions()}
        saved = stack.enter_context(checkpoints.Checkpoints(folder / "checkpoints", keep, about))

        def fresh() -> State:
            start_from = (model["name"], network, key, example, init, fixed)
            variables = distributed.run_on_all_processes(lambda: initial_variables(*start_from))
            distributed.check_same({"the weights to start from (SHA-256)": weights.fingerprint(variables)})
            return jax.device_put(initial_state(variables, tx, average is not None), replicated)

        refuse = functools.partial(run_folder.why_another_run, config=config, run=train)
        start, state = saved.restore(like, refuse) or (0, fresh())
        if start > steps:
            raise ConfigError(f"config.steps: {steps}, but {folder} has a checkpoint of step {start} already")
        saved.keep_best(int(state.validation.best_step))
        batches = pipeline.train_batches(
            builder.records(train_split),
            batch_size=batch_size,
            seed=seed,
            start=start,
            process=jax.process_index(),
            processes=jax.process_count(),
            **clips,
        )
        stack.enter_context(contextlib.closing(batches))
        update = jax.jit(
            functools.partial(train_step, model=network, tx=tx, parts=parts, average=average),
            donate_argnums=0,
            out_shardings=replicated,
            compiler_options=models.compiler_options(),
        )
        info = weights.Info(
            model["name"],
            classes,
            {name: value for name, value in model.items() if name != "name"},
            footprint=pipeline.streams(test_clips.get("rgb"), test_clips.get("flow")),
            short_side=test_clips.get("short_side") or builder.SHORT_SIDE,
            crop=test_clips["crop"],
            source=f"trained in {folder}",
        )
        shares = {split: builder.statistics[split.partition("[")[0]] for split in (train_split, test_split)}
        shares = {f"{split}_{name}": of[name] for split, of in shares.items() for name in ("used", "annotated")}
        log = distributed.run_on_all_processes(lambda: stack.enter_context(Log(folder, start)) if first else None)
        bar = tqdm.tqdm(total=steps, initial=start, desc=folder.name, unit="step", disable=not first)
        stack.enter_context(bar)
        trace = stack.enter_context(profiling(folder / "profile", profile if first else ()))
        asked = stack.enter_context(distributed.synchronized_stop())

        def stop_if_asked() -> None:
            if number := asked():
                if last_saved != step:
                    saved.save(step, state)
                saved.wait()
                raise StoppedError([number], f"stopped; {folder} has step {step}, and the same command goes on")

        def tested() -> dict:
            return {"params": state.params if average is None else state.average, "batch_stats": state.batch_stats}

        def export(name: str) -> None:
            distributed.run_on_all_processes(lambda: weights.save(folder / name, tested(), info) if first else None)

        def scores(split: str) -> dict[str, float]:
            found = evaluate(network, tested(), builder.records(split), sharded, stop_if_asked, **test_clips)
            if log:
                log(step, {f"{split}_{name}": value for name, value in found.items()} | shares)
            return found

        clock, scalars, result, validate, last_saved = Clock(start), {}, {}, False, start
        compiled: jax.stages.Compiled | None = None
        for step in range(start, steps + 1):
            # A validation is part of what comes after its step: of a run that goes on from there, it is made again.
            validate = validate_every is not None and step > 0 and step % validate_every == 0
            if step > start and (step % log_every == 0 or step == steps):
                told = {name: float(value) for name, value in scalars.items()}
                told["lr"] = float(np.asarray(rate(step - 1))) * float(state.validation.scale)
                told |= clock.scalars(step, batch_size)
                clock = Clock(step)
                if log:
                    log(step, told)
                bar.set_postfix(loss=f"{told['loss']:.3f}", accuracy=f"{told['accuracy']:.2f}", refresh=False)
                if told["bad_in_a_row"] >= most_bad:
                    raise DivergedError(
                        f"step {step}: loss or gradient of the last {told['bad_in_a_row']:.0f} steps was not finite; "
                        f"{folder / 'checkpoints'} has the last good parameters: start in another "
                        "workdir with a lower learning rate, or go on with a larger most_bad"
                    )
            if step > start and (step % checkpoint_every == 0 or step == steps or validate):
                if log:
                    log.sync()
                saved.save(step, state)
                last_saved = step
            stop_if_asked()
            if validate:
                result = scores(validation_split or test_split)
                known = validation.update(state.validation, step, result, best, plateau)
                state = state._replace(validation=jax.device_put(known, replicated))
                if known.best_step == step:
                    saved.keep_best(step)
                    export("best.safetensors")
                clock = Clock(step)
            if step == steps:
                break
            trace(step, state)
            batch = distributed.shard_batch(clock.next(batches, scalars.get("loss")), sharded)
            if compiled is None:
                compiled = distributed.compile_on_all_processes(update, state, batch, key)
            before, (state, scalars) = scalars, compiled(state, batch, key)
            jax.block_until_ready(before)  # Not more than a step ahead: batches take memory.
            bar.update()
        if not validate or validation_split not in (None, test_split):
            result = scores(test_split)
        export("weights.safetensors")  # Last: it says that the run is complete.
    return result | shares | {"steps": steps, "seconds": time.time() - began}


def _data_set(config: dict) -> datasets.ClipBuilder:
    try:
        builder = datasets.prepared(**config["dataset"])
    except ValueError as error:
        raise ConfigError(f"config.dataset: {error}") from None
    validate_splits(builder, config, train)
    return builder
