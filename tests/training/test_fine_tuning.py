"""Runs that start from weights: inflation, two streams, a linear probe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_run import read_weights

from i3d_jax import models, weights
from i3d_jax.training import loop

STILL = dict(lr=0.0, weight_decay=0.0)  # The optimizer that leaves all parameters as they are.


@pytest.mark.slow  # Trains networks.
def test_one_command_pretrains_on_images_inflates_and_trains_on_videos(config, tmp_path):
    images = config | dict(steps=1, dataset=config["dataset"] | {"name": "moving_shapes/images"})
    images["eval_clips"] = images["eval_clips"] | {"rgb": (1, 1)}
    videos = config | dict(steps=1, model=config["model"] | {"name": "i3d"}, pretrain=images)
    videos |= dict(train_clips=dict(rgb=(16, 1), crop=32, flip=False), optimizer=STILL)
    videos["eval_clips"] = videos["eval_clips"] | {"rgb": (16, 1)}
    loop.train(str(tmp_path), **videos)
    image, clip = read_weights(tmp_path / "pretrain")["params"], read_weights(tmp_path)["params"]
    first, inflated = (each["Conv_1a"]["conv"]["kernel"] for each in (image, clip))
    np.testing.assert_allclose(inflated.sum(0), first, atol=1e-6)
    assert clip["Logits"]["kernel"].shape[-1] == 24 and image["Logits"]["kernel"].shape[-1] == 4


@pytest.mark.slow  # Trains networks.
def test_two_streams_start_from_one_image_networks_weights(finished_run, config, tmp_path):
    clips = dict(rgb=(1, 10), flow=(10, 1), crop=32)
    model = dict(name="two_stream", width=0.1, dropout=0.5)
    two = config | dict(steps=1, batch_size=4, model=model, optimizer=STILL)
    two |= dict(train_clips=clips | dict(flip=False), eval_clips=clips | dict(batch_size=4))
    two |= dict(init_from=str(finished_run[0] / "weights.safetensors"))
    result = loop.train(str(tmp_path), **two)
    image, both = read_weights(finished_run[0])["params"], read_weights(tmp_path)["params"]
    of_flow = both["flow"]["Conv_1a"]["conv"]["kernel"][:, :, 7]
    np.testing.assert_allclose(of_flow, image["Conv_1a"]["conv"]["kernel"].mean(2), atol=1e-6)
    of_rgb = both["rgb"]["Conv_2c"]["conv"]["kernel"]
    np.testing.assert_array_equal(of_rgb, image["Conv_2c"]["conv"]["kernel"])
    assert result["clips"] == 24
    _, _, info = weights.network(tmp_path / "weights.safetensors")
    assert info.footprint == {"rgb": (1, 10), "flow": (10, 1)} and info.stream == "rgb+flow"


def test_weights_of_another_width_are_an_error_of_one_line(finished_run):
    model = models.build("inception", num_classes=24, width=0.2)
    init = str(finished_run[0] / "weights.safetensors")
    arguments = "inception", model, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)), init
    message = "weights.safetensors: cannot inflate .*Conv_1a/bn/mean"
    with pytest.raises(weights.WeightsError, match=message) as error:
        loop.initial_variables(*arguments)
    assert "\n" not in str(error.value)


def test_weights_that_lack_a_frozen_layer_are_refused(finished_run):
    """The LSTM of a ConvNet+LSTM is not in an image network's weights."""
    network = models.build("convnet_lstm", num_classes=24, width=0.1, freeze_backbone=True)
    init = str(finished_run[0] / "weights.safetensors")
    arguments = "convnet_lstm", network, jax.random.key(0), jnp.zeros((1, 2, 32, 32, 3)), init
    loop.initial_variables(*arguments)
    message = "13 leaves are not in them and would never be trained: .*lstm/bias"
    with pytest.raises(weights.WeightsError, match=f"freeze_backbone: {message}"):
        loop.initial_variables(*arguments, freeze_backbone=True)


def test_a_frozen_backbone_stays_bit_identical_and_the_last_layer_is_trained(
    finished_run, config, tmp_path
):
    start = str(finished_run[0] / "weights.safetensors")
    optimizer = dict(lr=0.1, weight_decay=0.1)
    run = config | dict(steps=2, freeze_backbone=True, init_from=start, optimizer=optimizer)
    loop.train(str(tmp_path), **run)
    before, after = read_weights(finished_run[0]), read_weights(tmp_path)
    for kind in "params", "batch_stats":
        backbones = [
            {name: layer for name, layer in each[kind].items() if name != "Logits"}
            for each in (before, after)
        ]
        jax.tree.map(np.testing.assert_array_equal, *backbones)
    old, new = (each["params"]["Logits"]["kernel"] for each in (before, after))
    assert np.isfinite(new).all() and not np.array_equal(new, old)


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize("name", ["inception", "convnet_lstm", "c3d", "fused_two_stream"])
def test_a_frozen_backbone_has_no_gradients_and_keeps_its_statistics(name):
    """Only the last layer has gradients. The tree of variables is that of a free network."""
    entry = models.MODELS[name]
    streams = {"rgb": (16, 1)} if len(entry.train) == 1 else {"rgb": (1, 1), "flow": (10, 1)}
    network = models.build(name, num_classes=3, width=0.05, dropout=0.5, freeze_backbone=True)
    noise = functools.partial(jax.random.normal, jax.random.key(1))
    video = jax.tree.map(lambda x: noise(x.shape), models.input_shapes(streams, 32, 2))
    variables = jax.jit(network.init)(jax.random.key(0), video)
    free = models.build(name, num_classes=3, width=0.05)
    wanted = jax.eval_shape(free.init, jax.random.key(0), video)
    assert jax.tree.structure(variables) == jax.tree.structure(wanted)

    def loss(params):
        found = {"params": params, "batch_stats": variables["batch_stats"]}
        rngs = {"dropout": jax.random.key(2)}
        options = dict(train=True, mutable=["batch_stats"], rngs=rngs)
        logits, updates = network.apply(found, video, **options)
        return (logits[..., 1] - 2 * logits[..., 2]).sum(), updates

    (_, updates), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert bool(jnp.any(grad != 0)) == ("Logits" in str(path)), path


def test_a_frozen_backbone_has_dropout_before_the_last_layer_only():
    """3D-ConvNet has another one, between its dense layers."""
    video = jax.random.normal(jax.random.key(1), (2, 16, 32, 32, 3))
    found = {}
    with models.forms_of("plain"):
        for dropout in (0.0, 0.5):
            options = dict(num_classes=3, width=0.1, dropout=dropout)
            network = models.build("c3d", **options, freeze_backbone=True)
            variables = jax.jit(network.init)(jax.random.key(0), video)
            train = functools.partial(network.apply, train=True, mutable=["batch_stats"])
            apply = jax.jit(functools.partial(train, endpoints=True))
            (logits, ends), _ = apply(variables, video, rngs={"dropout": jax.random.key(2)})
            found[dropout] = logits, ends["Dense_7"]
        tested, ends = jax.jit(functools.partial(network.apply, endpoints=True))(variables, video)
    for logits, features in found.values():
        np.testing.assert_allclose(features, ends["Dense_7"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0.0][0], tested, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0.5][0], tested, rtol=0.1)
