"""Networks run chunk by chunk equal one pass over the whole video."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.small_networks import SMALL, clip, small

from i3d_jax import models
from i3d_jax.models import convolution, streaming

ANYTHING = 7.0  # What chunks have behind a video's end.


@functools.cache
def made(name, **options):
    """A small network, and variables with random statistics and offsets."""
    network = small(name, **options)
    streams = {"rgb": (9, 1), "flow": (9, 1)} if options.get("dims") == 3 else SMALL[name][1]
    variables = jax.jit(network.init)(jax.random.key(0), clip(streams))
    rng = np.random.default_rng(1)
    return network, jax.tree.map(
        lambda x: x if x.ndim > 1 else jnp.asarray(rng.uniform(0.3, 1, x.shape), x.dtype), variables
    )


@functools.cache
def jitted_step(network):
    return jax.jit(functools.partial(streaming.step, network=network))


@functools.cache
def jitted_apply(network):
    return jax.jit(functools.partial(network.apply, endpoints=True))


def noise(network, ticks, batch=1, size=32, streams=("rgb",), dtype=None):
    """A batch of videos of noise."""
    found = clip({name: (ticks * network.timing.frames(name), 1) for name in streams}, batch, size)
    return jax.tree.map(lambda x: x.astype(dtype or x.dtype), found)


def ticks_of(network, whole, start, stop):
    """Some ticks of videos; behind their end there is ANYTHING."""

    def part(x, per_tick):
        pads = [(0, 0)] * x.ndim
        pads[1] = 0, max(0, stop * per_tick - x.shape[1])
        return jnp.pad(x, pads, constant_values=ANYTHING)[:, start * per_tick : stop * per_tick]

    if isinstance(whole, dict):
        return {name: part(x, network.timing.frames(name)) for name, x in whole.items()}
    return part(whole, network.timing.rgb)


def streamed(network, variables, whole, lengths, size):
    """{layer: [rows of each video]} of videos in chunks of `size` ticks."""
    state = streaming.start(network, variables, ticks_of(network, whole, 0, size), lengths)
    found, missing, start = {}, True, 0
    while missing:
        chunk = ticks_of(network, whole, start, start + size)
        state, ends = jitted_step(network)(variables, state, chunk)
        missing, start = False, start + size
        assert start < max(lengths) + 200 + size
        for name, end in ends.items():
            values, steps, valid = (np.asarray(x) for x in (end.values, end.steps, end.valid))
            rows = found.setdefault(name, [[] for _ in lengths])
            for one, of_one, its_values, its_steps in zip(rows, valid, values, steps, strict=True):
                assert its_steps[of_one].tolist() == list(range(len(one), len(one) + of_one.sum()))
                one += list(its_values[of_one])
            missing |= any(len(row) < count for row, count in zip(rows, np.asarray(end.count)))
    return {name: [np.stack(row) for row in rows] for name, rows in found.items()}


def assert_streamed_equals_one_pass(
    network, variables, whole, lengths, size, tolerance, forms="plain"
):
    found = streamed(network, variables, whole, lengths, size)
    for number, length in enumerate(lengths):
        one = jax.tree.map(
            lambda x, number=number: x[number : number + 1], ticks_of(network, whole, 0, length)
        )
        with models.forms_of(forms):
            _, ends = jitted_apply(network)(variables, one)
        assert set(ends) == set(found)
        for name, end in ends.items():
            rows = found[name][number]
            assert rows.shape == end[0].shape, (name, length)
            error = np.abs(rows - end[0]).max() / np.abs(end[0]).max()
            assert error < tolerance, (name, length, size, error)


@pytest.mark.parametrize("lengths", [(9, 14, 23)])
def test_i3d_in_chunks_of_16_equals_one_pass_for_any_length(lengths, float64):
    network, variables = made("i3d", dtype=jnp.float64)
    whole = noise(network, max(lengths), batch=len(lengths))
    assert_streamed_equals_one_pass(network, variables, whole, lengths, 16, 1e-12)


@pytest.mark.parametrize("stem,lengths,size", [("8x8", (9, 4), 4), ("32x2_unpadded", (27,), 8)])
def test_resnet_in_chunks_equals_one_pass(stem, lengths, size, float64):
    network, variables = made("i3d_r50", dtype=jnp.float64, stem=stem)
    # Else the factors of batch norms are float32, which programs round differently.
    variables = jax.tree.map(jnp.float64, variables)
    whole = noise(network, max(lengths), batch=len(lengths))
    assert_streamed_equals_one_pass(network, variables, whole, lengths, size, 1e-12)


@pytest.mark.slow  # Compiles a network for every length.
@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_i3d_equals_one_pass_for_all_remainders_of_16_and_long_videos(size, float64):
    network, variables = made("i3d", dtype=jnp.float64)
    for lengths in ((10, 11, 12), (13, 15, 16), (17, 33, 35), (97, 160, 203)):
        whole = noise(network, max(lengths), batch=len(lengths))
        assert_streamed_equals_one_pass(network, variables, whole, lengths, size, 1e-12)


@pytest.mark.slow  # Runs long videos.
def test_a_long_video_in_float32_equals_one_pass():
    network, variables = made("i3d")
    whole = noise(network, 700, batch=2)
    assert_streamed_equals_one_pass(network, variables, whole, (700, 613), 32, 1e-5)


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize(
    "name,options,lengths,size",
    [
        ("inception", {}, (7, 4), 3),
        ("convnet_lstm", {}, (9, 4), 2),
        ("c3d", {}, (3, 1), 2),
        ("two_stream", {}, (5, 2), 2),
        ("fused_two_stream", {}, (9, 1), 2),
        ("fused_two_stream", {"dims": 3}, (41, 27), 16),
        ("two_stream_i3d", {}, (41, 27), 16),
        ("resnet50", {}, (5, 2), 3),
    ],
)
def test_the_zoo_in_chunks_equals_one_pass(name, options, lengths, size, float64):
    network, variables = made(name, dtype=jnp.float64, **options)
    whole = noise(network, max(lengths), len(lengths), streams=models.MODELS[name].train)
    # Factors of batch norms are float32. Programs of other batch sizes round those of C3D and of
    # ResNet differently.
    tolerance = 1e-7 if name in ("c3d", "resnet50") else 1e-12
    assert_streamed_equals_one_pass(network, variables, whole, lengths, size, tolerance)


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize("platform", ["cuda", "tpu", "plain"])
def test_the_forms_of_other_platforms_equal_one_pass(platform, float64):
    network, variables = made("i3d", dtype=jnp.float64, norm_decay=0.5)
    whole = noise(network, 27)
    with models.forms_of(platform):
        assert_streamed_equals_one_pass(network, variables, whole, (27,), 16, 1e-12, platform)


@pytest.mark.slow  # Compiles a large program.
def test_toom_cook_in_chunks_equals_one_pass(float64, monkeypatch):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
    network, variables = made("i3d", dtype=jnp.float64, norm_decay=0.75)
    assert_streamed_equals_one_pass(network, variables, noise(network, 45), (45,), 32, 1e-11)


def test_an_unknown_length_is_taken_as_a_multiple_of_16():
    network, variables = made("i3d")
    whole = noise(network, 160)
    known = streamed(network, variables, whole, (160,), 16)["Logits"][0]
    state, rows = streaming.start(network, variables, whole[:, :16]), []
    for start in range(0, 160, 16):
        state, ends = jitted_step(network)(variables, state, whole[:, start : start + 16])
        rows += list(ends["Logits"].values[0][np.asarray(ends["Logits"].valid[0])])
    # The newest prediction is 7 steps behind, and the one after the last frames has not come.
    assert len(rows) == 160 // 8 - 7
    np.testing.assert_allclose(np.stack(rows), known[: len(rows)], atol=1e-5)


def test_a_video_that_begins_in_anothers_place_is_as_if_alone():
    network, variables = made("i3d")
    first, second = noise(network, 33), noise(network, 27, batch=2)[1:]
    alone = streamed(network, variables, second, (27,), 16)["Logits"][0]
    state = streaming.start(network, variables, noise(network, 16, batch=2), (33, 400))
    one = ticks_of(network, first, 0, 128)
    other = jnp.concatenate([ticks_of(network, first, 0, 32), ticks_of(network, second, 0, 96)], 1)
    rows = []
    for start in range(0, 128, 16):
        if start == 32:  # In the midst of the first; the other place goes on.
            state = streaming.restart(state, np.array([False, True]), 27)
        chunk = jnp.concatenate([x[:, start : start + 16] for x in (one, other)])
        state, ends = jitted_step(network)(variables, state, chunk)
        if start >= 32:
            rows += list(ends["Logits"].values[1][np.asarray(ends["Logits"].valid[1])])
    np.testing.assert_allclose(np.stack(rows), alone, atol=1e-5)


def test_a_state_keeps_its_types_when_videos_begin_anew_so_that_it_need_not_be_compiled(float64):
    ticks = jnp.full(2, 64, jnp.int32)
    state = streaming.restart(
        streaming.State({}, ticks, ticks), np.array([True, False]), np.array([100, 200])
    )
    assert (state.now.dtype, state.length.dtype) == (jnp.int32, jnp.int32)
    assert state.now.tolist() == [0, 64] and state.length.tolist() == [100, 64]


def test_a_stream_without_end_does_not_overflow():
    network, variables = made("inception")
    chunk = noise(network, 2)
    state = streaming.start(network, variables, chunk)
    state = state._replace(now=jnp.full(1, 2**25 - 1, jnp.int32))
    for _ in range(2):
        state, ends = jitted_step(network)(variables, state, chunk)
        assert ends["Logits"].valid.all()
    assert state.now.tolist() == [2**25]


@pytest.mark.slow  # Compiles three programs.
def test_steps_run_under_scan_and_vmap(float64):
    network, variables = made("i3d", dtype=jnp.float64)
    # Factors of batch norm in float32 may round otherwise where they are constants of a program.
    variables = jax.tree.map(jnp.float64, variables)
    whole = ticks_of(network, noise(network, 41, batch=2), 0, 112)
    wanted = streamed(network, variables, whole, (41, 30), 16)["Logits"]
    chunks = jnp.moveaxis(whole.reshape(2, 7, 16, *whole.shape[2:]), 1, 0)
    state = streaming.start(network, variables, chunks[0], (41, 30))

    def step(state, chunk):
        state, ends = streaming.step(variables, state, chunk, network=network)
        return state, ends["Logits"]

    _, found = jax.jit(lambda state, chunks: lax.scan(step, state, chunks))(state, chunks)
    valid = np.asarray(found.valid)
    for number in range(2):
        rows = np.asarray(found.values)[:, number][valid[:, number]]
        np.testing.assert_allclose(rows, wanted[number], atol=1e-12)
    # Videos one by one, by vmap: an axis in front of a batch of one.
    alone = jax.tree.map(lambda x: x[:, None], state)
    _, found = jax.jit(jax.vmap(step))(alone, chunks[0][:, None])
    _, together = step(state, chunks[0])
    np.testing.assert_allclose(found.values[:, 0], together.values, atol=1e-12)


@pytest.mark.slow  # Compiles whole networks.
def test_bfloat16_in_chunks_is_as_one_pass_in_bfloat16():
    network, variables = made("i3d", dtype=jnp.bfloat16)
    assert_streamed_equals_one_pass(network, variables, noise(network, 37), (37,), 16, 0.05)


def test_the_state_of_i3d_takes_18_megabytes():
    network = models.build("i3d", num_classes=400)
    chunk = models.input_shapes({"rgb": (16, 1)}, 224)
    variables = jax.eval_shape(network.init, jax.random.key(0), chunk)
    state = jax.eval_shape(lambda: streaming.start(network, variables, chunk))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert 18e6 < size < 19e6, size
    # 7 frames of 224x224 before the first convolution, or 2 of 56x56x64, and so on.
    assert state.layers["Conv_1a"]["past"].shape == (1, 7, 224, 224, 3)
    assert state.layers["Conv_2c"]["past"].shape == (1, 2, 56, 56, 64)


@pytest.mark.parametrize(
    "options,frames,message",
    [
        ({}, 12, "a chunk of .*, wanted .* N a multiple of 8 frames"),
        ({}, 0, "wanted .* N a multiple of 8 frames"),
        ({"time_padding": "edge"}, 16, "time_padding is 'edge', wanted 'zeros'"),
    ],
)
def test_chunks_that_a_network_cannot_take_are_an_error(options, frames, message):
    network, variables = made("i3d")
    network = network.clone(**options)
    with pytest.raises(ValueError, match=message):
        streaming.start(network, variables, jnp.zeros((1, frames, 32, 32, 3)))


def test_a_chunk_is_nothing_to_train_on():
    network, variables = made("i3d")
    zeros = jnp.zeros(1, jnp.int32)
    chunk = streaming.Chunk(jnp.zeros((1, 16, 32, 32, 3)), zeros, zeros + 16)
    with pytest.raises(ValueError, match="got a chunk to train on"):
        network.apply(variables, chunk, train=True, mutable=["batch_stats", "stream"])
