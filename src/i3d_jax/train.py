"""Training: one pure step on the global batch, and a loop that schedules it.

A run is a folder: `checkpoints/`, `log.jsonl` (the durable record), TensorBoard event files and, at its end,
`weights.safetensors`. Started again with the same arguments it goes on where it was stopped.
"""

import contextlib
import pathlib
import time
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
      optimizer: arguments of `optimizers.sgd`.
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
      checks.ConfigError: an argument that does not fit the others (see `checks.validate`) or those the run was started with.
    """
    config = dict(locals())
    del config["workdir"]
    checks.validate(config, train)
    began = time.time()
    folder = pathlib.Path(workdir)
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
    groups = 1 if norm_group is None else batch_size // norm_group
    network = models.build(num_classes=len(classes), norm_groups=groups, **model)
    tx, rate = optimizers.sgd(**optimizer)
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
