import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import i3d_jax
from i3d_jax import models
from i3d_jax.models import inception

KEY = jax.random.key(0)


def shapes(model, *video, **kwargs):
    video = jax.ShapeDtypeStruct(video, jnp.float32)
    variables = jax.eval_shape(model.init, KEY, video)
    return variables, jax.eval_shape(
        lambda variables, video: model.apply(variables, video, **kwargs), variables, video
    )


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def test_images_and_videos_have_the_same_tree():
    images, _ = shapes(models.build("inception", num_classes=400), 1, 64, 64, 3)
    videos, _ = shapes(models.build("i3d", num_classes=400), 1, 16, 64, 64, 3)
    assert jax.tree.structure(images) == jax.tree.structure(videos)
    assert jax.tree.map(jnp.shape, images["batch_stats"]) == jax.tree.map(
        jnp.shape, videos["batch_stats"]
    )


def test_endpoints_have_the_papers_names_and_shapes():
    _, (_, ends) = shapes(models.build("i3d", num_classes=400), 2, 64, 224, 224, 3, endpoints=True)
    assert set(ends) == set(inception.ENDPOINTS)
    wanted = {
        "Conv_1a": (32, 112, 112, 64),
        "MaxPool_2a": (32, 56, 56, 64),
        "Conv_2c": (32, 56, 56, 192),
        "Mixed_3c": (32, 28, 28, 480),
        "Mixed_4f": (16, 14, 14, 832),
        "Mixed_5c": (8, 7, 7, 1024),
        "AvgPool": (7, 1, 1, 1024),
        "Logits": (7, 400),
    }
    assert {name: ends[name].shape[1:] for name in wanted} == wanted


@pytest.mark.parametrize("frames", [9, 16, 17, 79, 250])
def test_a_clip_gives_one_prediction_per_eight_frames_less_one(frames):
    _, (_, ends) = shapes(
        models.build("i3d", num_classes=5, width=0.1), 1, frames, 32, 40, 3, endpoints=True
    )
    assert ends["Logits"].shape == (1, -(-frames // 8) - 1, 5)


def test_too_few_frames_are_named():
    with pytest.raises(ValueError, match=r"I3D: 8 frames give no prediction.* at least 9"):
        shapes(models.build("i3d", num_classes=5), 1, 8, 32, 32, 3)


def test_wrong_ranks_are_named():
    with pytest.raises(ValueError, match=re.escape("(32, 32, 3), wanted [B, H, W, C]")):
        shapes(models.build("inception", num_classes=5), 32, 32, 3)
    with pytest.raises(ValueError, match=re.escape("(1, 32, 32, 3), wanted [B, T, H, W, C]")):
        shapes(models.build("i3d", num_classes=5), 1, 32, 32, 3)


def test_unknown_models_and_options_are_named():
    with pytest.raises(
        ValueError, match="no model is called 'i2d'; there are inception, convnet_lstm, c3d"
    ):
        models.build("i2d", num_classes=5)
    with pytest.raises(ValueError, match="model 'i3d'.*wdith"):
        models.build("i3d", num_classes=5, wdith=1)
    with pytest.raises(ValueError, match="model 'i3d'.*dims"):
        models.build("i3d", num_classes=5, dims=2)
    with pytest.raises(ValueError, match="time_padding is 'egde'"):
        shapes(models.build("i3d", num_classes=5, time_padding="egde"), 1, 16, 32, 32, 3)


@pytest.fixture(scope="module")
def inflated():
    """A small image network with random variables, and the network inflated from it."""
    images = models.build("inception", num_classes=7, width=0.125)
    videos = models.build("i3d", num_classes=7, width=0.125)
    variables = jax.jit(images.init)(KEY, jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    # Offsets and running statistics far from 0 and 1, so that batch norm has an effect.
    variables = jax.tree.map(
        lambda x: x if x.ndim > 1 else jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype), variables
    )
    like, _ = shapes(videos, 1, 16, 32, 32, 3)
    return images, variables, videos, i3d_jax.inflate_params(variables, like=like)


def test_static_clip_matches_image_away_from_clip_ends(inflated):
    images, variables, videos, inflated_variables = inflated
    image = random(1, 32, 32, 3)
    # The receptive field is about 107 frames: in the middle of 160 it lies within the clip.
    clip = jnp.repeat(image[:, None], 160, 1)
    _, wanted = jax.jit(lambda: images.apply(variables, image, endpoints=True))()
    _, found = jax.jit(lambda: videos.apply(inflated_variables, clip, endpoints=True))()
    for name in inception.ENDPOINTS:
        middle = found[name][:, found[name].shape[1] // 2]
        np.testing.assert_allclose(middle, wanted[name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert (
        np.abs(found["Mixed_5c"][:, 0] - wanted["Mixed_5c"]).max() > 1e-2
    )  # Padding has an effect at the ends.


def test_static_clip_matches_image_everywhere_with_edge_padding(inflated):
    images, variables, _, inflated_variables = inflated
    videos = models.build("i3d", num_classes=7, width=0.125, time_padding="edge")
    image = random(2, 32, 32, 3)
    wanted, ends2d = jax.jit(lambda: images.apply(variables, image, endpoints=True))()
    clip = jnp.repeat(image[:, None], 17, 1)
    found, ends3d = jax.jit(lambda: videos.apply(inflated_variables, clip, endpoints=True))()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for name in inception.ENDPOINTS:
        every = jnp.broadcast_to(ends2d[name][:, None], ends3d[name].shape)
        np.testing.assert_allclose(ends3d[name], every, atol=1e-5, rtol=1e-5, err_msg=name)


def test_image_network_averages_a_videos_frames(inflated):
    images, variables, _, _ = inflated
    video = random(2, 3, 32, 32, 3)
    apply = jax.jit(images.apply)
    frames = jnp.stack([apply(variables, video[:, t]) for t in range(3)], 1)
    np.testing.assert_allclose(apply(variables, video), frames.mean(1), atol=1e-5)
