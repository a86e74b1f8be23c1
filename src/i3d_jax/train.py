"""Training: one pure step on the global batch, and a loop that schedules it.

A run is a folder: `checkpoints/`, `log.jsonl` (the durable record), TensorBoard event files and, at its end,
`weights.safetensors`. Started again with the same arguments it goes on where it was stopped.
"""

import contextlib
import functools
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

from i3d_jax import checkpoints, checks, data, datasets, models, optimizers, planes, weights
from i3d_jax.evaluate import evaluate, shardings
from i3d_jax.logs import Log
from i3d_jax.models import layers
from i3d_jax.models.initial import initial
from i3d_jax.stopping import StoppedError, stopping


class DivergedError(ValueError):
    """A run whose updates are not finite any more."""


class State(NamedTuple):
    """All that a run changes.

    Attributes:
      step: updates made or, where they would not have been finite, passed over.
      bad: int32 [2], updates passed over since the last good one, and in all.
      average: exponential moving average of the parameters; None: there is none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    bad: jax.Array
    average: Any = None


def train_step(
    state: State,
    batch: dict,
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    parts: tuple[int, int] = (1, 1),
    average: float | None = None,
):
    """One update on the global batch; returns the new state and scalars.

    An update from a loss or gradient that is not finite is counted and passed over.

    Args:
      batch: packed clips (see `planes.unpacked`) and "label" int32 [B].
      key: the run's, not the step's.
      model: a network that gives logits per step in time in training is taught every one of them.
      parts: in how many parts the batch is taken, one after another, and how many runs of clips each part takes a share
        of (see `in_parts`). The update is the same, but for the order of summation.
      average: decay of the parameters' average.
    """
    clips = in_parts(batch | {"number": jnp.arange(len(batch["label"]))}, *parts)

    def loss_and_updates(params, clips):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats, "clips": {"number": clips["number"]}},
            models.the_input(planes.unpacked(clips)),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, state.step)},
        )
        label = clips["label"].reshape(-1, *(1,) * (logits.ndim - 2))
        label = jnp.broadcast_to(label, logits.shape[:-1])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return loss, (updates["batch_stats"], (logits.argmax(-1) == label).mean())

    def of_part(clips):
        (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(loss_and_updates, has_aux=True)(state.params, clips)
        return loss, accuracy, batch_stats, grads

    loss, accuracy, batch_stats, grads = _mean(of_part, clips)
    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if average is not None:
        averaged = jax.tree.map(lambda old, new: average * old + (1 - average) * new, state.average, params)
    else:
        averaged = None
    good = jnp.isfinite(loss) & jnp.isfinite(norm)

    def chosen(new, old):  # Counts of steps go on.
        return jnp.where(good, new, old) if jnp.issubdtype(new.dtype, jnp.inexact) else new

    changed = (params, batch_stats, opt_state, averaged)
    kept = (state.params, state.batch_stats, state.opt_state, state.average)
    params, batch_stats, opt_state, averaged = jax.tree.map(chosen, changed, kept)
    bad = jnp.where(good, state.bad * jnp.array([0, 1]), state.bad + 1)
    scalars = {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "bad_in_a_row": bad[0], "bad": bad[1]}
    return State(state.step + 1, params, batch_stats, opt_state, bad, averaged), scalars


def in_parts(batch: dict, parts: int, runs: int) -> dict:
    """A batch [B, ...] as parts [parts, B / parts, ...], each of which has a share of each of so many runs of clips.

    With as many runs as devices, over which the batch is cut in runs, nothing moves between them.
    """

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(runs, parts, x.shape[0] // (runs * parts), *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

    return {name: cut(x) for name, x in batch.items()}


def _mean(function: Callable, parts: Any) -> Any:
    """The mean over the parts of what a function of one returns; one at a time."""
    one = jax.tree.map(lambda x: x[0], parts)
    number = len(jax.tree.leaves(parts)[0])
    if number == 1:
        return function(one)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, one))
    total, _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda x: x / number, total)


def runs_per_part(batch_size: int, accumulate: int, norm_group: int | None, devices: int) -> int:
    """Of how many runs of clips each part of a batch takes a share, so that shares have whole groups: as many as devices, if
    that can be.
    """
    part = batch_size // accumulate
    group = norm_group or part
    return max(runs for runs in range(1, devices + 1) if devices % runs == 0 and part % (runs * group) == 0)


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
    accumulate: int = 1,
    average: float | None = None,
    most_bad: int = 10,
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
      optimizer: arguments of `optimizers.sgd`.
      seed: of everything random.
      norm_group: clips that share batch norm statistics (the release: 6). None: the whole batch.
      accumulate: parts that a batch is taken in, of whole groups, one after another; changes nothing but the memory that
        a step takes, its time, and rounding.
      average: decay per step of an exponential moving average of the parameters, which is then tested and exported.
      most_bad: updates in a row that may be passed over, since they would not be finite.
      init: weights to start from, all but the last layer; weights of images are inflated.
      pretrain: arguments of a run that makes these weights first, in workdir/pretrain.
      train_split, test_split: TFDS's names.
      log_every, checkpoint_every: in steps.

    Returns:
      What `evaluate` returns on the test split; per split how many clips are annotated and used, "train_annotated" for
      one; "steps" and "seconds", the time this call took.

    Raises:
      StoppedError: SIGINT or SIGTERM came; the step it came in has been saved, and the same call goes on.
      DivergedError: too many updates were not finite.
      checks.ConfigError: an argument that does not fit the others (see `checks.validate`) or those the run was started with.
    """
    config = dict(locals())
    del config["workdir"]
    checks.validate(config, train)
    began = time.time()
    folder = pathlib.Path(workdir)
    first = jax.process_index() == 0
    with checks.only_process(folder, first):  # A run that goes on keeps its config.
        checks.note_config(folder, config)
    if pretrain is not None:
        init = str(folder / "pretrain" / "weights.safetensors")
        if not pathlib.Path(init).exists():
            train(str(folder / "pretrain"), **pretrain)
    try:
        builder = datasets.prepared(**dataset)
    except ValueError as error:
        raise checks.ConfigError(f"config.dataset: {error}") from None
    checks.validate_splits(builder, config, train)
    classes = builder.class_names
    groups = 1 if norm_group is None else batch_size // accumulate // norm_group
    parts = accumulate, runs_per_part(batch_size, accumulate, norm_group, jax.device_count())
    network = models.build(num_classes=len(classes), norm_groups=groups, **model)
    tx, rate = optimizers.sgd(**optimizer)
    key = jax.random.key(seed)

    replicated, sharded = shardings()
    streams = data.streams(clips.get("rgb"), clips.get("flow"))
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), models.example(streams, clips["crop"]))

    def fresh(variables: Any) -> State:
        params, batch_stats = variables["params"], variables["batch_stats"]
        averaged = None if average is None else jax.tree.map(jnp.copy, params)  # Buffers of its own, to be donated.
        bad = jnp.zeros(2, jnp.int32)
        return State(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), bad, averaged)

    shapes = jax.eval_shape(lambda: fresh(network.init(key, example)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes)
    with checks.only_process(folder, first), checkpoints.manager(folder / "checkpoints") as saved:
        start, state = checkpoints.restore(saved, like) or (0, None)
        if start > steps:
            raise checks.ConfigError(f"config.steps: {steps}, but {folder} has a checkpoint of step {start} already")
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
            functools.partial(train_step, model=network, tx=tx, parts=parts, average=average),
            donate_argnums=0,
            compiler_options=layers.compiler_options(),
        )
        bar = tqdm.tqdm(total=steps, initial=start, desc=folder.name, unit="step")
        with Log(folder, start) as log, contextlib.closing(batches), bar:
            clock, clock_step = time.time(), start
            # Of several processes one cannot stop and save alone.
            with stopping() if jax.process_count() == 1 else contextlib.nullcontext([]) as asked:
                for step in range(start + 1, steps + 1):
                    batch = {
                        name: jax.make_array_from_process_local_data(sharded, x) for name, x in next(batches).items()
                    }
                    state, scalars = update(state, batch, key)
                    if step % log_every == 0 or step == steps:
                        scalars = {name: float(value) for name, value in scalars.items()}
                        scalars["lr"] = float(np.asarray(rate(step - 1)))
                        scalars["clips_per_second"] = (step - clock_step) * batch_size / (time.time() - clock)
                        clock, clock_step = time.time(), step
                        log(step, scalars)
                        if scalars["bad_in_a_row"] >= most_bad:
                            raise DivergedError(
                                f"step {step}: loss or gradient of the last {scalars['bad_in_a_row']:.0f} steps was not finite; "
                                f"{folder / 'checkpoints'} has the last good parameters: lower the learning rate, or raise "
                                "most_bad"
                            )
                        bar.set_postfix(
                            loss=f"{scalars['loss']:.3f}", accuracy=f"{scalars['accuracy']:.2f}", refresh=False
                        )
                    bar.update()
                    if step % checkpoint_every == 0 or step == steps or asked:
                        checkpoints.save(saved, step, state)
                    if asked:
                        saved.wait_until_finished()
                        raise StoppedError(asked, f"stopped; {folder} has step {step}, and the same command goes on")
            params = state.params if average is None else state.average
            variables = {"params": params, "batch_stats": state.batch_stats}
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
