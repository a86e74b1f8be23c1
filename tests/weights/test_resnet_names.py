"""ResNets of other projects become ours, by the names of their tensors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import models, weights
from i3d_jax.inflate import named_leaves
from i3d_jax.weights import importers, resnet_names
from i3d_jax.weights.importer import Importer

# The same layers in all projects, as these write them: a kernel of the stem, and the scale, offset
# and statistics of norms in blocks.
KNOWN = {
    "TORCHVISION": {
        "params/conv1/conv/kernel": "conv1.weight",
        "params/conv1/bn/scale": "bn1.weight",
        "params/res2_0/shortcut/conv/kernel": "layer1.0.downsample.0.weight",
        "batch_stats/res2_0/shortcut/bn/var": "layer1.0.downsample.1.running_var",
        "params/res5_2/c/conv/kernel": "layer4.2.conv3.weight",
        "params/res5_2/a/bn/bias": "layer4.2.bn1.bias",
        "params/Logits/bias": "fc.bias",
    },
    "PYTORCHVIDEO": {
        "params/conv1/bn/scale": "blocks.0.norm.weight",
        "params/res2_0/shortcut/conv/kernel": "blocks.1.res_blocks.0.branch1_conv.weight",
        "batch_stats/res3_0/shortcut/bn/var": "blocks.3.res_blocks.0.branch1_norm.running_var",
        "params/res5_2/c/conv/kernel": "blocks.5.res_blocks.2.branch2.conv_c.weight",
        "params/Logits/kernel": "blocks.6.proj.weight",
    },
    "SLOWFAST": {
        "params/conv1/conv/kernel": "s1.pathway0_stem.conv.weight",
        "params/conv1/bn/scale": "s1.pathway0_stem.bn.weight",
        "params/res4_0/shortcut/conv/kernel": "s4.pathway0_res0.branch1.weight",
        "params/res4_0/shortcut/bn/bias": "s4.pathway0_res0.branch1_bn.bias",
        "batch_stats/res4_5/b/bn/mean": "s4.pathway0_res5.branch2.b_bn.running_mean",
        "params/res3_1_nonlocal/theta/kernel": "s3.pathway0_nonlocal1.conv_theta.weight",
        "params/res3_1_nonlocal/out/conv/kernel": "s3.pathway0_nonlocal1.conv_out.weight",
        "params/Logits/kernel": "head.projection.weight",
    },
    "SLOWFAST_CAFFE2": {
        "params/conv1/conv/kernel": "conv1_w",
        "batch_stats/conv1/bn/var": "res_conv1_bn_riv",
        "params/res4_0/shortcut/conv/kernel": "res4_0_branch1_w",
        "params/res4_0/shortcut/bn/scale": "res4_0_branch1_bn_s",
        "batch_stats/res4_5/b/bn/mean": "res4_5_branch2b_bn_rm",
        "params/res3_1_nonlocal/theta/kernel": "nonlocal_conv3_1_theta_w",
        "params/res3_1_nonlocal/out/bn/scale": "nonlocal_conv3_1_bn_s",
        "params/Logits/bias": "pred_b",
    },
    "MMACTION2": {
        "params/conv1/conv/kernel": "backbone.conv1.conv.weight",
        "params/res2_0/shortcut/bn/scale": "backbone.layer1.0.downsample.bn.weight",
        "batch_stats/res4_5/b/bn/mean": "backbone.layer3.5.conv2.bn.running_mean",
        "params/Logits/kernel": "cls_head.fc_cls.weight",
    },
}


@pytest.mark.parametrize("project", KNOWN)
def test_layers_have_the_names_that_projects_give_them(project):
    names = getattr(resnet_names, project)
    assert {path: names.tensor(path) for path in KNOWN[project]} == KNOWN[project]


def the_importer(tensors) -> Importer:
    (found,) = (each for each in importers.IMPORTERS if each.matches(set(tensors)))
    return found


def zeros(shape):
    """An array that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def test_the_tensors_of_pytorchvideos_i3d_are_all_taken(shared_data):
    lines = (shared_data / "states" / "pytorchvideo_i3d_r50.txt").read_text().splitlines()
    shapes = {
        name: tuple(json.loads(f"[{shape.strip('(,)')}]"))
        for name, shape in (line.split(" ", 1) for line in lines)
    }
    assert len(shapes) == 320
    tensors = {name: zeros(shape) for name, shape in shapes.items()}
    importer = the_importer(tensors)
    assert importer.origin == "I3D-ResNet of PyTorchVideo"
    imported = importer.read(tensors)
    assert imported.info.model == "i3d_r50" and imported.info.classes[0] == "abseiling"
    sizes = [x.size for path, x in imported.variables.items() if path.startswith("params")]
    assert sum(sizes) == 28_043_472
    missing = {name: x for name, x in tensors.items() if "blocks.3.res_blocks.1" not in name}
    with pytest.raises(weights.WeightsError, match=r"res_blocks.1.* found nothing, wanted"):
        importer.read(missing)


@pytest.mark.parametrize(
    "project,model,options",
    [
        ("TORCHVISION", "resnet50", {}),
        ("TORCHVISION", "i3d_r50", {"stem": "32x2_unpadded", "input_scaling": "kinetics"}),
        ("PYTORCHVIDEO", "i3d_r50", resnet_names.FACEBOOK),
        ("SLOWFAST", "i3d_r50", resnet_names.FACEBOOK | {"non_local": "softmax"}),
        ("SLOWFAST_CAFFE2", "i3d_r50", resnet_names.FACEBOOK | {"non_local": "softmax"}),
        ("MMACTION2", "i3d_r50", {"stem": "32x2"}),
    ],
)
def test_a_projects_file_gives_our_network_and_its_options(project, model, options):
    names = getattr(resnet_names, project)
    options = options | {"width": 0.125, "depth": 26}
    network = models.build(model, num_classes=7, **options)
    clip = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.float32)
    rng, tensors, wanted = np.random.default_rng(0), {}, {}
    for path, leaf in named_leaves(jax.eval_shape(network.init, jax.random.key(0), clip)).items():
        value = wanted[path] = np.float32(rng.normal(size=leaf.shape))
        if path == "params/Logits/kernel":
            value = value.reshape(value.shape[-2:])
        # PyTorch's order: outputs, inputs, window.
        tensors[names.tensor(path)] = (
            np.moveaxis(value, (-1, -2), (0, 1)) if path.endswith("kernel") else value
        )
    assert len(tensors) == len(wanted)
    for stage in (3, 4) if "non_local" in options else ():
        block, mean = (f"{kind}/res{stage}_1_nonlocal/out" for kind in ("params", "batch_stats"))
        bias = np.float32(rng.normal(size=wanted[f"{block}/bn/bias"].shape))
        tensors[names.tensor(f"{block}/conv/bias")] = bias
        # Batch norm takes a bias away: with x + bias for x, the mean is greater by it.
        wanted[f"{mean}/bn/mean"] = wanted[f"{mean}/bn/mean"] - bias
    tensors |= {"lr": np.ones(1), "conv1_w_momentum": np.ones(1)}
    tensors["layer1.0.bn1.num_batches_tracked"] = np.array(3)
    imported = the_importer(tensors).read(tensors)
    assert imported.info.model == model and dict(imported.info.options) == options
    assert set(imported.variables) == set(wanted)
    for path, value in wanted.items():
        np.testing.assert_array_equal(imported.variables[path], value, err_msg=path)
    weights.metadata.network(imported.info)
