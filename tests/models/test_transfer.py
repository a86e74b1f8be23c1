import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import models, weights
from i3d_jax.inflate import named_leaves
from i3d_jax.models.transfer import plan_transfer, transfer_variables
from i3d_jax.weights.__main__ import main

KEY = jax.random.key(0)


def random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), tree)


def shapes(name, classes=7, streams=None, **options):
    network = models.build(name, num_classes=classes, width=0.1, **options)
    return jax.eval_shape(
        network.init, KEY, models.input_shapes(streams or models.MODELS[name].train, 48)
    )


@pytest.fixture(scope="module")
def images():
    return random(shapes("inception", 1001))


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize(
    "name,counts",
    [
        ("inception", {"copied": 228, "new": 2}),
        ("convnet_lstm", {"copied": 228, "new": 15}),
        ("c3d", {"new": 42}),
        ("two_stream", {"copied": 455, "averaged over 3 channels, repeated over 20": 1, "new": 4}),
        (
            "fused_two_stream",
            {"copied": 455, "averaged over 3 channels, repeated over 20": 1, "new": 6},
        ),
        (
            "i3d",
            {
                "copied": 171,
                "inflated": 37,
                "inflated: repeated over 3 frames, / 3": 19,
                "inflated: repeated over 7 frames, / 7": 1,
                "new": 2,
            },
        ),
    ],
)
def test_every_leaf_of_every_model_is_accounted_for(name, counts, images):
    like = shapes(name)
    rows = plan_transfer(images, like, models.MODELS[name].backbones)
    assert [row.leaf for row in rows] == list(named_leaves(like))
    assert collections.Counter(row.action for row in rows) == counts
    if name != "c3d":
        fresh = random(like, seed=1)
        made, given, new = (
            named_leaves(tree)
            for tree in (
                transfer_variables(images, fresh, models.MODELS[name].backbones),
                images,
                fresh,
            )
        )
        for row in rows:
            source = given.get(row.source)
            if row.action == "copied":
                np.testing.assert_array_equal(made[row.leaf], source)
            elif row.action == "new":
                np.testing.assert_array_equal(made[row.leaf], new[row.leaf])
                assert "Logits" in row.leaf or "lstm" in row.leaf or "Conv_6a" in row.leaf
            elif row.action.startswith("inflated"):
                for frame in made[row.leaf]:
                    np.testing.assert_allclose(frame, source / len(made[row.leaf]), rtol=1e-6)
            else:
                for channel in range(20):
                    np.testing.assert_allclose(
                        made[row.leaf][..., channel, :], source.mean(-2), atol=1e-6
                    )


def test_a_flow_i3d_gets_the_channels_average_inflated(images):
    like = shapes("i3d", streams={"flow": (16, 1)})
    made = transfer_variables(images, random(like, 1), ("",))["params"]["Conv_1a"]["conv"]["kernel"]
    mean = images["params"]["Conv_1a"]["conv"]["kernel"].mean(-2)
    assert made.shape[:-1] == (7, 7, 7, 2)
    np.testing.assert_allclose(
        made, np.broadcast_to(mean[None, :, :, None] / 7, made.shape), atol=1e-6
    )


@pytest.mark.parametrize("name", ["convnet_lstm", "c3d", "fused_two_stream"])
def test_weights_of_the_same_network_give_all_but_the_last_layer(name):
    like = shapes(name)
    source, fresh = random(shapes(name, classes=9)), random(like, 1)
    made = named_leaves(transfer_variables(source, fresh, models.MODELS[name].backbones))
    for leaf, value in named_leaves(source).items():
        other = named_leaves(fresh)[leaf] if leaf.startswith("params/Logits/") else value
        np.testing.assert_array_equal(made[leaf], other, err_msg=leaf)


def test_an_inflated_stream_starts_from_a_video_networks_weights_too():
    videos = random(shapes("i3d"))
    like = shapes("two_stream_i3d")
    made = transfer_variables(videos, random(like, 1), ("rgb", "flow"))
    np.testing.assert_array_equal(
        made["params"]["flow"]["Mixed_3b"]["b0"]["conv"]["kernel"],
        videos["params"]["Mixed_3b"]["b0"]["conv"]["kernel"],
    )


def test_what_a_network_cannot_start_from_is_named(images):
    with pytest.raises(ValueError, match="no layers in common with the given weights"):
        transfer_variables(images, random(shapes("c3d")), ())
    with pytest.raises(ValueError, match=r"(?s)cannot inflate .*Conv_1a/bn/mean"):
        wide = jax.eval_shape(
            models.build("inception", num_classes=5, width=0.2).init, KEY, jnp.zeros((1, 32, 32, 3))
        )
        transfer_variables(random(wide), random(shapes("i3d")), ("",))
    before = images["params"]["Conv_1a"]["conv"]["kernel"].copy()
    transfer_variables(images, random(shapes("two_stream"), 1), ("rgb", "flow"))
    np.testing.assert_array_equal(images["params"]["Conv_1a"]["conv"]["kernel"], before)


def test_the_plan_is_printed(capsys, tmp_path):
    assert main(["plan", "two_stream", "--num-classes", "5"]) == 0
    out = capsys.readouterr().out
    assert (
        "| params/flow/Conv_1a/conv/kernel | 7x7x20x64 "
        "| averaged over 3 channels, repeated over 20 | params/Conv_1a/conv/kernel | 7x7x3x64 |"
        in out
    )
    assert "| params/rgb/Logits/kernel | 1x1x1024x5 | new |" in out
    assert main(["plan", "i3d", "--stream", "flow"]) == 0
    out = capsys.readouterr().out
    assert "averaged over 3 channels, repeated over 2; inflated: repeated over 7 frames, / 7" in out
    assert "\nnew: 409,600\n" in out or "\nnew: 410,000" in out
    assert main(["plan", "i3d", "--source", str(tmp_path / "x.ckpt")]) == 1
    assert "x.ckpt: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "x3d"])
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "i3d", "--num-classes", "0"])


def test_a_plan_that_cannot_be_carried_out_is_an_error(capsys, tmp_path, images):
    info = weights.Info("inception", tuple(map(str, range(1001))), {"width": 0.1})
    weights.save(tmp_path / "w.safetensors", images, info)
    for model, message in (
        ("two_stream", "Conv_1a/bn/mean: cannot inflate (6,) to (64,)"),
        ("c3d", "no layers in common"),
    ):
        assert main(["plan", model, "--source", str(tmp_path / "w.safetensors")]) == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and len(err.splitlines()) == 1 and len(err) < 500
