"""ResNet beside PyTorch's numbers, inflated, and with non-local blocks."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import inflate_params, models
from i3d_jax.inflate import named_leaves
from i3d_jax.models import __main__ as table
from i3d_jax.models import layers, resnet, streaming
from i3d_jax.models.transfer import plan_transfer, transfer_variables

KEY = jax.random.key(0)
TINY = {"width": 0.125, "depth": 14}
# Logits of `experiments/benchmarks/resnet_parity.py --golden`: PyTorch 2.13.0, in float64.
GOLDEN = [
    (
        "resnet50",
        {},
        (2, 64, 64),
        [
            [0.2620905, -0.1135952, -0.0778811, 0.6088746, 1.8234314, 0.2765922, 0.063712],
            [-0.32515, -0.4144204, -0.1920701, 0.7239736, 2.0851313, 0.3835449, -0.141842],
        ],
    ),
    (
        "i3d_r50",
        {"input_scaling": "kinetics", "pool_window": 2},
        (2, 6, 96, 85),
        [
            [0.0984692, -0.271927, -0.5911746, 1.0204317, -0.4754517, 0.1004348, 0.9002205],
            [0.016898, -0.2862652, -0.51227, 0.8735189, -0.5005052, 0.1768773, 0.868047],
        ],
    ),
    (
        "i3d_r50",
        {"stem": "32x2"},
        (2, 16, 64, 64),
        [
            [-0.0156034, -0.2064852, -0.6961468, 1.1865403, -0.1651193, 0.2344975, 0.8642476],
            [-0.0108202, -0.2042928, -0.5049188, 1.048232, -0.2524601, 0.1738261, 0.7939575],
        ],
    ),
    (
        "i3d_r50",
        {"stem": "32x2_unpadded"},
        (2, 16, 64, 64),
        [
            [0.2297789, -0.2526196, -0.730716, 1.3825745, -0.284847, 0.0259557, 1.0651732],
            [0.2740741, -0.4050458, -0.9412401, 1.4771344, -0.4112243, -0.055628, 1.0455141],
        ],
    ),
]


def build(name, **options):
    return models.build(name, num_classes=7, **TINY | options)


def shapes(network, *clip):
    return jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((*clip, 3), jnp.float32))


def noise(like):
    """The variables of `resnet_parity.noise`."""
    rng, found, leaves = np.random.default_rng(0), {}, named_leaves(like)
    for path in sorted(leaves):
        shape = leaves[path].shape
        if path.endswith("kernel"):
            value = rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]))
        else:
            value = rng.uniform(0.5, 1.5, shape) - (0 if path.endswith(("scale", "var")) else 1)
        found[path] = np.float32(value)
    return jax.tree.unflatten(jax.tree.structure(like), [found[path] for path in leaves])


def noisy_clip(*shape):
    return np.float32(np.random.default_rng(1).uniform(-1, 1, (*shape, 3)))


@pytest.mark.parametrize("name,options,shape,wanted", GOLDEN)
def test_logits_are_those_of_pytorch(name, options, shape, wanted):
    network, clip = build(name, **options), noisy_clip(*shape)
    variables = noise(jax.eval_shape(network.init, KEY, clip))
    np.testing.assert_allclose(jax.jit(network.apply)(variables, clip), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "name,classes,options,clip,count,billions",
    [
        ("resnet50", 1000, {}, (1, 224, 224), 25_557_032, 4.09),
        ("i3d_r50", 400, {}, (1, 8, 224, 224), 28_043_472, 28.41),
        ("i3d_r50", 400, {"stem": "32x2"}, (1, 32, 224, 224), 28_043_472, 33.13),
        ("i3d_r50", 400, {"stem": "32x2"}, (1, 32, 256, 256), 28_043_472, 43.27),
    ],
)
def test_parameters_and_multiply_adds_are_those_of_the_ports(
    name, classes, options, clip, count, billions
):
    network = models.build(name, num_classes=classes, **options)
    variables = shapes(network, *clip)
    assert table.count_parameters(variables) == count
    example = jax.ShapeDtypeStruct((*clip, 3), jnp.float32)
    adds = table.multiply_adds(network.apply, variables, example) / 1e9
    assert adds == pytest.approx(billions, abs=0.006)


def test_an_inflated_network_sees_a_static_clip_as_the_image_away_from_its_ends():
    images, videos = build("resnet50"), build("i3d_r50")
    like = shapes(videos, 1, 8, 32, 32)
    flat = noise(shapes(images, 1, 32, 32))
    image = noisy_clip(1, 64, 64)
    _, wanted = jax.jit(functools.partial(images.apply, endpoints=True))(flat, image)
    clip = np.repeat(image[:, None], 48, 1)
    apply = jax.jit(functools.partial(videos.apply, endpoints=True))
    for how in ("mean", "centre"):
        _, ends = apply(inflate_params(flat, like=like, how=how), clip)
        # With centred kernels the ends agree, too.
        ours = ends["Logits"][:, 8:-8] if how == "mean" else ends["Logits"]
        of_image = np.broadcast_to(wanted["Logits"][:, None], ours.shape)
        np.testing.assert_allclose(ours, of_image, atol=1e-4)
    assert set(wanted) == set(ends) - {"pool2"}


def test_a_video_network_starts_from_image_weights_and_new_non_local_blocks():
    source = noise(shapes(build("resnet50", depth=26), 1, 32, 32))
    like = shapes(build("i3d_r50", depth=26, non_local="softmax"), 1, 4, 32, 32)
    rows = plan_transfer(source, like, models.MODELS["i3d_r50"].backbones)
    new = {row.leaf.split("/")[1] for row in rows if row.action == "new"}
    assert new == {"res3_1_nonlocal", "res4_1_nonlocal", "Logits"}
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), like)
    made = transfer_variables(source, fresh, models.MODELS["i3d_r50"].backbones)["params"]
    for taps in made["res2_0"]["a"]["conv"]["kernel"]:
        np.testing.assert_allclose(
            taps * 3, source["params"]["res2_0"]["a"]["conv"]["kernel"], rtol=1e-6
        )
    np.testing.assert_array_equal(
        made["res2_0"]["b"]["bn"]["scale"], source["params"]["res2_0"]["b"]["bn"]["scale"]
    )
    assert (made["res3_1_nonlocal"]["out"]["bn"]["scale"] == 7).all()


@pytest.mark.parametrize("kind", ["softmax", "dot_product"])
def test_every_position_of_a_non_local_block_sees_all_others(kind, float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 4, 6))
    unit = functools.partial(layers.ConvBN, epsilon=1e-5, dtype=jnp.float64)
    block = resnet.NonLocal(kind, unit, 3)
    fresh = block.init(KEY, jnp.asarray(x), False)
    np.testing.assert_array_equal(block.apply(fresh, jnp.asarray(x), False), x)
    variables: Any = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), fresh)
    params, norm = variables["params"], variables["params"]["out"]["bn"]
    of = {
        name: lambda x, leaf=params[name]: x @ leaf["kernel"][0, 0, 0] + leaf["bias"][None, None]
        for name in ("theta", "phi", "g")
    }
    # A pool of 2x2 without padding leaves the fifth row out.
    fewer = x[:, :, :4].reshape(2, 3, 2, 2, 2, 2, 6).max((3, 5)).reshape(2, 12, 6)
    logits = of["theta"](x.reshape(2, 60, 6)) @ of["phi"](fewer).swapaxes(1, 2)
    weights = np.exp(logits / np.sqrt(3))
    weights = weights / weights.sum(-1, keepdims=True) if kind == "softmax" else logits / 12
    y = (weights @ of["g"](fewer)) @ params["out"]["conv"]["kernel"][0, 0, 0]
    stats = variables["batch_stats"]["out"]["bn"]
    y = np.asarray(y).reshape(-1, 6)
    norm = {name: value[None] for name, value in {**norm, **stats}.items()}
    y = (y - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
    found = block.apply(variables, jnp.asarray(x), False)
    np.testing.assert_allclose(found, x + y.reshape(x.shape), atol=1e-10)


def test_non_local_blocks_take_whole_clips():
    network = build("i3d_r50", depth=26, non_local="softmax")
    variables = shapes(network, 1, 8, 32, 32)
    with pytest.raises(ValueError, match="non_local is 'softmax', which takes whole clips; wanted"):
        streaming.start(network, variables, jnp.zeros((1, 8, 32, 32, 3)))


@pytest.mark.parametrize(
    "option,value,wanted",
    [
        ("stem", "16x4", "'8x8', '32x2', '32x2_unpadded'"),
        ("depth", 18, "14, 26, 50, 101"),
        ("non_local", "gaussian", "'none', 'softmax', 'dot_product'"),
        ("input_scaling", "caffe", "'none', 'imagenet', 'kinetics'"),
        ("pool_window", -1, "0 or more"),
    ],
)
def test_values_that_an_option_does_not_have_are_named(option, value, wanted):
    message = re.escape(f"{option} is {value!r}, wanted ") + ".*" + re.escape(wanted)
    with pytest.raises(ValueError, match=message):
        shapes(build("i3d_r50", **{option: value}), 1, 8, 32, 32)


def test_flow_is_not_scaled_and_a_prediction_takes_two_or_eight_frames():
    network = build("i3d_r50")
    clip = jax.ShapeDtypeStruct((1, 7, 32, 32, 2), jnp.float32)
    _, ends = jax.eval_shape(
        functools.partial(network.init_with_output, endpoints=True), KEY, clip
    )[0]
    assert ends["Logits"].shape == (1, network.timing.steps(7), 7) == (1, 4, 7)
    assert build("i3d_r50", stem="32x2_unpadded").timing.step == 8
    zeros = jnp.zeros((1, 2, 32, 32, 2))
    bound = network.bind({})
    np.testing.assert_array_equal(bound._scaled_input(zeros), zeros)
    grey = bound._scaled_input(jnp.zeros((1, 1, 1, 1, 3)))
    # torchvision's constants: (0.5 - mean) / std.
    np.testing.assert_allclose(grey.ravel(), [0.0655, 0.1964, 0.4178], atol=1e-4)
