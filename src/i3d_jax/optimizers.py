"""The paper's optimiser and its learning rate."""

import functools

import jax
import jax.numpy as jnp
import optax


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
