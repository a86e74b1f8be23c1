"""What a run learns from its validations: the best step, and when to lower the learning rate."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

METRICS = {"top1": 1, "top5": 1, "mean_class": 1, "loss": -1}  # 1: higher is better.


class Validation(NamedTuple):
    """The validations so far, as scalars; a part of the run's state.

    Attributes:
      best: the best value of the metric.
      best_step: the step of that value; 0 if there was no validation.
      loss: the lowest loss that counted as an improvement.
      since: validations since then.
      scale: what the learning rate is multiplied by.
    """

    best: jnp.ndarray
    best_step: jnp.ndarray
    loss: jnp.ndarray
    since: jnp.ndarray
    scale: jnp.ndarray


def initial() -> Validation:
    """Before the first validation."""
    # Not weakly typed, so that the step is compiled once.
    return Validation(
        best=jnp.float32(0),
        best_step=jnp.int32(0),
        loss=jnp.float32(jnp.inf),
        since=jnp.int32(0),
        scale=jnp.float32(1),
    )


def update(
    validation: Validation,
    step: int,
    scores: dict[str, float],
    metric: str = "top1",
    plateau: dict | None = None,
) -> Validation:
    """Adds a validation.

    Args:
      validation: those before.
      step: of this one.
      scores: as `metrics.scores` returns them.
      metric: one of METRICS, which says what is best; of equal values the first.
      plateau: arguments of `reduce_on_plateau`; None: the learning rate stays.
    """
    best, best_step, loss, since, scale = (each.item() for each in map(np.asarray, validation))
    value = np.float32(scores[metric])
    if np.isfinite(value) and (best_step == 0 or METRICS[metric] * (value - best) > 0):
        best, best_step = value, step
    if plateau is not None:
        loss, since, scale = reduce_on_plateau(loss, since, scale, scores["loss"], **plateau)
    return Validation(
        best=jnp.float32(best),
        best_step=jnp.int32(best_step),
        loss=jnp.float32(loss),
        since=jnp.int32(since),
        scale=jnp.float32(scale),
    )


def reduce_on_plateau(
    best: float,
    since: int,
    scale: float,
    loss: float,
    *,
    factor: float = 0.1,
    patience: int = 2,
    threshold: float = 0.001,
) -> tuple[float, int, float]:
    """The paper's schedule: the rate drops when the validation loss saturates (section 2.5).

    The paper does not say how it decides that. Here the loss has saturated when it did not improve
    in `patience` validations in a row.

    Args:
      best: The lowest loss so far that counted as an improvement.
      since: Validations since then.
      scale: Of the learning rate, so far.
      loss: Of this validation.
      factor: What the learning rate is multiplied by when the loss has saturated.
      patience: Validations without improvement after which it has.
      threshold: The share by which a loss must be lower to be an improvement.

    Returns:
      `best`, `since` and `scale` after this validation.
    """
    if loss < best * (1 - threshold):
        return loss, 0, scale
    return (best, 0, scale * factor) if since + 1 >= patience else (best, since + 1, scale)
