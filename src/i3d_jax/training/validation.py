"""What a run makes of its validations: the best one so far, and a learning rate that drops when they do not improve."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

METRICS = {"top1": 1, "top5": 1, "mean_class": 1, "loss": -1}  # 1: the more, the better.


class Validation(NamedTuple):
    """A run's validations so far; scalars that are saved with its parameters.

    Attributes:
      best: value of the best one's metric, which was at step `best_step` (0: there was none).
      loss: the lowest that counted as an improvement; `since` so many validations there was none.
      scale: of the learning rate.
    """

    best: jnp.ndarray
    best_step: jnp.ndarray
    loss: jnp.ndarray
    since: jnp.ndarray
    scale: jnp.ndarray


def initial() -> Validation:
    """As long as there was none."""
    # Not weakly typed: the step would be compiled again for the state that it returns.
    return Validation(
        jnp.float32(0), jnp.int32(0), jnp.float32(jnp.inf), jnp.int32(0), jnp.float32(1)
    )


def update(
    validation: Validation,
    step: int,
    scores: dict[str, float],
    metric: str = "top1",
    plateau: dict | None = None,
) -> Validation:
    """What is known after one more.

    Args:
      scores: as `metrics.scores` returns them.
      metric: one of METRICS, which says what is best; of equal ones the first.
      plateau: arguments of `reduce_on_plateau`.
    """
    best, best_step, loss, since, scale = (each.item() for each in map(np.asarray, validation))
    value = np.float32(scores[metric])
    if np.isfinite(value) and (best_step == 0 or METRICS[metric] * (value - best) > 0):
        best, best_step = value, step
    if plateau is not None:
        loss, since, scale = reduce_on_plateau(loss, since, scale, scores["loss"], **plateau)
    return Validation(
        jnp.float32(best),
        jnp.int32(best_step),
        jnp.float32(loss),
        jnp.int32(since),
        jnp.float32(scale),
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
    """The paper's schedule: the learning rate is divided by 10 when the validation loss saturates (section 2.5).

    How the paper decides that is not said. Here it has when it is not lower than the lowest before, by a share of `threshold`
    of it, `patience` validations in a row.

    Returns:
      `best`, `since` and `scale` after a validation with such a loss.
    """
    if loss < best * (1 - threshold):
        return loss, 0, scale
    return (best, 0, scale * factor) if since + 1 >= patience else (best, since + 1, scale)
