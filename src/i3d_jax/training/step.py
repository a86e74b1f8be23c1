"""One update: a pure function of the state, the global batch and the run's key."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from i3d_jax import models
from i3d_jax.models import normalization
from i3d_jax.training import validation
from i3d_jax.video import planes


class State(NamedTuple):
    """All that a run changes.

    Attributes:
      step: updates made or, where they would not have been finite, skipped.
      skipped: int32 [2], updates skipped since the last finite one, and in all.
      validation: what the run knows of its validations; the updates are scaled by its `scale`.
      ema_params: exponential moving average of the parameters; None: there is none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    skipped: jax.Array
    validation: validation.Validation
    ema_params: Any = None


class EarlierState(NamedTuple):
    """`State`, field by field, with the names that checkpoints of earlier versions have."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    bad: jax.Array
    validation: validation.Validation
    average: Any = None


@functools.partial(jax.jit, static_argnames=("tx", "ema"))  # Leaf by leaf it takes seconds.
def initial_state(variables: Any, tx: optax.GradientTransformation, ema: bool = False) -> State:
    """The state that a run starts with.

    Args:
      variables: "params" and "batch_stats".
      tx: the optimizer.
      ema: whether there is an exponential moving average of the parameters.
    """
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(params),
        skipped=jnp.zeros(2, jnp.int32),
        validation=validation.initial(),
        # Buffers of its own, to be donated.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def train_step(
    state: State,
    batch: dict,
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    micro_batches: int = 1,
    runs: int = 1,
    ema_decay: float | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One update on the global batch.

    An update from a loss or a gradient that is not finite is counted and skipped. The update does
    not depend on `micro_batches` and `runs`, but for the order of summation.

    Args:
      state: is donated, if the caller's `jax.jit` says so.
      batch: packed clips (see `planes.unpack`) and "label" int32 [B].
      key: the run's, not the step's.
      model: one that gives logits per step in time in training is taught every one of them.
      tx: the optimizer.
      micro_batches: parts of the batch that are computed one after another; gradients are averaged.
      runs: of clips, of which each micro-batch takes a share (see `split_into_micro_batches`).
      ema_decay: per step, of the parameters' moving average; None: the state has none.

    Returns:
      the new state, and the scalars "loss", "accuracy", "grad_norm", "skipped_in_a_row", "skipped".
    """
    clips = batch | {"number": jnp.arange(len(batch["label"]))}
    clips = split_into_micro_batches(clips, micro_batches, runs)

    def loss_and_gradients(clips):
        loss = functools.partial(_loss, state=state, clips=clips, key=key, model=model)
        (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        return loss, accuracy, batch_stats, grads

    loss, accuracy, batch_stats, grads = _mean_over_micro_batches(loss_and_gradients, clips)
    norm = _global_norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    scale = state.validation.scale
    updates = jax.tree.map(lambda update: scale.astype(update.dtype) * update, updates)
    params = optax.apply_updates(state.params, updates)
    ema_params = None
    if ema_decay is not None:
        ema_params = jax.tree.map(
            lambda old, new: ema_decay * old + (1 - ema_decay) * new, state.ema_params, params
        )
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def chosen(new, old):  # Counts of steps go on.
        return jnp.where(finite, new, old) if jnp.issubdtype(new.dtype, jnp.inexact) else new

    changed = (params, batch_stats, opt_state, ema_params)
    kept = (state.params, state.batch_stats, state.opt_state, state.ema_params)
    params, batch_stats, opt_state, ema_params = jax.tree.map(chosen, changed, kept)
    skipped = jnp.where(finite, state.skipped * jnp.array([0, 1], jnp.int32), state.skipped + 1)
    scalars = {"loss": loss, "accuracy": accuracy, "grad_norm": norm}
    scalars |= {"skipped_in_a_row": skipped[0], "skipped": skipped[1]}
    new = (params, batch_stats, opt_state, skipped, state.validation, ema_params)
    return State(state.step + 1, *new), scalars


def _loss(params: Any, *, state: State, clips: dict, key: jax.Array, model: nn.Module) -> Any:
    """The mean cross-entropy of a micro-batch, and (new batch statistics, accuracy)."""
    logits, updates = model.apply(
        {"params": params, "batch_stats": state.batch_stats, "clips": {"number": clips["number"]}},
        models.as_network_input(planes.unpack(clips)),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.fold_in(key, state.step)},
    )
    label = clips["label"].reshape(-1, *(1,) * (logits.ndim - 2))
    label = jnp.broadcast_to(label, logits.shape[:-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    return loss, (updates["batch_stats"], (logits.argmax(-1) == label).mean())


def split_into_micro_batches(batch: dict, micro_batches: int, runs: int) -> dict:
    """A batch [B, ...] as micro-batches [micro_batches, B / micro_batches, ...].

    The batch is cut into `runs` runs of clips, and each micro-batch takes a share of each run. With
    as many runs as devices, over which the batch is cut in runs too, no clip moves between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        share = x.shape[0] // (runs * micro_batches)
        x = x.reshape(runs, micro_batches, share, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(micro_batches, -1, *x.shape[3:])

    return {name: split(x) for name, x in batch.items()}


def _mean_over_micro_batches(function: Callable, micro_batches: Any) -> Any:
    """The mean of what a function of one micro-batch returns; one at a time."""
    first = jax.tree.map(lambda x: x[0], micro_batches)
    number = len(jax.tree.leaves(micro_batches)[0])
    if number == 1:
        return function(first)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, function(micro_batch)), None

    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, micro_batches)
    return jax.tree.map(lambda x: x / number, total)


def _global_norm(tree: Any) -> jax.Array:
    """The root of the sum of all squares: first each leaf's by runs, then all of these together.

    Optax's adds up one leaf after another, which XLA takes several seconds longer to compile.
    """
    sums = []
    for leaf in jax.tree.leaves(tree):
        sums.append(jnp.square(leaf).reshape(normalization.run_length(leaf.size), -1).sum(0))
    # Without the barrier XLA makes one sum of sums, leaf by leaf again.
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(sums)).sum())


def runs_per_micro_batch(
    batch_size: int, grad_accum_steps: int, norm_group_size: int | None, devices: int
) -> int:
    """The number of runs for `split_into_micro_batches`: as many as devices, if that can be.

    Each micro-batch's share of a run must be whole groups of batch norm.
    """
    micro_batch = batch_size // grad_accum_steps
    group = norm_group_size or micro_batch
    return max(
        runs
        for runs in range(1, devices + 1)
        if devices % runs == 0 and micro_batch % (runs * group) == 0
    )
