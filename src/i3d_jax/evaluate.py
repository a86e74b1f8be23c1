"""Evaluation on whole test clips: top-1 and top-5 accuracy of averaged logits."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.models import layers
from i3d_jax.video import to_unit


def evaluate(model: nn.Module, variables: Any, batches: Iterable[dict[str, np.ndarray]], sharding: Any = None) -> dict:
    """Classifies the clips of `batches` (see `data.test_batches`).

    Args:
      sharding: of the batches over devices; None: one device.

    Returns:
      "top1", "top5" and "loss" over the clips of weight 1, and how many those are, "clips".
    """
    step = jax.jit(eval_step, static_argnames="model", compiler_options=layers.compiler_options())
    totals = np.zeros(4)
    for batch in batches:
        totals += np.asarray(step(variables, jax.device_put(batch, sharding), model=model))
    top1, top5, loss, clips = totals
    return {"top1": top1 / clips, "top5": top5 / clips, "loss": loss / clips, "clips": int(clips)}


def eval_step(variables: Any, batch: dict[str, jax.Array], *, model: nn.Module) -> jax.Array:
    """Sums over a batch: clips right at first, within five, cross-entropy, clips; padding counts for nothing."""
    logits: Any = model.apply(variables, to_unit(batch["video"]))
    label, weight = batch["label"], batch["weight"]
    right = jnp.take_along_axis(logits, label[:, None], 1)
    # How many classes are before the right one; of equal logits the first class is, and of NaN all are.
    tied_before = (logits == right) & (jnp.arange(logits.shape[1])[None] < label[:, None])
    rank = (~(logits <= right) | tied_before).sum(1)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]
    return jnp.stack([(weight * each).sum() for each in (rank < 1, rank < 5, loss, jnp.ones_like(weight))])
