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
      step: updates made or, where they would not have been finite, passed over.
      bad: int32 [2], updates passed over since the last good one, and in all.
      validation: what the run knows of its validations; the updates are scaled by its `scale`.
      average: exponential moving average of the parameters; None: there is none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    bad: jax.Array
    validation: validation.Validation
    average: Any = None


@functools.partial(jax.jit, static_argnames=("tx", "average"))  # Leaf by leaf it would take seconds to compile.
def initial_state(variables: Any, tx: optax.GradientTransformation, average: bool = False) -> State:
    """The state that a run starts with."""
    params = variables["params"]
    averaged = jax.tree.map(jnp.copy, params) if average else None  # Buffers of its own, to be donated.
    bad = jnp.zeros(2, jnp.int32)
    return State(
        jnp.zeros((), jnp.int32), params, variables["batch_stats"], tx.init(params), bad, validation.initial(), averaged
    )


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
      batch: packed clips (see `planes.unpack`) and "label" int32 [B].
      key: the run's, not the step's.
      model: a network that gives logits per step in time in training is taught every one of them.
      parts: in how many parts the batch is taken, one after another, and how many runs of clips each part takes a share
        of (see `split_into_micro_batches`). The update is the same, but for the order of summation.
      average: decay of the parameters' average.
    """
    clips = split_into_micro_batches(batch | {"number": jnp.arange(len(batch["label"]))}, *parts)

    def loss_and_updates(params, clips):
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

    def of_part(clips):
        (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(loss_and_updates, has_aux=True)(state.params, clips)
        return loss, accuracy, batch_stats, grads

    loss, accuracy, batch_stats, grads = _mean_over_micro_batches(of_part, clips)
    norm = _global_norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: state.validation.scale.astype(update.dtype) * update, updates)
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
    bad = jnp.where(good, state.bad * jnp.array([0, 1], jnp.int32), state.bad + 1)
    scalars = {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "bad_in_a_row": bad[0], "bad": bad[1]}
    return State(state.step + 1, params, batch_stats, opt_state, bad, state.validation, averaged), scalars


def split_into_micro_batches(batch: dict, parts: int, runs: int) -> dict:
    """A batch [B, ...] as parts [parts, B / parts, ...], each of which has a share of each of so many runs of clips.

    With as many runs as devices, over which the batch is cut in runs, nothing moves between them.
    """

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(runs, parts, x.shape[0] // (runs * parts), *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

    return {name: cut(x) for name, x in batch.items()}


def _mean_over_micro_batches(function: Callable, parts: Any) -> Any:
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


def _global_norm(tree: Any) -> jax.Array:
    """The root of the sum of all squares: each leaf's are added up by runs, and then what remains of all together.

    Optax adds up one leaf after another to the end, which is the same, but XLA takes several seconds longer to compile it.
    """
    sums = []
    for leaf in jax.tree.leaves(tree):
        sums.append(jnp.square(leaf).reshape(normalization.run(leaf.size), -1).sum(0))
    # Seen as one sum of sums, XLA makes it leaf by leaf again.
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(sums)).sum())


def runs_per_micro_batch(batch_size: int, accumulate: int, norm_group: int | None, devices: int) -> int:
    """Of how many runs of clips each part of a batch takes a share, so that shares have whole groups: as many as devices, if
    that can be.
    """
    part = batch_size // accumulate
    group = norm_group or part
    return max(runs for runs in range(1, devices + 1) if devices % runs == 0 and part % (runs * group) == 0)
