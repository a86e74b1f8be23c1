"""The paper's optimiser and its learning rate."""

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
    """SGD with momentum, the paper's, and its learning rate by step.

    The rate is `lr` times the factor of the last of the `milestones` (step, factor) reached, linear from 0 over the
    first `warmup` steps. Weight decay is an L2 penalty on kernels only.

    Args:
      batch_size: clips per step.
      lr_batch_size: clips per step that `lr` is of; for other batches it is taken in proportion (Goyal et al. 2017). None: `lr`
        is of any batch.
      only: name of the layers that are trained; the others stay as they are, and have no slots. None: all are.
    """
    lr = lr if lr_batch_size is None else lr * batch_size / lr_batch_size
    rates = [
        optax.constant_schedule(lr * factor)
        for factor in (1.0, *(factor for _, factor in milestones))
    ]
    constant = optax.join_schedules(rates, [step for step, _ in milestones])

    def rate(step):
        return constant(step) * jnp.minimum(1.0, (step + 1) / max(1, warmup))

    kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    tx = optax.chain(optax.add_decayed_weights(weight_decay, kernels), optax.sgd(rate, momentum))
    if only is not None:
        tx = optax.partition(
            {True: tx, False: optax.set_to_zero()}, functools.partial(_within, name=only)
        )
    return tx, rate


def _within(params: Any, name: str) -> Any:
    """Per leaf, whether it is one of a layer called so."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(step.key == name for step in path), params
    )
