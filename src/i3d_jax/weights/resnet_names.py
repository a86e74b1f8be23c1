"""ResNet-50 and I3D-ResNet-50 of torchvision, PyTorchVideo, SlowFast, Caffe2 and mmaction2.

All have the same layers; a project is a row of names, and what its network has otherwise.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from i3d_jax import labels
from i3d_jax.models.resnet import DEPTHS
from i3d_jax.weights.importer import Imported, Importer, check_tensors, kernel_of
from i3d_jax.weights.metadata import Info, variable_shapes
from i3d_jax.weights.published import WeightsError

PYTORCH = {
    "kernel": ".weight",
    "bias": ".bias",
    "scale": ".weight",
    "mean": ".running_mean",
    "var": ".running_var",
}
CAFFE2 = {"kernel": "_w", "bias": "_b", "scale": "_s", "mean": "_rm", "var": "_riv"}
# Parts of a file that are not the network's.
IGNORED = r"\.num_batches_tracked$|_momentum$|^lr$|^model_iter$|^data$|^labels$"


class Names(NamedTuple):
    """The names of one project.

    Pairs are names of a convolution and of the batch norm behind it, with {stage}, {block} and
    {part} to be filled in.

    Attributes:
      stem: of the first layer.
      shortcut: of a block's projection.
      branch: of a block's three convolutions.
      last: of the last layer.
      stages: names of res2 to res5.
      parts: names of a block's a, b and c.
      leaves: endings of tensors, by our names of leaves.
      non_local: of a non-local block; ("", "") where a project has none, or others than ours.
    """

    stem: tuple[str, str]
    shortcut: tuple[str, str]
    branch: tuple[str, str]
    last: str
    stages: tuple[str, ...]
    parts: str = "abc"
    leaves: Mapping[str, str] = PYTORCH
    non_local: tuple[str, str] = ("", "")

    def tensor(self, path: str) -> str:
        """The project's name of a variable of ours.

        Args:
          path: such as params/res2_0/a/bn/scale.
        """
        _, layer, *inner, leaf = path.split("/")
        of_norm, ending = "bn" in inner, self.leaves[leaf]
        if layer == "Logits":
            return self.last + ending
        found = re.fullmatch(r"res(\d)_(\d+)(_nonlocal)?", layer)
        if found is None:
            return self.stem[of_norm] + ending
        stage, block, non_local = found.groups()
        part = inner[0]
        if non_local:
            pair = self.non_local
        elif part == "shortcut":
            pair = self.shortcut
        else:
            pair, part = self.branch, self.parts["abc".index(part)]
        return pair[of_norm].format(stage=self.stages[int(stage) - 2], block=block, part=part) + (
            ending
        )


LAYERS = "layer1", "layer2", "layer3", "layer4"
TORCHVISION = Names(
    stem=("conv1", "bn1"),
    shortcut=("{stage}.{block}.downsample.0", "{stage}.{block}.downsample.1"),
    branch=("{stage}.{block}.conv{part}", "{stage}.{block}.bn{part}"),
    last="fc",
    stages=LAYERS,
    parts="123",
)
PYTORCHVIDEO = Names(
    stem=("blocks.0.conv", "blocks.0.norm"),
    shortcut=(
        "blocks.{stage}.res_blocks.{block}.branch1_conv",
        "blocks.{stage}.res_blocks.{block}.branch1_norm",
    ),
    branch=(
        "blocks.{stage}.res_blocks.{block}.branch2.conv_{part}",
        "blocks.{stage}.res_blocks.{block}.branch2.norm_{part}",
    ),
    last="blocks.6.proj",
    stages=("1", "3", "4", "5"),
)
SLOWFAST = Names(
    stem=("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"),
    shortcut=("{stage}.pathway0_res{block}.branch1", "{stage}.pathway0_res{block}.branch1_bn"),
    branch=(
        "{stage}.pathway0_res{block}.branch2.{part}",
        "{stage}.pathway0_res{block}.branch2.{part}_bn",
    ),
    last="head.projection",
    stages=("s2", "s3", "s4", "s5"),
    non_local=(
        "{stage}.pathway0_nonlocal{block}.conv_{part}",
        "{stage}.pathway0_nonlocal{block}.bn",
    ),
)
SLOWFAST_CAFFE2 = Names(
    stem=("conv1", "res_conv1_bn"),
    shortcut=("res{stage}_{block}_branch1", "res{stage}_{block}_branch1_bn"),
    branch=("res{stage}_{block}_branch2{part}", "res{stage}_{block}_branch2{part}_bn"),
    last="pred",
    stages=("2", "3", "4", "5"),
    leaves=CAFFE2,
    non_local=("nonlocal_conv{stage}_{block}_{part}", "nonlocal_conv{stage}_{block}_bn"),
)
MMACTION2 = Names(
    stem=("backbone.conv1.conv", "backbone.conv1.bn"),
    shortcut=(
        "backbone.{stage}.{block}.downsample.conv",
        "backbone.{stage}.{block}.downsample.bn",
    ),
    branch=(
        "backbone.{stage}.{block}.conv{part}.conv",
        "backbone.{stage}.{block}.conv{part}.bn",
    ),
    last="cls_head.fc_cls",
    stages=LAYERS,
    parts="123",
)
# Clips of Kinetics have 10 s at 30 frames per second, and are taken in one pass.
EIGHT = {"footprint": {"rgb": (38, 8)}, "fps": 30.0}
THIRTY_TWO = {"footprint": {"rgb": (150, 2)}, "fps": 30.0}
FACEBOOK = {"input_scaling": "kinetics", "pool_window": 7}
KINETICS_CLASSES = {400: "kinetics_400", 600: "kinetics_600"}


def to_variables(
    tensors: Mapping[str, np.ndarray], names: Names, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Renames a project's tensors.

    Args:
      tensors: by the project's names, and no others than the network's.
      names: the project's.
      shapes: of our variables, by path.

    Returns:
      our variables, float32 arrays by path.

    Raises:
      WeightsError: names every tensor that is missing, not wanted or of another shape.
    """
    tensors, wanted, biases = dict(tensors), {}, {}
    for path, shape in shapes.items():
        if path.startswith("params/Logits/kernel"):
            shape = shape[-2:]
        kernel = path.endswith("kernel")
        wanted[names.tensor(path)] = (*shape[:-3:-1], *shape[:-2]) if kernel else shape
        bias = re.sub(r"(_nonlocal/out)/conv/kernel$", r"\1/conv/bias", path)
        if bias != path:
            # Batch norm takes the bias of a non-local block away; ours has none.
            biases[path.replace("params", "batch_stats").replace("conv/kernel", "bn/mean")] = bias
            wanted[names.tensor(bias)] = shape[-1:]
    check_tensors(tensors, wanted, "ResNet")
    found = {}
    for path, shape in shapes.items():
        value = tensors[names.tensor(path)]
        value = kernel_of(value).reshape(shape) if path.endswith("kernel") else value
        if path in biases:
            value = value - tensors[names.tensor(biases[path])]
        found[path] = np.array(value, np.float32)
    return found


