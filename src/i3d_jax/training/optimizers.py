"""The paper's optimizer and its learning rate."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax


def sgd(
    *,
    lr: float,
    batch_size: int = 1,
    lr_batch_size: int | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-7,
    warmup: int = 0,
    milestones: tuple[tuple[int, float], ...] = (),
    only: str | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """SGD with momentum (the paper's), and its learning rate by step.

    Args:
      lr: Learning rate after the warmup and before the milestones.
      batch_size: Clips per step.
      lr_batch_size: Clips per step that lr is for; it scales linearly. None: lr is not scaled.
      momentum: Of SGD.
      weight_decay: Factor of an L2 penalty on kernels; biases have none.
      warmup: Steps over which the learning rate rises linearly from 0.
      milestones: (step, factor) pairs: from the step on the rate is the factor times lr.
      only: Name of the layers that are trained; the others have no momentum. None: all are.

    Returns:
      the optimizer, and a function from a step to its learning rate.
    """
    # Linear scaling: Goyal et al. 2017.
    lr = lr if lr_batch_size is None else lr * batch_size / lr_batch_size
    factors = (1.0, *(factor for _, factor in milestones))
    rates = [optax.constant_schedule(lr * factor) for factor in factors]
    constant = optax.join_schedules(rates, [step for step, _ in milestones])

    def learning_rate(step):
        return constant(step) * jnp.minimum(1.0, (step + 1) / max(1, warmup))

    kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    penalty = optax.add_decayed_weights(weight_decay, kernels)
    tx = optax.chain(penalty, optax.sgd(learning_rate, momentum))
    if only is not None:
        trained = functools.partial(_is_in_layer, name=only)
        tx = optax.partition({True: tx, False: optax.set_to_zero()}, trained)
    return tx, learning_rate


def _is_in_layer(params: Any, name: str) -> Any:
    """For each leaf, whether it belongs to a layer of that name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(step.key == name for step in path), params
    )
