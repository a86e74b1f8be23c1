"""Unusual types: JAX_ENABLE_X64, float64, and variables as NumPy arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_networks import SMALL, clip, small

from i3d_jax import flow, models
from i3d_jax.flow.tvl1 import TVL1
from i3d_jax.models import convnet_lstm, convolution, platforms
from i3d_jax.training import optimizers
from i3d_jax.training.step import initial_state, train_step
from i3d_jax.video import planes

KEY = jax.random.key(0)
NAMES = [name for name in SMALL if name != "two_stream_i3d"]  # It is two I3Ds.
# Together these have all layers.
TRAINED = [("fused_two_stream", "float32")]
TRAINED += [
    (name, dtype)
    for name in ("convnet_lstm", "c3d", "i3d")
    for dtype in ("float32", "bfloat16", "float64")
]
TESTED = [(name, dtype) for name in NAMES for dtype in ("float32", "bfloat16")]


@pytest.fixture(autouse=True)
def fewer_multiplications(monkeypatch):
    """Uses Toom-Cook for convolutions of any size."""
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)


def packed(streams, size=32, batch=4):
    """Training clips of noise, as the host sends them."""
    rng = np.random.default_rng(0)
    clips = {
        stream: rng.integers(0, 255, (batch, frames, *planes.packed_shape(stream, size)), np.uint8)
        for stream, (frames, _) in streams.items()
    }
    return clips | {
        "corner": np.ones((batch, 2), np.int32),
        "mirrored": np.arange(batch) % 2 == 0,
        "backwards": np.arange(batch) % 2 == 1,
        "label": np.arange(batch, dtype=np.int32),
    }


def run(name, **options):
    """A function that makes a run's first state, the training step, and clips."""
    network, streams = small(name, **options), SMALL[name][1]
    tx, _ = optimizers.sgd(lr=0.01, warmup=3, milestones=((1, 0.1),), lr_batch_size=8, batch_size=4)
    step = functools.partial(train_step, model=network, tx=tx, ema_decay=0.9)

    def start():
        video = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), models.input_shapes(streams, 32, 2)
        )
        return initial_state(network.init(KEY, video), tx, ema=True)

    return network, start, step, packed(streams)


def types(tree):
    return [
        (jax.tree_util.keystr(path), leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize("name,dtype", TRAINED)
def test_types_of_a_runs_state_are_the_same_with_x64_and_stay_so(name, dtype):
    of_float32 = types(jax.eval_shape(run(name)[1]))
    with jax.enable_x64(True):
        network, start, step, clips = run(name, dtype=dtype)
        state = jax.eval_shape(start)
        after, _ = jax.eval_shape(step, state, clips, KEY)
        assert types(state) == types(after) == of_float32
        variables = {"params": after.params, "batch_stats": after.batch_stats}
        video = models.as_network_input(jax.eval_shape(planes.unpack, clips))
        assert {leaf.dtype for leaf in jax.tree.leaves(video)} == {jnp.dtype("float32")}
        logits, ends = jax.eval_shape(
            functools.partial(network.apply, endpoints=True), variables, video
        )
    assert logits.dtype == ("float64" if dtype == "float64" else "float32")
    floats = {
        leaf.dtype.name
        for leaf in jax.tree.leaves(ends)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    assert floats <= {dtype, logits.dtype.name}


@pytest.mark.parametrize("form", ["cuda", "tpu"])
def test_other_platforms_forms_keep_types_with_x64_too(form):
    with jax.enable_x64(True), platforms.forms_of(form):
        _, start, step, clips = run("c3d")
        state = jax.eval_shape(start)
        assert types(jax.eval_shape(step, state, clips, KEY)[0]) == types(state)


def test_two_steps_with_x64_are_those_without_and_one_program(programs):
    """Compares the losses, which other dropout masks would change.

    Gradients differ by more, since rounding of float32 flips ReLUs.
    """
    states, losses = [], []
    for x64 in False, True:
        with jax.enable_x64(x64):
            _, start, step, clips = run("c3d")
            state = jax.jit(start)()
            update = jax.jit(functools.partial(step, micro_batches=2))
            for _ in range(2):
                state, scalars = update(state, clips, KEY)
                losses.append(float(scalars["loss"]))
            states.append(types(state))
    assert programs().count("jit(train_step)") == 2
    assert states[0] == states[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-4) and losses[3] == pytest.approx(
        losses[1], rel=2e-3
    )
    assert abs(losses[1] - losses[0]) > 1e-3


def test_optical_flow_is_the_same_with_x64():
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 255, (20, 24))
    settings = TVL1(scales=2, warps=1, outer=1, inner=5)
    found = []
    for x64 in False, True:
        with jax.enable_x64(x64):
            found.append(np.asarray(flow.tv_l1(first, np.roll(first, 1, 1), settings)))
    assert [each.dtype for each in found] == [np.float32] * 2
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", jnp.float64])
def test_float64_without_x64_is_refused_by_name(dtype):
    with pytest.raises(
        ValueError, match="model 'c3d': dtype is float64, .* only with JAX_ENABLE_X64=1"
    ):
        models.build("c3d", num_classes=7, dtype=dtype)
    with jax.enable_x64(True):
        network = models.build("c3d", num_classes=7, width=0.05, dtype=dtype)
    video = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), jnp.float32)
    with pytest.raises(
        ValueError, match="3D-ConvNet: dtype is float64, .* only with JAX_ENABLE_X64=1"
    ):
        jax.eval_shape(network.init, KEY, video)


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize("name,dtype", TESTED)
def test_variables_may_be_numpys_and_closed_over(name, dtype):
    network, video = (
        small(name, dtype=dtype),
        clip(SMALL[name][1]),
    )
    shapes = jax.eval_shape(network.init, KEY, video)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    assert jax.eval_shape(lambda video: network.apply(variables, video), video).shape == (2, 7)


def test_the_lstm_takes_variables_of_numpy_outside_of_jit():
    layer, x = (
        convnet_lstm.NormLSTM(hidden=5, steps=3),
        np.random.default_rng(0).normal(size=(2, 4, 4)),
    )
    x = jnp.asarray(x, jnp.float32)
    variables = layer.init(KEY, x, False)
    wanted = layer.apply(variables, x, False)
    found = layer.apply(jax.device_get(variables), x, False)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