def _read(
    tensors: Mapping[str, np.ndarray],
    names: Names,
    options: Mapping[str, Any],
    clips: Mapping[str, Any],
) -> Imported:
    """See `Importer.read`.

    Args:
      tensors: of the file.
      names: the project's.
      options: of its network.
      clips: its clips, as fields of `Info`.
    """
    # Later versions of SlowFast have another name for the batch norm of a non-local block.
    tensors = {
        re.sub(r"(nonlocal\d+)\.norm\.", r"\1.bn.", name): value
        for name, value in tensors.items()
        if not re.search(IGNORED, name)
    }
    stem, last = (
        tensors.get(names.tensor(f"params/{path}"), np.empty(0))
        for path in ("conv1/conv/kernel", "Logits/bias")
    )
    if stem.ndim not in (4, 5) or last.ndim != 1 or not last.size:
        raise WeightsError(
            f"does not fit ResNet: {names.tensor('params/conv1/conv/kernel')}: found "
            f"{stem.shape}, and {names.tensor('params/Logits/bias')}: found {last.shape}"
        )
    model = "resnet50" if stem.ndim == 4 else "i3d_r50"
    options = dict(options)
    if names is TORCHVISION and model == "i3d_r50":
        # video-nonlocal-net, converted by pytorch-resnet3d.
        options |= {"stem": "32x2_unpadded", "input_scaling": "kinetics"}
        clips = THIRTY_TWO
    if len(stem) != 64:
        options["width"] = len(stem) / 64
    blocks = sum(names.tensor(f"params/res4_{i}/b/conv/kernel") in tensors for i in range(99))
    depth = next((depth for depth, of in DEPTHS.items() if of[2] == blocks), 50)
    if depth != 50:
        options["depth"] = depth
    if names.non_local[0] and names.tensor("params/res3_1_nonlocal/g/kernel") in tensors:
        options["non_local"] = "softmax"
    classes = KINETICS_CLASSES.get(len(last)) if model == "i3d_r50" else None
    made = labels.names(classes) if classes else [f"class {i}" for i in range(len(last))]
    info = Info(model, tuple(made), options, **clips)
    return Imported(info, to_variables(tensors, names, variable_shapes(info)))


def _importer(
    origin: str,
    names: Names,
    options: Mapping[str, Any],
    clips: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Importer:
    signature = {
        names.tensor(f"params/{path}")
        for path in ("conv1/conv/kernel", "conv1/bn/scale", "res2_0/shortcut/conv/kernel")
    }

    def read(tensors: Mapping[str, np.ndarray]) -> Imported:
        imported = _read(tensors, names, options, clips)
        number, doubts = len(imported.info.classes), ()
        if "non_local" in imported.info.options:
            doubts += (SOFTMAX,)
        if imported.info.model == "i3d_r50" and number in KINETICS_CLASSES:
            doubts += (f"Its classes are taken to be Kinetics-{number}'s in order: see --classes.",)
        return imported._replace(notes=notes, doubts=doubts)

    return Importer(origin, lambda found: signature <= found, read)


SOFTMAX = (
    "Its non-local blocks are taken to have softmax, as SlowFast's published ones. Files with "
    "NONLOCAL.INSTANTIATION dot_product look the same, and need other options."
)
ONE_PASS = (
    "Videos are taken in one pass, by the centre crop; {} averages the {} of 30 clips and crops."
)
LOGITS = ONE_PASS.format("PyTorchVideo", "logits")
SCORES = "softmax scores"
IMPORTERS = (
    _importer("ResNet of torchvision or of pytorch-resnet3d", TORCHVISION, {}, {}),
    _importer("I3D-ResNet of PyTorchVideo", PYTORCHVIDEO, FACEBOOK, EIGHT, (LOGITS,)),
    _importer(
        "I3D-ResNet of SlowFast", SLOWFAST, FACEBOOK, EIGHT, (ONE_PASS.format("SlowFast", SCORES),)
    ),
    _importer(
        "I3D-ResNet of SlowFast, from Caffe2",
        SLOWFAST_CAFFE2,
        FACEBOOK,
        EIGHT,
        (ONE_PASS.format("SlowFast", SCORES),),
    ),
    _importer(
        "I3D-ResNet of mmaction2",
        MMACTION2,
        {"stem": "32x2"},
        THIRTY_TWO,
        (ONE_PASS.format("mmaction2", SCORES),),
    ),
)
