"""TF-Slim's Inception-v1 in our network, against TensorFlow (fixtures/slim_inception_v1.py)."""

import pathlib
import warnings
import zlib

import jax
import numpy as np
import pytest
from support.tf_files import table, v1_pairs, write_checkpoint

from i3d_jax import models, weights
from i3d_jax.weights import tf_checkpoint
from i3d_jax.weights.__main__ import main

SMALL = pathlib.Path(__file__).parent / "fixtures" / "inception_v1_small.ckpt"
HEAD = "InceptionV1/Logits/Conv2d_0c_1x1"


@pytest.fixture
def tensors():
    return dict(tf_checkpoint.open_checkpoint(SMALL))


def test_logits_are_those_of_tensorflow():
    images = np.random.RandomState(0).uniform(-1, 1, (2, 72, 52, 3)).astype(np.float32)
    variables, info = weights.read(SMALL)
    model = models.build(info.model, num_classes=len(info.classes), **info.options)
    wanted = np.load(SMALL.with_suffix(".npz"))["logits"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), wanted, rtol=0, atol=1e-5)


def test_what_tensorflow_wrote_is_read_bit_for_bit(tensors):
    crcs = np.load(SMALL.with_suffix(".npz"))["crcs"]
    assert [zlib.crc32(tensors[name].tobytes()) for name in sorted(tensors)] == crcs.tolist()
    assert (
        len(crcs) == 231
        and tensors["global_step"] == 123456
        and tensors["global_step"].dtype == np.int64
    )


def test_slots_are_left_out_and_v2_gives_the_same(tmp_path, tensors):
    for slot in ("Momentum", "RMSProp", "RMSProp_1", "Adam_1", "ExponentialMovingAverage"):
        tensors[f"{HEAD}/biases/{slot}"] = tensors[f"{HEAD}/biases"]
    write_checkpoint(tmp_path / "model.ckpt", tensors | {"beta1_power": 0.9})
    jax.tree.map(
        np.testing.assert_array_equal, weights.load(tmp_path / "model.ckpt"), weights.load(SMALL)
    )


def test_slims_classes_are_imagenets_and_a_background(tmp_path, tensors):
    tensors |= {
        f"{HEAD}/weights": np.zeros((1, 1, 32, 1001), np.float32),
        f"{HEAD}/biases": np.zeros(1001, np.float32),
    }
    (tmp_path / "x.ckpt").write_bytes(table(v1_pairs(tensors)))
    _, info = weights.read(tmp_path / "x.ckpt")
    assert (info.model, info.stream, info.options) == ("inception", "rgb", {"width": 1 / 32})
    assert info.classes[:2] == ("background", "ImageNet class 1")
    assert info.classes[1000:] == ("ImageNet class 1000",)


def test_command_line_verifies_and_converts(tmp_path, capsys):
    target = str(tmp_path / "w.safetensors")
    assert main(["convert", str(SMALL), target]) == 0
    assert main(["verify", str(SMALL), target]) == 0
    assert capsys.readouterr().out.count("good; inception, rgb, 11 classes") == 2
    jax.tree.map(np.testing.assert_array_equal, weights.load(target), weights.load(SMALL))


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda tensors: {
                name.replace("InceptionV1", "InceptionV3"): value for name, value in tensors.items()
            },
            (
                "no weights of I3D or Inception-v1 (it has no tensor for "
                "params/Conv_1a/conv/kernel, none for params/Logits/bias)"
            ),
        ),
        (
            lambda tensors: {
                name: value for name, value in tensors.items() if "Mixed_5c/Branch_3" not in name
            },
            "params/Mixed_5c/b3/conv/kernel: found nothing, wanted (1, 1, 26, 4)",
        ),
        (
            lambda tensors: (
                tensors | {"InceptionV1/Conv2d_1a_7x7/BatchNorm/gamma": np.ones(2, np.float32)}
            ),
            "params/Conv_1a/bn/gamma: found (2,), wanted nothing",
        ),
    ],
)
def test_another_network_is_one_line_that_names_what_it_lacks(
    tmp_path, capsys, tensors, change, message
):
    (tmp_path / "x.ckpt").write_bytes(table(v1_pairs(change(tensors))))
    assert main(["verify", str(tmp_path / "x.ckpt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.ckpt: " in line and message in line


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"x" * 100)
    with pytest.raises(weights.WeightsError, match="x.ckpt: not a TensorFlow checkpoint"):
        weights.read(tmp_path / "x.ckpt")


@pytest.fixture
def slim():
    """The fixture's script, if TensorFlow is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorflow")
        from fixtures import slim_inception_v1
    return slim_inception_v1


@pytest.mark.slow
@pytest.mark.parametrize("v2", [False, True])
def test_full_size_logits_are_those_of_tensorflow(slim, tmp_path, v2):
    images = np.random.RandomState(1).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    wanted, values = slim.write(tmp_path / "x.ckpt", images, width=1, num_classes=1001, v2=v2)
    checkpoint = tf_checkpoint.open_checkpoint(tmp_path / "x.ckpt")
    assert isinstance(checkpoint, tf_checkpoint.Checkpoint if v2 else tf_checkpoint.CheckpointV1)
    assert checkpoint.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(checkpoint[name], value)
    model = models.build("inception", num_classes=1001)
    logits = jax.jit(model.apply)(weights.load(tmp_path / "x.ckpt"), images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
