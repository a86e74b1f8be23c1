"""All networks of the zoo together, and each but Inception alone (see test_inception.py)."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_networks import SMALL, clip, small

from i3d_jax import flow, models
from i3d_jax.models import __main__ as table
from i3d_jax.models import convnet_lstm
from i3d_jax.models.two_stream import stack_snippets

KEY = jax.random.key(0)
INFLATED = ("fused_two_stream", {"dims": 3}, {"rgb": (9, 1), "flow": (9, 1)})
EVERY = [pytest.param(name, *small, id=name) for name, small in SMALL.items()]
EVERY += [pytest.param(*INFLATED, id="inflated fused_two_stream")]


@functools.cache
def made(name):
    """A small network, its compiled `apply`, and variables with random statistics."""
    network, streams = small(name), SMALL[name][1]
    variables = jax.jit(network.init)(KEY, clip(streams))
    rng = np.random.default_rng(1)
    change = lambda x: x if x.ndim > 1 else jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype)
    apply = jax.jit(functools.partial(network.apply, endpoints=True))
    return network, apply, jax.tree.map(change, variables)


@pytest.mark.parametrize(
    "name,streams,count",
    [
        ("inception", None, 6_002_624),
        # 8,945,600 were counted by hand. The LSTM's batch norm adds the scales of the input and of
        # the hidden state (2,048 each), and the scale and the offset of the cell (512 each).
        ("convnet_lstm", None, 8_945_600 + 2 * 2048 + 2 * 512),
        # Counted for layers with biases and no batch norm; its offsets are as many.
        ("c3d", None, 79_634_576),
        ("two_stream", None, 12_058_560),
        ("fused_two_stream", None, 39_755_824),
        ("i3d", None, 12_689_984),
        ("i3d", {"flow": (64, 1)}, 12_668_032),
        ("two_stream_i3d", None, 25_358_016),
        # torchvision's 25,557,032 are for 1,000 classes, each of 2,048 weights and a bias.
        ("resnet50", None, 25_557_032 - 600 * 2049),
        ("i3d_r50", None, 28_043_472),  # PyTorchVideo's.
    ],
)
def test_parameter_counts_match_table_1(name, streams, count):
    entry = models.MODELS[name]
    example = models.input_shapes(streams or entry.train, entry.crop)
    variables = jax.eval_shape(models.build(name, num_classes=400).init, KEY, example)
    assert table.count_parameters(variables) == count


@pytest.mark.parametrize("name", ["i3d", "convnet_lstm", "c3d"])
def test_epsilon_of_batch_norm_is_added_to_every_variance(name):
    _, _, variables = made(name)
    streams, is_recurrent = clip(SMALL[name][1]), lambda path: "lstm" in jax.tree_util.keystr(path)
    more = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.5 - 1e-3 if "var" in path[-1].key and not is_recurrent(path) else x,
        variables["batch_stats"],
    )
    wanted = small(name).apply({**variables, "batch_stats": more}, streams)
    got = small(name, norm_epsilon=0.5).apply(variables, streams)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "frames,channels,wanted", [(64, 3, 111.15), (64, 2, 102.34), (79, 3, 138.94), (250, 3, 434.95)]
)
def test_multiply_adds_of_i3d_match_what_was_counted_by_hand(frames, channels, wanted):
    network = models.build("i3d", num_classes=400)
    example = jax.ShapeDtypeStruct((1, frames, 224, 224, channels), jnp.float32)
    variables = jax.eval_shape(network.init, KEY, example)
    assert table.multiply_adds(network.apply, variables, example) / 1e9 == pytest.approx(
        wanted, rel=1e-3
    )


def test_table_1_is_printed(capsys):
    assert table.main(["--num-classes", "7", "c3d", "two_stream"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "| c3d | " in lines[2]
        and "| 16 RGB, 0.64 s |" in lines[2]
        and "| 240 RGB, 9.60 s |" in lines[2]
    )
    assert (
        "| 1 RGB + 10 flow, 0.40 s |" in lines[3] and "| 25 RGB + 250 flow, 10.00 s |" in lines[3]
    )
    with pytest.raises(SystemExit, match="2"):
        table.main(["x3d"])
    assert "no model is called 'x3d'; there are inception, " in capsys.readouterr().err


def test_multiply_adds_of_a_loop_are_counted_each_time():
    weights = jnp.zeros((5, 5))
    loop = lambda x: jax.lax.scan(lambda x, _: (x @ weights, None), x, length=7)[0]
    assert table.multiply_adds(loop, jnp.zeros((3, 5))) == 7 * 3 * 5 * 5


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize(
    "name,options,streams", [each for each in EVERY if each.id != "two_stream_i3d"]
)  # As below.
def test_gradient_reaches_every_parameter(name, options, streams):
    # Two groups, each with a clip of its own, so that the batch norm statistics differ.
    network = models.build(name, num_classes=7, width=0.1, norm_group_size=2, **options)
    video = clip(streams, batch=4)
    variables = jax.jit(network.init)(KEY, video)

    @jax.jit
    def gradient(params):
        def total(params):
            given = variables | {"params": params}
            logits, _ = network.apply(
                given, video, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
            )
            return (jnp.sin(jnp.arange(logits.size)).reshape(logits.shape) * logits).sum()

        return jax.grad(total)(params)

    grads = gradient(variables["params"])
    dead = [
        path
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(grad).max() > 0
    ]
    assert not dead


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize(
    "name", [name for name in SMALL if name != "two_stream_i3d"]
)  # It is two I3Ds.
def test_bfloat16_agrees_with_float32_and_keeps_float32_variables(name):
    _, apply, variables = made(name)
    half, video = small(name, dtype="bfloat16"), clip(SMALL[name][1])
    exact, rounded = apply(variables, video)[0], jax.jit(half.apply)(variables, video)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
    initial = jax.eval_shape(half.init, KEY, video)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_average_of_those_of_the_steps_and_of_the_lstms_the_last(name):
    network, apply, variables = made(name)
    streams = SMALL[name][1]
    logits, ends = apply(variables, clip(streams))
    stream, (frames, _) = next(iter(streams.items()))
    ticks = frames // network.timing.frames(stream)
    assert ends["Logits"].shape == (2, network.timing.steps(ticks), 7)
    wanted = ends["Logits"][:, -1] if network.timing.last_only else ends["Logits"].mean(1)
    np.testing.assert_allclose(logits, wanted, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_only_a_bag_of_frames_is_blind_to_reversal_in_time(name):
    _, apply, variables = made(name)
    # It accumulates, in one direction of time.
    video = jax.tree.map(
        lambda x: x * jnp.linspace(0, 2, x.shape[1]).reshape(-1, 1, 1, 1)[None],
        clip(SMALL[name][1]),
    )
    backwards = jax.tree.map(lambda frames: frames[:, ::-1], video)
    (logits, ends), (reversed_logits, reversed_ends) = (
        apply(variables, video),
        apply(variables, backwards),
    )
    size = np.abs(logits).max()
    if name == "two_stream":  # Only its RGB stream ignores the order of frames.
        for stream, blind in (("rgb", True), ("flow", False)):
            both = (each[f"{stream}/Logits"].mean(1) for each in (ends, reversed_ends))
            assert (np.abs(np.subtract(*both)).max() < 1e-5 * size) == blind
    change = np.abs(logits - reversed_logits).max()
    blind = name in ("inception", "resnet50")
    assert change < 1e-5 * size if blind else change > 1e-4 * size, change / size


def test_a_repeated_snippet_is_one_snippet_to_two_stream():
    _, apply, variables = made("two_stream")
    once = clip({"rgb": (1, 1), "flow": (2, 1)})
    thrice = jax.tree.map(lambda frames: jnp.tile(frames, (1, 3, 1, 1, 1)), once)
    one, three = (apply(variables, video)[0] for video in (once, thrice))
    np.testing.assert_allclose(one, three, atol=1e-5)


def test_two_stream_i3d_is_the_sum_of_its_streams_and_two_stream_their_average():
    _, apply, variables = made("two_stream_i3d")
    video = clip(SMALL["two_stream_i3d"][1])
    logits, ends = apply(variables, video)
    one = jax.jit(small("i3d").apply)
    for stream in ("rgb", "flow"):
        own = one({kind: tree[stream] for kind, tree in variables.items()}, video[stream])
        np.testing.assert_allclose(ends[f"{stream}/Logits"].mean(1), own, atol=1e-5)
    np.testing.assert_allclose(
        logits, (ends["rgb/Logits"] + ends["flow/Logits"]).mean(1), atol=1e-5
    )
    _, apply, variables = made("two_stream")
    logits, ends = apply(variables, clip(SMALL["two_stream"][1]))
    np.testing.assert_allclose(
        logits, (ends["rgb/Logits"] + ends["flow/Logits"]).mean(1) / 2, atol=1e-5
    )


def test_snippets_of_flow_are_stacked_u_and_v_in_turn():
    flow = np.arange(2 * 6 * 1 * 1 * 2, dtype=np.float32).reshape(2, 6, 1, 1, 2)
    assert stack_snippets(jnp.asarray(flow), 3)[1, 1, 0, 0].tolist() == flow[1, 3:].ravel().tolist()
    with pytest.raises(ValueError, match="got 6 flow frames, wanted a multiple of 4"):
        stack_snippets(jnp.asarray(flow), 4)


@pytest.mark.parametrize(
    "name,video,message",
    [
        (
            "convnet_lstm",
            (2, 32, 32, 3),
            "got an array of shape (2, 32, 32, 3), wanted [B, T, H, W, C]",
        ),
        ("c3d", (2, 32, 32, 3), "got an array of shape (2, 32, 32, 3), wanted [B, T, H, W, C]"),
        (
            "c3d",
            {"rgb": (2, 16, 32, 32, 3)},
            "3D-ConvNet: got the streams ['rgb'], wanted [B, T, H, W, C]",
        ),
        ("c3d", (2, 17, 32, 32, 3), "got 17 frames, wanted a multiple of 16"),
        ("two_stream", (2, 1, 32, 32, 3), 'wanted {"rgb": [B, T, H, W, 3], "flow"'),
        ("two_stream", {"rgb": (2, 3, 32, 32, 3)}, "got ['rgb'], wanted"),
        (
            "two_stream",
            {"rgb": (2, 3, 32, 32, 3), "flow": (2, 6, 32, 16, 2)},
            "flow of shape (2, 6, 32, 16, 2)",
        ),
        (
            "two_stream",
            {"rgb": (2, 3, 32, 32, 3), "flow": (2, 8, 32, 32, 2)},
            "3 RGB frames and 8 of flow, wanted 2 of",
        ),
        (
            "two_stream_i3d",
            {"rgb": (2, 16, 32, 32, 3), "flow": (2, 17, 32, 32, 2)},
            "wanted 1 of flow to each",
        ),
        (
            "two_stream_i3d",
            {"rgb": (2, 8, 32, 32, 3), "flow": (2, 8, 32, 32, 2)},
            "at least 9 are needed",
        ),
    ],
)
def test_videos_that_a_network_cannot_take_are_named(name, video, message):
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        video,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(small(name).init, KEY, shapes)


@pytest.mark.parametrize("name", models.MODELS)
def test_bytes_of_pixels_are_refused(name):
    video = jax.tree.map(lambda x: x.astype(jnp.uint8), clip(SMALL[name][1]))
    with pytest.raises(
        ValueError, match=r"got uint8, wanted floats, RGB in \[-1, 1\] or flow / 20: pixels.to_unit"
    ):
        jax.eval_shape(small(name).init, KEY, video)


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize("name", models.MODELS)
def test_an_export_may_be_for_any_number_of_clips_even_none(name):
    """An export for an open number of clips agrees with batches of known size."""
    network, apply, variables = made(name)
    video = clip(SMALL[name][1])
    (number,) = jax.export.symbolic_shape("number")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype), video)
    exported = jax.export.export(jax.jit(functools.partial(network.apply, variables)))(shapes)
    np.testing.assert_allclose(exported.call(video), apply(variables, video)[0], atol=1e-6)
    empty = jax.eval_shape(network.apply, variables, jax.tree.map(lambda x: x[:0], video))
    assert empty.shape == (0, 7)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", models.MODELS)
def test_no_clips_to_train_on_are_refused(name, frozen):
    network, streams = small(name, freeze_backbone=frozen), SMALL[name][1]
    variables = jax.eval_shape(network.init, KEY, clip(streams))
    train = functools.partial(
        network.apply, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    with pytest.raises(
        ValueError, match=r"got an array of shape \(0, .*to train on, wanted one clip at least"
    ):
        jax.eval_shape(train, variables, jax.tree.map(lambda x: x[:0], clip(streams)))


@pytest.mark.parametrize("name", ["inception", "convnet_lstm"])
def test_videos_without_frames_are_refused(name):
    network, video = small(name), clip(SMALL[name][1])
    variables = jax.eval_shape(network.init, KEY, video)
    with pytest.raises(
        ValueError, match=r"got an array of shape \(2, 0, 32, 32, 3\), wanted one frame at least"
    ):
        jax.eval_shape(network.apply, variables, video[:, :0])


def test_arrays_along_explicit_axes_are_refused():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    network, streams = small("c3d"), SMALL["c3d"][1]
    video = jax.device_put(clip(streams), sharding)
    with pytest.raises(
        ValueError,
        match=r"3D-ConvNet: got float32\[2@data.*along Explicit axes .* wanted Auto ones",
    ):
        jax.jit(network.init)(KEY, video)
    with pytest.raises(ValueError, match="TV-L1: got .* along Explicit axes"):
        flow.tv_l1(video[..., 0], video[..., 0])


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("number", [0, -1, 7.0, "7", None])
def test_numbers_of_classes_and_group_sizes_are_checked_when_a_network_is_made(name, number):
    if name not in ("inception", "i3d") or number is not None:
        with pytest.raises(
            ValueError, match=f"num_classes is {number!r}, wanted a positive whole number"
        ):
            models.build(name, num_classes=number)
    if number is not None:  # The whole batch.
        with pytest.raises(
            ValueError, match=f"norm_group_size is {number!r}, wanted a positive whole number"
        ):
            models.build(name, num_classes=7, norm_group_size=number)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_batch_that_is_no_whole_groups_is_refused(name):
    network = models.build(name, num_classes=7, width=0.05, norm_group_size=2)
    clips = models.input_shapes(models.MODELS[name].train, 112 if name == "c3d" else 32, batch=3)
    with pytest.raises(
        ValueError, match=r"a batch of 3 cannot be divided into groups of 2 \(norm_group_size\)"
    ):
        jax.eval_shape(
            functools.partial(network.init, train=True), {"params": KEY, "dropout": KEY}, clips
        )


def test_inception_without_classes_gives_features():
    network = models.build("i3d", num_classes=None, width=0.125)
    features, _ = jax.eval_shape(network.init_with_output, KEY, clip({"rgb": (16, 1)}))
    assert features.shape == (2, 1, 128)


def test_an_unknown_combination_is_named():
    with pytest.raises(ValueError, match="combine is 'max', wanted 'average' or 'sum'"):
        jax.eval_shape(small("two_stream", combine="max").init, KEY, clip(SMALL["two_stream"][1]))


def test_the_lstm_is_taught_at_every_step_and_dropout_acts_in_training_only():
    network, evaluated, variables = made("convnet_lstm")
    streams = SMALL["convnet_lstm"][1]
    apply = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    first, second = (
        apply(variables, clip(streams), rngs={"dropout": jax.random.key(seed)})[0]
        for seed in (0, 1)
    )
    assert first.shape == (2, 4, 7) and np.abs(first - second).max() > 0
    assert evaluated(variables, clip(streams))[0].shape == (2, 7)


def lstm_by_hand(x, params, stats=None, groups=1):
    """The equations of Cooijmans et al. step by step in float64.

    `stats(name, step)` gives mean and variance.
    """
    p = {name: np.float64(value) for name, value in params.items()}
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    hidden = p["hidden_kernel"].shape[0]
    batch, frames, _ = x.shape
    h = c = np.zeros((batch, hidden))
    states, seen = [], []

    def norm(name, a, step):
        if stats is not None:
            mean, var = stats(name, step)
            return (a - mean) / np.sqrt(var + 1e-5)
        parts = np.split(a, groups)
        seen.append(
            (
                name,
                step,
                np.mean([each.mean(0) for each in parts], 0),
                np.mean([each.var(0) for each in parts], 0),
            )
        )
        return np.concatenate(
            [(each - each.mean(0)) / np.sqrt(each.var(0) + 1e-5) for each in parts]
        )

    for t in range(frames):
        total = (
            norm("hidden", h @ p["hidden_kernel"], t) * p["hidden_scale"]
            + norm("input", x[:, t] @ p["input_kernel"], t) * p["input_scale"]
            + p["bias"]
        )
        f, i, o, g = np.split(total, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(norm("cell", c, t) * p["cell_scale"] + p["cell_bias"])
        states.append(h)
    return np.stack(states, 1), seen


@pytest.fixture
def lstm():
    layer = convnet_lstm.NormLSTM(hidden=5, steps=3, groups=2, decay=0.5)
    x = np.random.default_rng(0).normal(size=(6, 4, 4))
    variables = layer.init(KEY, jnp.asarray(x, jnp.float32), False)
    rng = np.random.default_rng(1)
    # All gates differ.
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.uniform(0, 0.3, leaf.shape)), variables["params"]
    )
    stats = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 0.8, leaf.shape)), variables["batch_stats"]
    )
    return layer, x, {"params": params, "batch_stats": stats}


def test_the_lstm_follows_the_equations_with_a_groups_statistics_in_training(lstm, float64):
    layer, x, variables = lstm
    states, updates = layer.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    wanted, seen = lstm_by_hand(x, variables["params"], groups=2)
    np.testing.assert_allclose(states, wanted, atol=1e-6)
    for name, step, mean, var in seen:
        if step < 3:  # The layer has statistics for three of the four steps.
            for kind, value in (("mean", mean), ("var", var)):
                before, after = (
                    tree["batch_stats"][f"{name}_{kind}"][step] for tree in (variables, updates)
                )
                np.testing.assert_allclose(after, 0.5 * before + 0.5 * value, atol=1e-6)


def test_steps_after_the_last_with_statistics_use_that_ones(lstm, float64):
    layer, x, variables = lstm
    stats = jax.tree.map(np.asarray, variables["batch_stats"])
    of_step = lambda name, step: (
        stats[f"{name}_mean"][min(step, 2)],
        stats[f"{name}_var"][min(step, 2)],
    )
    wanted, _ = lstm_by_hand(x, variables["params"], stats=of_step)
    states = layer.apply(variables, jnp.asarray(x), False)
    np.testing.assert_allclose(states, wanted, atol=1e-6)


def test_statistics_of_steps_that_a_clip_does_not_have_are_the_last_ones(lstm):
    layer, x, variables = lstm
    fresh = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    given = {"params": variables["params"], "batch_stats": fresh}
    _, updates = layer.apply(
        given, jnp.asarray(x[:, :2], jnp.float32), True, mutable=["batch_stats"]
    )
    for name, leaf in updates["batch_stats"].items():
        assert (leaf[1] == leaf[2]).all(), name
    assert (
        updates["batch_stats"]["input_mean"][0] != updates["batch_stats"]["input_mean"][1]
    ).all()


def test_recurrent_scales_start_at_a_tenth_and_the_forget_gate_open(lstm):
    params = convnet_lstm.NormLSTM(5, 3).init(KEY, jnp.zeros((2, 4, 4)), False)["params"]
    assert all((params[f"{name}_scale"] == 0.1).all() for name in ("input", "hidden", "cell"))
    assert params["bias"].tolist() == [1.0] * 5 + [0.0] * 15
    np.testing.assert_allclose(
        params["hidden_kernel"] @ params["hidden_kernel"].T, np.eye(5), atol=1e-5
    )
