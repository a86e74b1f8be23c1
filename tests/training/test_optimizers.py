"""Learning rates, weight decay, frozen layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from i3d_jax.training import optimizers


def test_weight_decay_is_an_l2_penalty_on_kernels_only():
    tx, _ = optimizers.sgd(lr=1.0, momentum=0.0, weight_decay=0.5)
    params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], 2.0)
    np.testing.assert_allclose(new["bias"], 4.0)


def test_the_releases_learning_rate_for_flow_with_its_restart():
    milestones = ((97_000, 0.1), (104_500, 0.01), (115_000, 1.0), (140_000, 0.1), (150_000, 0.01))
    _, rate = optimizers.sgd(lr=0.1, milestones=milestones)
    steps = [0, 96_999, 97_000, 104_500, 115_000, 139_999, 140_000, 150_000, 154_999]
    found = [float(rate(step)) for step in steps]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.1, 0.1, 0.01, 0.001, 0.001])


def test_lr_batch_size_scales_the_learning_rate_with_the_batch():
    cases = ({}, 0.1), ({"lr_batch_size": 384}, 0.1 / 6), ({"lr_batch_size": 16}, 0.4)
    for options, wanted in cases:
        _, rate = optimizers.sgd(lr=0.1, batch_size=64, **options)
        assert float(rate(0)) == pytest.approx(wanted)


def test_frozen_layers_have_no_optimizer_state():
    params = {"Conv": {"kernel": jnp.ones((2, 3))}, "rgb": {"Logits": {"kernel": jnp.ones((3, 4))}}}
    tx, _ = optimizers.sgd(lr=1.0, only="Logits", weight_decay=0.5)
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim] == [(3, 4)]
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert (updates["Conv"]["kernel"] == 0).all()
    assert (updates["rgb"]["Logits"]["kernel"] == -0.5).all()


def test_the_learning_rate_rises_linearly_over_the_warmup_and_then_has_its_factors():
    _, rate = optimizers.sgd(lr=0.4, warmup=4, milestones=((6, 0.1),))
    found = [float(rate(step)) for step in range(8)]
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.04, 0.04], rtol=1e-6)
    _, without = optimizers.sgd(lr=0.4)
    assert [float(without(step)) for step in (0, 1, 1000)] == pytest.approx([0.4] * 3)


def test_by_default_momentum_and_weight_decay_are_the_releases():
    tx, _ = optimizers.sgd(lr=1.0)
    params, grads = {"kernel": jnp.full((1, 1), 2e6)}, {"kernel": jnp.ones((1, 1))}
    state = tx.init(params)
    moved = []
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        moved.append(float(updates["kernel"][0, 0]))
    # Gradient and penalty are 1 + 1e-7 * 2e6 = 1.2; then 1.2 + 0.9 * 1.2.
    assert moved == pytest.approx([-1.2, -2.28], rel=1e-5)
