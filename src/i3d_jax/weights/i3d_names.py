"""I3D of pytorch-i3d and of kinetics_i3d_pytorch, and of the many projects that copied them.

Files of both have batch norms with a scale, which ours lack. Converted files have ones there.
Fine-tuned files have trained scales, which are folded (`importer.fold_scale`).
"""

import re
from collections.abc import Mapping

import numpy as np

from i3d_jax.weights.importer import (
    Imported,
    Importer,
    check_tensors,
    fold_scale,
    kernel_of,
    with_epsilon,
)
from i3d_jax.weights.metadata import Info, class_names, variable_shapes

# From the module's path in our network to its name there. Rules apply in order.
PYTORCH_I3D = (
    (r"^Conv_1a$", "Conv3d_1a_7x7"),
    (r"^Conv_2b$", "Conv3d_2b_1x1"),
    (r"^Conv_2c$", "Conv3d_2c_3x3"),
    (r"/b3$", "/b3b"),
    (r"^Logits$", "logits"),
    (r"/", "."),
)
KINETICS_I3D_PYTORCH = (
    (r"^Conv_1a$", "conv3d_1a_7x7"),
    (r"^Conv_2b$", "conv3d_2b_1x1"),
    (r"^Conv_2c$", "conv3d_2c_3x3"),
    (r"^Mixed_", "mixed_"),
    (r"/b0$", "/branch_0"),
    (r"/b([12])a$", r"/branch_\1/0"),
    (r"/b([12])b$", r"/branch_\1/1"),
    (r"/b3$", "/branch_3/1"),
    (r"^Logits$", "conv3d_0c_1x1"),
    (r"/", "."),
)
MODULES = (
    "Conv_1a",
    "Conv_2b",
    "Conv_2c",
    *(
        f"Mixed_{block}/{branch}"
        for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
        for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3")
    ),
    "Logits",
)
EPSILON_HERE = (
    "norm_epsilon is 0.001, as in pytorch-i3d. VideoGPT, TATS, cd-fvd and "
    "common_metrics_on_video_quality have the same names, but 1e-5: for files of theirs, convert "
    "with --norm-epsilon 1e-5."
)
EPSILON_THERE = (
    "norm_epsilon is 1e-5, as in most copies of kinetics_i3d_pytorch. That project itself has had "
    "0.001 since 2020: for files of it, convert with --norm-epsilon 1e-3."
)
PADDING = (
    "Padding here is TensorFlow's. kinetics_i3d_pytorch agrees if height and width are multiples "
    "of 32. Copies from before 2020, such as video_features, also pad time by constants: they "
    "agree only if the number of frames is a multiple of 4, too."
)
FOLDED = (
    "{} of {} batch norms have a trained scale. It was folded exactly into kernels and means. "
    "Further training would not be as with scales."
)
MAX_CLASSES = 100_000
NORM_LEAVES = {"bn/bias": "bias", "bn/mean": "running_mean", "bn/var": "running_var"}


class Names:
    """The names of one project.

    Attributes:
      rules: from modules of ours to modules of the project.
      norm: what the project calls a batch norm.
    """

    def __init__(self, rules: tuple[tuple[str, str], ...], norm: str):
        self.rules, self.norm = rules, norm

    def module(self, ours: str) -> str:
        """The project's name of a module of ours: Mixed_3b/b3 is Mixed_3b.b3b."""
        for pattern, replacement in self.rules:
            ours = re.sub(pattern, replacement, ours)
        return ours

    def tensor(self, path: str) -> str:
        """The project's name of a variable: params/Conv_1a/bn/bias is Conv3d_1a_7x7.bn.bias."""
        _, path = path.split("/", 1)
        if path.startswith("Logits/"):
            leaf = {"kernel": "weight", "bias": "bias"}[path.removeprefix("Logits/")]
            return f"{self.module('Logits')}.conv3d.{leaf}"
        if path.endswith("/conv/kernel"):
            return f"{self.module(path.removesuffix('/conv/kernel'))}.conv3d.weight"
        module, leaf = path.rsplit("/bn/", 1)
        return f"{self.module(module)}.{self.norm}.{NORM_LEAVES['bn/' + leaf]}"

    def scale(self, kernel: str) -> str:
        """The project's name of the scale that belongs to a kernel of ours."""
        return self.tensor(kernel).replace(".conv3d.", f".{self.norm}.")

    def match(self, names: set[str]) -> bool:
        """Whether a file has most of the network's kernels."""
        found = sum(f"{self.module(module)}.conv3d.weight" in names for module in MODULES)
        return 2 * found > len(MODULES)


