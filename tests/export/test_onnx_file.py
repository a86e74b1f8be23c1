"""ONNX files against our networks, run by ONNX Runtime, which shares no code with JAX."""

import collections
import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from support import small_exports

from i3d_jax import models, pixels, weights
from i3d_jax.export import description, onnx_file
from i3d_jax.export.description import DIMENSIONS, ExportError

EVERY_LAYER = {"depth": 26, "stem": "32x2_unpadded"}  # Of ResNet, with a pool without padding.
CASES = [
    ("i3d", {"norm_epsilon": 0.1}, (1, 9, 40, 40)),
    ("i3d", {}, (3, 17, 33, 47)),
    ("inception", {}, (3, 33, 47)),
    ("resnet50", {"depth": 26}, (3, 33, 47)),
    ("i3d_r50", {}, (2, 5, 33, 47)),
    ("i3d_r50", {"stem": "32x2", "input_scaling": "kinetics"}, (1, 1, 64, 64)),
    ("i3d_r50", {**EVERY_LAYER, "non_local": "softmax", "pool_window": 2}, (2, 9, 64, 80)),
    ("i3d_r50", {**EVERY_LAYER, "non_local": "dot_product"}, (1, 8, 64, 64)),
    ("c3d", {}, (1, 16, 32, 32)),
    ("c3d", {}, (2, 48, 32, 32)),
]


def clip(shape, channels=3):
    return np.random.default_rng(1).uniform(-1, 1, (*shape, channels)).astype(np.float32)


def export(path, folder):
    """A session and the model's metadata of the ONNX file of weights, with all sizes open."""
    onnx_file.write(folder / "x.onnx", description.load(path, None, DIMENSIONS))
    session = onnxruntime.InferenceSession(folder / "x.onnx", providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map


def run(session, video):
    """The outputs by name, of a clip with channels last."""
    (given,) = session.get_inputs()
    values = session.run(None, {given.name: np.moveaxis(video, -1, 1)})
    return dict(zip([each.name for each in session.get_outputs()], values, strict=True))


def ours(path, video):
    """The logits and the features of the network itself, in XLA's own operations."""
    network, variables, _ = weights.network(path)
    with models.forms_of("plain"):
        logits, ends = jax.jit(lambda video: network.apply(variables, video, endpoints=True))(video)
    return np.asarray(logits), ends


def assert_close(found, wanted, tolerance=1e-5):
    """Equal up to a part of the largest value."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name,options,shape", CASES)
def test_onnx_gives_our_networks_outputs(name, options, shape, tmp_path):
    path = small_exports.save(tmp_path, name, **options)
    video = clip(shape)
    logits, ends = ours(path, video)
    assert logits.std() > 0.01 * np.abs(logits).max()
    found = run(export(path, tmp_path)[0], video)
    assert_close(found["logits"], logits)
    assert ("features" in found) == (name != "c3d")
    if name != "c3d":
        assert_close(found["features"], np.squeeze(np.asarray(ends["AvgPool"]), (-3, -2)))


def test_flow_has_two_channels_and_says_so(tmp_path):
    path = small_exports.save(tmp_path, "i3d", "flow")
    session, metadata = export(path, tmp_path)
    video = clip((1, 9, 32, 32), 2)
    assert_close(run(session, video)["logits"], ours(path, video)[0])
    described = json.loads(metadata["inputs"])["video"]
    assert described["shape"] == ["batch", 2, "time", "height", "width"]
    assert "flow" in described["values"]


def test_i3d_has_the_layers_of_the_paper(tmp_path):
    """Figure 3: 9 modules of 6 convolutions, 3 before them and the last layer."""
    made = onnx_file.model(*_described(small_exports.save(tmp_path, "i3d")))
    found = collections.Counter(node.op_type for node in made.graph.node)
    assert (found["Conv"], found["Relu"]) == (9 * 6 + 3 + 1, 9 * 6 + 3)
    assert (found["MaxPool"], found["Concat"]) == (4 + 9, 9)
    assert found["BatchNormalization"] == 0
    assert [each.version for each in made.opset_import] == [18]


def _described(path):
    source = description.load(path, None, DIMENSIONS)
    return source, description.describe(source, onnx_file.LAYOUT)


def test_a_file_carries_classes_preprocessing_and_source(tmp_path):
    path = small_exports.save(tmp_path, "i3d")
    _, metadata = export(path, tmp_path)
    assert json.loads(metadata["classes"]) == list("abcdefg")
    assert json.loads(metadata["preprocessing"]) == {
        "frames_per_second": 25.0,
        "short_side": 40,
        "centre_crop": 32,
    }
    assert (metadata["source"], metadata["model"]) == ("a test", "i3d")
    assert metadata["weights"] == weights.fingerprint(weights.load(path))
    assert json.loads(metadata["inputs"])["video"]["least_frames"] == 9


def test_fixed_sizes_are_in_the_graph(tmp_path):
    path = small_exports.save(tmp_path, "i3d")
    onnx_file.write(tmp_path / "x.onnx", description.load(path, (), frames=16, size=(32, 48)))
    (given,) = onnx.load(tmp_path / "x.onnx").graph.input
    assert [each.dim_value for each in given.type.tensor_type.shape.dim] == [1, 3, 16, 32, 48]


@pytest.mark.parametrize(
    "name,options,why",
    [
        ("two_stream", {}, "two_stream: networks of two streams are not written as ONNX"),
        ("convnet_lstm", {}, "convnet_lstm: is not written as ONNX; try --to stablehlo"),
        ("i3d", {"time_padding": "edge"}, "time_padding is 'edge', wanted 'zeros'"),
    ],
)
def test_other_networks_are_refused(name, options, why, tmp_path):
    path = small_exports.save(tmp_path, name, **options)
    with pytest.raises(ExportError, match=why):
        onnx_file.write(tmp_path / "x.onnx", description.load(path, None, DIMENSIONS))
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.slow  # The released network at full size.
def test_the_released_i3d_gives_its_golden_logits_at_all_sizes(shared_data, tmp_path):
    path = str(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")
    session, metadata = export(path, tmp_path)
    released = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.load(path)))
    assert abs((tmp_path / "x.onnx").stat().st_size / released - 1) < 0.01
    for shape in (1, 9, 224, 224), (2, 17, 240, 320):
        video = clip(shape)
        logits, ends = ours(path, video)
        found = run(session, video)
        np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4)
        assert_close(found["features"], np.squeeze(np.asarray(ends["AvgPool"]), (-3, -2)))
    # The figures of test_golden, which an independent implementation gave.
    import av

    with av.open(shared_data / "kinetics-i3d" / "v_CricketShot_g04_c01_rgb.gif") as container:
        frames = [each.to_ndarray(format="rgb24") for each in container.decode(video=0)][:32]
    (logits,) = run(session, pixels.to_unit(np.stack(frames))[None])["logits"]
    classes = json.loads(metadata["classes"])
    best = np.argsort(-logits)[:3]
    assert [classes[each] for each in best] == ["playing cricket", "robot dancing", "pumping fist"]
    np.testing.assert_allclose(logits[best], [20.489, 14.899, 14.293], atol=1e-3)
