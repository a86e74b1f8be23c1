"""Grad-CAM equals CAM in closed form, and gradients of networks' ends that are written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import models
from i3d_jax.evaluation import saliency

CLASSES = 5


def made(name, shapes, width=0.0625, **options):
    """A network, variables with statistics that are not 0 and 1, and random clips."""
    network = models.build(name, num_classes=CLASSES, width=width, **options)
    keys = jax.random.split(jax.random.key(1), 3)
    clips = {
        stream: jax.random.uniform(key, shape, minval=-1)
        for key, (stream, shape) in zip(keys, shapes.items(), strict=False)
    }
    video = models.as_network_input(clips)
    variables = jax.jit(network.init)(keys[2], video)
    rng = np.random.default_rng(0)
    # Small means and variances: otherwise ReLUs leave nothing of random networks.
    variables["batch_stats"] = jax.tree.map(
        lambda x: (x * 0.4 + rng.uniform(-0.2, 0, x.shape)).astype(np.float32),
        variables["batch_stats"],
    )
    return network, variables, video


def explained(network, variables, video, classes=None, layers=None):
    """`grad_cam`, compiled, and the activations of all layers."""

    @jax.jit
    def both(variables, video):
        found = saliency.grad_cam(variables, video, classes, network=network, layers=layers)
        return found, network.apply(variables, video, endpoints=True)[1]

    (logits, maps), ends = both(variables, video)
    return np.asarray(logits), {name: np.asarray(x) for name, x in maps.items()}, ends


def weighted(activations, weights):
    """The map of activations [S, h, w, C] and weights [S, C]."""
    return np.maximum(0, np.einsum("shwc,sc->shw", np.asarray(activations), np.asarray(weights)))


def assert_close(found, wanted):
    assert wanted.max() > 0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("frames", [17, 32])
def test_at_the_last_layer_of_i3d_it_is_cam_with_the_last_layers_weights(frames):
    network, variables, video = made("i3d", {"rgb": (2, frames, 64, 64, 3)})
    logits, maps, ends = explained(network, variables, video)
    steps, height, width = (ends["Mixed_5c"].shape[axis] for axis in (1, 2, 3))
    # Each prediction is the mean of two steps: those between the ends count twice.
    times = np.array([1] + [2] * (steps - 2) + [1]) / (2 * height * width * (steps - 1))
    kernel = np.asarray(variables["params"]["Logits"]["kernel"]).reshape(-1, CLASSES)
    for clip, own in enumerate(logits.argmax(-1)):
        wanted = weighted(ends["Mixed_5c"][clip], times[:, None] * kernel[None, :, own])
        assert_close(maps["Mixed_5c"][clip], wanted)


@pytest.mark.parametrize(
    "name,shape,layer",
    [
        ("inception", (2, 3, 64, 64, 3), "Mixed_5c"),
        ("inception", (2, 64, 64, 3), "Mixed_5c"),
        ("i3d_r50", (1, 8, 64, 64, 3), "res5"),
    ],
)
def test_at_the_last_layer_before_plain_means_it_is_cam_too(name, shape, layer):
    options = {"depth": 14} if name == "i3d_r50" else {}
    network, variables, video = made(name, {"rgb": shape}, **options)
    logits, maps, ends = explained(network, variables, video)
    activations = np.asarray(ends[layer])
    activations = activations[:, None] if activations.ndim == 4 else activations
    kernel = np.asarray(variables["params"]["Logits"]["kernel"]).reshape(-1, CLASSES)
    for clip, own in enumerate(logits.argmax(-1)):
        weights = kernel[None, :, own] / np.prod(activations.shape[1:4])
        weights = np.repeat(weights, activations.shape[1], 0)
        assert_close(maps[layer][clip], weighted(activations[clip], weights))


def batch_norm(x, params, stats):
    shape = (1,) * (x.ndim - 1) + (-1,)
    mean, var, bias = (
        jnp.reshape(each, shape) for each in (stats["mean"], stats["var"], params["bias"])
    )
    return (x - mean) / jnp.sqrt(var + 1e-3) + bias


def test_c3d_agrees_with_the_gradient_of_its_end_written_out():
    network, variables, video = made("c3d", {"rgb": (1, 32, 64, 64, 3)})
    _, maps, ends = explained(network, variables, video, [3])
    params, stats = variables["params"], variables["batch_stats"]

    def score(x):  # [2 windows, 1, 4, 4, C]
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 1, 2, 2, 1), (1, 1, 2, 2, 1), "VALID"
        )
        x = x.reshape(2, -1)
        for name in "Dense_6", "Dense_7":
            kernel = params[name]["conv"]["kernel"].reshape(x.shape[-1], -1)
            x = jax.nn.relu(batch_norm(x @ kernel, params[name]["bn"], stats[name]["bn"]))
        last = params["Logits"]
        logits = x @ last["kernel"].reshape(x.shape[-1], -1) + last["bias"][None]
        return logits.mean(0)[3]

    activations = ends["Conv_5b"][0]
    weights = jax.grad(score)(activations).mean((2, 3))
    wanted = weighted(activations.reshape(2, 4, 4, -1), np.asarray(weights)[:, 0])
    assert_close(maps["Conv_5b"][0], wanted)


def test_the_lstm_agrees_with_the_gradient_of_its_steps_written_out():
    network, variables, video = made("convnet_lstm", {"rgb": (1, 4, 64, 64, 3)}, norm_scale=1.0)
    _, maps, ends = explained(network, variables, video, [1])
    params, stats = variables["params"]["lstm"], variables["batch_stats"]["lstm"]

    def norm(name, x, step, scale):
        mean, var = stats[f"{name}_mean"][step], stats[f"{name}_var"][step]
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale

    def score(x):  # [4, 2, 2, C]
        features = x.mean((1, 2))
        state = cell = jnp.zeros(params["hidden_kernel"].shape[0])
        for step in range(4):
            total = norm("hidden", state @ params["hidden_kernel"], step, params["hidden_scale"])
            inputs = features[step] @ params["input_kernel"]
            total += norm("input", inputs, step, params["input_scale"]) + params["bias"]
            forget, take, out, new = jnp.split(total, 4)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(take) * jnp.tanh(new)
            shown = norm("cell", cell, step, params["cell_scale"]) + params["cell_bias"]
            state = jax.nn.sigmoid(out) * jnp.tanh(shown)
        last = variables["params"]["Logits"]
        return (state @ last["kernel"] + last["bias"])[1]

    activations = ends["Mixed_5c"][0]
    weights = jax.grad(score)(activations).mean((1, 2))
    assert_close(maps["Mixed_5c"][0], weighted(activations, weights))


@pytest.mark.slow  # Compiles four networks.
def test_each_of_two_streams_has_the_map_that_it_has_alone():
    shapes = {"rgb": (2, 16, 64, 64, 3), "flow": (2, 16, 64, 64, 2)}
    network, variables, video = made("two_stream_i3d", shapes)
    classes = [0, 3]  # Flow speaks for the one, RGB for the other.
    _, maps, _ = explained(network, variables, video, classes)
    assert {*maps} == {"rgb/Mixed_5c", "flow/Mixed_5c"}
    alone = models.build("i3d", num_classes=CLASSES, width=0.0625)
    for stream, clip in video.items():
        own = {name: tree[stream] for name, tree in variables.items()}
        _, found, _ = explained(alone, own, clip, classes)
        assert_close(maps[f"{stream}/Mixed_5c"], found["Mixed_5c"])


@pytest.mark.slow  # Compiles a network of two streams.
def test_any_layer_with_a_grid_can_be_explained_by():
    shapes = {"rgb": (1, 2, 64, 64, 3), "flow": (1, 20, 64, 64, 2)}
    network, variables, video = made("fused_two_stream", shapes)
    layers = ("rgb/Conv_1a", "flow/MaxPool_4a", "Conv_6a", "MaxPool_6a")
    _, maps, _ = explained(network, variables, video, [0], layers)
    assert {name: x.shape for name, x in maps.items()} == {
        "rgb/Conv_1a": (1, 2, 32, 32),
        "flow/MaxPool_4a": (1, 2, 4, 4),
        "Conv_6a": (1, 2, 2, 2),
        "MaxPool_6a": (1, 2, 2, 2),
    }


@pytest.mark.slow  # Compiles a network in float64, twice.
def test_an_early_layers_gradient_is_the_one_by_finite_differences(float64):
    network, variables, video = made("i3d", {"rgb": (1, 16, 32, 32, 3)}, dtype=jnp.float64)
    variables, video = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (variables, video))
    rng = np.random.default_rng(3)
    values = network.apply(variables, video, endpoints=True)[1]["Mixed_4b"]
    # Where a ReLU gives 0, the next pool has no derivative.
    added = rng.normal(size=values.shape) * (values > 0)

    @jax.jit
    def score(x):
        nested = {"perturbations": {"Mixed_4b": x}}
        return network.apply({**variables, **nested}, video)[0, 2]

    gradient = jax.grad(score)(jnp.zeros(added.shape))
    step = 1e-6
    by_difference = (score(step * added) - score(-step * added)) / (2 * step)
    np.testing.assert_allclose((gradient * added).sum(), by_difference, rtol=1e-5)


def test_a_clips_maps_do_not_depend_on_the_others():
    network, variables, video = made("inception", {"rgb": (2, 3, 64, 64, 3)})
    _, both, _ = explained(network, variables, video, [1, 4])
    _, second, _ = explained(network, variables, video[1:], [4])
    assert_close(both["Mixed_5c"][1:], second["Mixed_5c"])


def test_maps_are_float32_for_networks_in_bfloat16():
    network, variables, video = made("inception", {"rgb": (1, 64, 64, 3)}, dtype=jnp.bfloat16)
    _, maps, _ = explained(network, variables, video)
    assert maps["Mixed_5c"].dtype == np.float32 and maps["Mixed_5c"].max() > 0


@pytest.mark.parametrize("layer", ["Mixed_9z", "Logits", "AvgPool"])
def test_a_layer_without_grid_is_refused_and_the_others_are_named(layer):
    network, variables, video = made("inception", {"rgb": (1, 64, 64, 3)})
    with pytest.raises(ValueError, match=f"no layer '{layer}' with a grid; there are Conv_1a, "):
        saliency.grad_cam(variables, video, network=network, layers=(layer,))


def test_maps_are_scaled_by_clip_and_flat_ones_are_zero():
    maps = jnp.array([[[[1.0, 3.0]], [[2.0, 5.0]]], [[[7.0, 7.0]], [[7.0, 7.0]]]])
    wanted = [[[[0, 0.5]], [[0.25, 1]]], [[[0, 0]], [[0, 0]]]]
    np.testing.assert_allclose(saliency.normalised(maps), wanted)


def test_maps_are_interpolated_between_the_centres_of_pixels():
    maps = jnp.arange(2.0).reshape(1, 1, 1, 2)
    found = saliency.upsampled(maps, (3, 2, 4))
    np.testing.assert_allclose(found, np.tile([0, 0.25, 0.75, 1], (1, 3, 2, 1)), atol=1e-6)