def _read(tensors: Mapping[str, np.ndarray], names: Names, epsilon: float) -> Imported:
    """See `Importer.read`; `epsilon` is that of the project's batch norms."""
    tensors = {
        name: value for name, value in tensors.items() if not name.endswith(".num_batches_tracked")
    }
    info = _infer_info(tensors, names, epsilon)
    shapes = variable_shapes(info)
    wanted = {}
    for path, shape in shapes.items():
        kernel = path.endswith("kernel")
        wanted[names.tensor(path)] = (*shape[:-3:-1], *shape[:-2]) if kernel else shape
        if path.endswith("/conv/kernel"):
            wanted[names.scale(path)] = shape[-1:]
    check_tensors(tensors, wanted, "I3D")
    variables = {
        path: kernel_of(tensors[names.tensor(path)])
        if path.endswith("kernel")
        else np.array(tensors[names.tensor(path)], np.float32)
        for path in shapes
    }
    trained, notes = 0, ()
    for path in [path for path in shapes if path.endswith("/conv/kernel")]:
        scale = np.asarray(tensors[names.scale(path)], np.float32)
        if (scale != 1).any():
            trained += 1
            mean = path.replace("params/", "batch_stats/").replace("/conv/kernel", "/bn/mean")
            variables[path], variables[mean] = fold_scale(variables[path], variables[mean], scale)
    if trained:
        notes = (FOLDED.format(trained, len(MODULES) - 1),)
    return Imported(info, variables, notes)


def _infer_info(tensors: Mapping[str, np.ndarray], names: Names, epsilon: float) -> Info:
    """Describes the network by its first and last tensors.

    Without them, or if they are no such tensors, it describes the release's; the error then names
    all that is wrong.
    """
    first, last = (
        tensors.get(names.tensor(path), np.empty(0))
        for path in ("params/Conv_1a/conv/kernel", "params/Logits/bias")
    )
    if first.ndim != 5 or not first.size:
        first = np.empty((64, 3, 7, 7, 7))
    if last.ndim != 1 or not 0 < len(last) <= MAX_CLASSES:
        last = np.empty(400)
    options = {} if len(first) == 64 else {"width": len(first) / 64}
    stream = "flow" if first.shape[1] == 2 else "rgb"
    classes = class_names("i3d", len(last))
    return with_epsilon(Info("i3d", classes, options, footprint={stream: (250, 1)}), epsilon)


def _importer(
    origin: str,
    names: Names,
    epsilon: float,
    notes: tuple[str, ...] = (),
    doubts: tuple[str, ...] = (),
) -> Importer:
    def read(tensors: Mapping[str, np.ndarray]) -> Imported:
        imported = _read(tensors, names, epsilon)
        return imported._replace(notes=(*imported.notes, *notes), doubts=doubts)

    return Importer(origin, names.match, read)


def names_by_order(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Gives tensors of another I3D the names of pytorch-i3d, by the order of its modules.

    The order alone proves nothing: the caller must compare the tensors with known ones.

    Args:
      tensors: as PyTorch's modules have them, by any names of modules.

    Returns:
      the tensors by their new names; None if there are not as many modules as I3D has.
    """
    kernels = [name for name, value in tensors.items() if value.ndim == 5]
    means = [name for name in tensors if name.endswith("running_mean")]
    if len(kernels) != len(MODULES) or len(means) != len(MODULES) - 1:
        return None
    if tensors[kernels[0]].shape[2:] == (1, 1, 1):  # pytorch-i3d has its last layer first.
        kernels = [*kernels[1:], kernels[0]]
    port, renamed = Names(PYTORCH_I3D, "bn"), {}
    for module, kernel in zip(MODULES, kernels, strict=True):
        renamed[f"{port.module(module)}.conv3d.weight"] = tensors[kernel]
    for module, mean in zip(MODULES[:-1], means, strict=True):
        for leaf in "weight", "bias", "running_mean", "running_var":
            value = tensors.get(mean.removesuffix("running_mean") + leaf)
            if value is None and leaf == "weight":
                value = np.ones(tensors[mean].shape, np.float32)
            if value is not None:
                renamed[f"{port.module(module)}.bn.{leaf}"] = value
    bias = tensors.get(kernels[-1].removesuffix("weight") + "bias")
    if bias is not None:
        renamed["logits.conv3d.bias"] = bias
    return renamed


IMPORTERS = (
    _importer("I3D of pytorch-i3d", Names(PYTORCH_I3D, "bn"), 1e-3, doubts=(EPSILON_HERE,)),
    _importer(
        "I3D of kinetics_i3d_pytorch",
        Names(KINETICS_I3D_PYTORCH, "batch3d"),
        1e-5,
        notes=(PADDING,),
        doubts=(EPSILON_THERE,),
    ),
)
