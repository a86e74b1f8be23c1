"""The training step: loss, micro-batches, EMA, skipped updates, devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax import models
from i3d_jax.models import layers, pooling
from i3d_jax.training import optimizers
from i3d_jax.training.step import (
    _global_norm,
    initial_state,
    runs_per_micro_batch,
    split_into_micro_batches,
    train_step,
)
from i3d_jax.video import planes


def random_clips(rng, batch, frames, size):
    """A batch of noise, in the form of `pipeline.train_batches`."""
    rgb = rng.integers(0, 255, (batch, frames, (size + 2) * 3 // 2, size + 2)).astype(np.uint8)
    corner, mirrored = rng.integers(0, 2, (batch, 2)).astype(np.int32), rng.random(batch) < 0.5
    return {"rgb": rgb, "corner": corner, "mirrored": mirrored}


class LogitsPerStep(nn.Module):
    """Returns logits of every step in time, as ConvNet+LSTM does in training."""

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "unused", jnp.zeros, ())
        return nn.Dense(5)(x.mean((2, 3)))


class SmallNetwork(nn.Module):
    """Two convolutions with grouped batch norm, a pool and dropout; in float64."""

    @nn.compact
    def __call__(self, x, train=False):
        unit = functools.partial(layers.ConvBN, groups=4, dtype=jnp.float64)
        x = unit(6, (3, 3, 3), (1, 1, 1), name="a")(x, train)
        x = pooling.max_pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(8, (3, 3, 3), (2, 2, 2), name="b")(x, train).mean((1, 2, 3))
        return nn.Dense(5, name="Logits")(layers.Dropout(0.5)(x, train))


class NanForBrightClips(nn.Module):
    """Returns logits that are not finite for bright clips."""

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "unused", jnp.zeros, ())
        x = x.mean((1, 2, 3))
        return nn.Dense(5, name="Logits")(x) + jnp.where(x.mean() > 0.5, jnp.nan, 0.0)


def run_with_nan_steps(ema_decay=None):
    """A run whose steps on bright clips are not finite.

    Returns:
      its state; a function of a state and `is_bright` that takes a step.
    """
    model, (tx, _) = NanForBrightClips(), optimizers.sgd(lr=0.1, milestones=((2, 0.1),))
    rng = np.random.default_rng(0)
    dark = random_clips(rng, 4, 2, 4) | {"label": np.arange(4)}
    bright = dark | {"rgb": np.full_like(dark["rgb"], 235)}
    bright["rgb"][:, :, 6:] = 128
    params = model.init(jax.random.key(0), jnp.zeros((1, 2, 4, 4, 3)))["params"]
    variables = {"params": params, "batch_stats": {"unused": jnp.zeros(())}}
    state = initial_state(variables, tx, ema_decay is not None)
    options = dict(model=model, tx=tx, ema_decay=ema_decay)
    step = functools.partial(train_step, key=jax.random.key(1), **options)
    return state, lambda state, is_bright: step(state, bright if is_bright else dark)


def test_global_norm_is_that_of_all_elements():
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape) for shape in ((3, 3, 7, 11), (13,), (64, 64), ())]
    norm = _global_norm(jax.tree.map(jnp.float32, grads))
    np.testing.assert_allclose(norm, optax.tree.norm(grads), rtol=1e-6)


def test_the_loss_is_the_mean_over_all_steps_in_time():
    model, (tx, _) = LogitsPerStep(), optimizers.sgd(lr=0.1)
    rng = np.random.default_rng(0)
    batch = random_clips(rng, 4, 3, 2) | {"label": np.arange(4)}
    variables = model.init(jax.random.key(0), jnp.zeros((1, 3, 2, 2, 3)))
    params, stats = variables["params"], variables["batch_stats"]
    state = initial_state({"params": params, "batch_stats": stats}, tx)
    _, scalars = train_step(state, batch, jax.random.key(1), model=model, tx=tx)
    logits = jax.jit(model.apply)(variables, planes.unpack(batch)["rgb"])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = [cross_entropy(logits[:, t], batch["label"]) for t in range(3)]
    np.testing.assert_allclose(scalars["loss"], np.mean(losses), rtol=1e-6)
    right = logits.argmax(-1) == batch["label"][:, None]
    np.testing.assert_allclose(scalars["accuracy"], right.mean())


def test_two_devices_match_one(float64):
    # In float32 rounding flips ReLUs, and gradients of deep layers differ in the second digit.
    model, tx = SmallNetwork(), optimizers.sgd(lr=0.1)[0]
    rng = np.random.default_rng(0)
    batch = random_clips(rng, 8, 4, 16) | {"label": np.arange(8) % 5}
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    state = initial_state({"params": params, "batch_stats": batch_stats}, tx)
    step = jax.jit(train_step, static_argnames=("model", "tx"))
    results = []
    for devices in jax.devices()[:1], jax.devices()[:2]:
        mesh = Mesh(np.array(devices), ("data",))
        here = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        clips = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        for _ in range(3):
            here, scalars = step(here, clips, jax.random.key(1), model=model, tx=tx)
        results.append(jax.device_get((scalars["loss"], here.batch_stats, here.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7, rtol=1e-6), *results)


def test_updates_that_are_not_finite_are_skipped_and_counted():
    state, step = run_with_nan_steps()
    counted = []
    for is_bright in (False, True, True, False, True):
        before = state
        state, scalars = step(state, is_bright)
        counted.append(state.skipped.tolist())
        assert [float(scalars["skipped_in_a_row"]), float(scalars["skipped"])] == counted[-1]
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, before.params)
        assert all(jax.tree.leaves(same)) == is_bright
        leaves = jax.tree.leaves(state._replace(validation=None))
        assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    assert counted == [[0, 0], [1, 1], [2, 2], [0, 2], [1, 3]]
    # A skipped step counts as a step, also for the learning rate.
    leaves = jax.tree.leaves(state.opt_state)
    counts = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.integer)]
    assert int(state.step) == 5 and [int(count) for count in counts] == [5]


@pytest.mark.parametrize("wide", [False, True])
def test_a_step_keeps_the_types_of_its_state_so_that_it_is_compiled_once(wide):
    with jax.enable_x64(wide):
        state, step = run_with_nan_steps(ema_decay=0.9)
        after, _ = jax.eval_shape(functools.partial(step, is_bright=False), state)
        described = [
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), each)
            for each in (state, after)
        ]
        assert described[0] == described[1]


def test_ema_of_parameters_leaves_out_skipped_updates():
    state, step = run_with_nan_steps(ema_decay=0.9)
    wanted = state.params
    for is_bright in (False, False, True, False):
        state, _ = step(state, is_bright)
        if not is_bright:
            wanted = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, wanted, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.ema_params, wanted)


def test_micro_batches_have_every_clip_once_and_whole_norm_groups():
    batch = {"number": np.arange(24), "rgb": np.arange(24)[:, None] * np.ones((1, 2))}
    for parts, devices, group in ((2, 2, 3), (2, 4, 3), (4, 2, 3), (1, 8, 3), (2, 8, 6)):
        runs = runs_per_micro_batch(24, parts, group, devices)
        found = split_into_micro_batches(jax.tree.map(jnp.asarray, batch), parts, runs)
        assert sorted(found["number"].ravel().tolist()) == list(range(24))
        assert (found["rgb"][..., 0] == found["number"]).all()
        groups = found["number"].reshape(-1, group)
        assert (groups[:, 0] % group == 0).all() and (jnp.diff(groups, axis=1) == 1).all()
        if runs == devices:  # A device's clips stay where they are.
            whose = found["number"].reshape(parts, devices, -1) // (24 // devices)
            assert (whose == jnp.arange(devices)[None, :, None]).all()
    runs = [runs_per_micro_batch(24, 2, group, 8) for group in (1, 3, 6, 12, None)]
    assert runs == [4, 4, 2, 1, 1]


def test_dropout_of_a_clip_does_not_depend_on_its_micro_batch():
    module, key = layers.Dropout(0.5), jax.random.key(3)

    def drop(x, numbers):
        return module.apply({"clips": {"number": numbers}}, x, True, rngs={"dropout": key})

    x = jnp.ones((6, 2, 50))
    whole = drop(x, jnp.arange(6))
    assert 0.4 < (whole == 0).mean() < 0.6 and set(np.unique(whole)) == {0.0, 2.0}
    assert len({each.tobytes() for each in np.asarray(whole)}) == 6
    chosen = jnp.array([4, 1])
    np.testing.assert_array_equal(drop(x[chosen], chosen), whole[chosen])
    rows = drop(x[chosen].reshape(4, 50), chosen)  # Two rows per clip.
    np.testing.assert_array_equal(rows.reshape(2, 2, 50), whole[chosen])
    np.testing.assert_array_equal(module.apply({}, x, False), x)


@pytest.mark.slow  # Compiles whole networks.
def test_remat_changes_neither_variables_nor_gradients(float64):
    video = jax.random.normal(jax.random.key(1), (4, 9, 16, 16, 3))
    found, barriers = [], []
    for remat in (False, True):
        options = dict(num_classes=3, width=0.05, dropout=0.5, dtype=jnp.float64)
        network = models.build("i3d", **options, remat=remat)
        variables = jax.jit(network.init)(jax.random.key(0), video)

        def loss(params, network=network, stats=variables["batch_stats"]):
            variables = {"params": params, "batch_stats": stats}
            rngs = {"dropout": jax.random.key(2)}
            options = dict(train=True, mutable=["batch_stats"], rngs=rngs)
            logits, updates = network.apply(variables, video, **options)
            return (logits[..., 1] - 2 * logits[..., 2]).sum(), updates

        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"])
        barriers.append(step.as_text().count("optimization_barrier"))
        found.append(step.compile()(variables["params"]))
    assert barriers[1] - barriers[0] == 12  # One for each convolution and block of the table.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), *found)
