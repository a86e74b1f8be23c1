"""Compares ResNet with PyTorch's: outputs, gradients and batch norm in training.

    python experiments/benchmarks/resnet_parity.py
    python experiments/benchmarks/resnet_parity.py --full

The other side is `torch_resnet.py`. Weights, statistics and clips are noise. They go from PyTorch
to ours through `weights.resnet_names`. Prints a Markdown table: the greatest difference of logits,
relative to the greatest, in float32 and in float64; and in float64 that of the gradients of all
parameters and of the clip in training, relative to the greatest of each. --full takes whole
networks and clips, forward only, in float32. --golden prints the numbers of PyTorch's that
`tests/models/test_resnet.py` has.
"""

import functools
import math
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_resnet

from i3d_jax import models
from i3d_jax.inflate import named_leaves
from i3d_jax.weights import metadata, resnet_names

# Our name, options, and the shape of the clips.
SMALL: tuple[tuple[str, dict, tuple[int, ...]], ...] = (
    ("resnet50", {}, (2, 65, 58)),
    ("resnet50", {}, (2, 64, 64)),
    ("i3d_r50", {}, (2, 8, 64, 64)),
    ("i3d_r50", {"input_scaling": "kinetics", "pool_window": 2}, (2, 6, 96, 85)),
    ("i3d_r50", {"stem": "32x2"}, (2, 16, 64, 64)),
    ("i3d_r50", {"stem": "32x2_unpadded"}, (2, 16, 64, 64)),
    ("i3d_r50", {"non_local": "softmax", "depth": 26}, (2, 4, 64, 64)),
    ("i3d_r50", {"non_local": "dot_product", "depth": 26}, (2, 4, 64, 64)),
)
FULL = (
    ("resnet50", {}, (4, 224, 224)),
    ("i3d_r50", {"input_scaling": "kinetics", "pool_window": 7}, (1, 8, 256, 256)),
    ("i3d_r50", {"stem": "32x2"}, (1, 32, 224, 224)),
    ("i3d_r50", {"stem": "32x2_unpadded"}, (1, 32, 224, 224)),
    ("i3d_r50", {"non_local": "softmax"}, (1, 8, 224, 224)),
)
CLASSES = 7


def theirs(name: str, options: dict, seed: int = 0) -> torch.nn.Module:
    """A network of PyTorch with random weights and statistics, in float64."""
    torch.manual_seed(seed)
    made = torch_resnet.ImageResNet if name == "resnet50" else torch_resnet.VideoResNet
    module = made(CLASSES, **options).double()
    for key, value in module.state_dict().items():
        if "running_var" in key or ("bn" in key and key.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif "running_mean" in key or key.endswith("bias"):
            # Few digits, so that folding the biases of non-local blocks rounds nothing.
            value.uniform_(-0.5, 0.5).mul_(1024).round_().div_(1024)
    return module


def ours(name: str, options: dict, module: torch.nn.Module, dtype: str) -> tuple[Any, Any]:
    """Our network, and the variables of PyTorch's in it."""
    network = models.build(name, num_classes=CLASSES, dtype=dtype, dropout=0.0, **options)
    info = metadata.Info(name, ("x",) * CLASSES, options)
    names = resnet_names.TORCHVISION if name == "resnet50" else resnet_names.SLOWFAST
    tensors = {
        key: value.detach().numpy()
        for key, value in module.state_dict().items()
        if "num_batches" not in key
    }
    shapes = metadata.variable_shapes(info)
    found = resnet_names.to_variables(tensors, names, shapes)
    # `to_variables` gives float32, so PyTorch takes those, too.
    tree: dict = {}
    for path, value in found.items():
        *parents, leaf = path.split("/")
        inner = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, tree)
        inner[leaf] = jnp.asarray(value, dtype)
    for value in module.state_dict().values():
        if value.dtype == torch.float64:
            value.copy_(value.float().double())
    return network, tree


def difference(found: Any, wanted: Any) -> float:
    """The greatest difference, relative to the greatest wanted value."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def to_torch(clip: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(clip, -1, 1).copy())


def forward(name: str, options: dict, clip: np.ndarray, dtype: str) -> float:
    """The difference of logits at test."""
    module = theirs(name, options)
    network, variables = ours(name, options, module, dtype)
    with torch.no_grad():
        wanted = module.to(getattr(torch, dtype)).eval()(to_torch(clip.astype(dtype))).numpy()
    apply = jax.jit(network.apply, compiler_options=models.compiler_options())
    return difference(apply(variables, clip.astype(dtype)), wanted)


def training(name: str, options: dict, clip: np.ndarray) -> tuple[float, float, float]:
    """Differences of logits, of the worst gradient, and of the worst mean, in training."""
    module = theirs(name, options)
    network, variables = ours(name, options, module, "float64")
    weights = np.random.default_rng(2).normal(size=(len(clip), CLASSES))
    x = to_torch(clip).requires_grad_()
    module.train()
    logits = module(x)
    (logits * torch.from_numpy(weights)).sum().backward()

    def loss(params, clip):
        found, changed = network.apply(
            variables | {"params": params}, clip, train=True, mutable=["batch_stats"]
        )
        return (found * weights).sum(), (found, changed)

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (of_params, of_clip), (found, changed) = gradient(variables["params"], clip)
    names = resnet_names.TORCHVISION if name == "resnet50" else resnet_names.SLOWFAST
    params = dict(module.named_parameters())
    # Biases that change nothing, such as that of phi before a softmax, have gradients of rounding
    # errors only.
    least = 1e-6 * max(np.abs(each.grad.numpy()).max() for each in params.values())
    worst = difference(of_clip, np.moveaxis(x.grad.numpy(), 1, -1))
    for path, value in leaves({"params": of_params}).items():
        wanted = params[names.tensor(path)].grad.numpy()
        value = np.moveaxis(value, (-1, -2), (0, 1)) if path.endswith("kernel") else value
        wanted = wanted.reshape(value.shape)
        scale = max(np.abs(wanted).max(), least)
        worst = max(worst, float(np.abs(value - wanted).max() / scale))
    stats = dict(module.named_buffers())
    means = max(
        difference(value, stats[names.tensor(path)].numpy())
        for path, value in leaves(changed).items()
        if path.endswith("mean") and "nonlocal" not in path
    )
    return difference(found, logits.detach().numpy()), worst, means


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in named_leaves(tree).items()}


def noise(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Variables that do not depend on PyTorch, as `tests/models/test_resnet.py` makes them."""
    rng, found = np.random.default_rng(0), {}
    for path in sorted(shapes):
        shape = shapes[path]
        if path.endswith("kernel"):
            found[path] = rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]))
        else:
            found[path] = rng.uniform(0.5, 1.5, shape) - (
                0 if path.endswith(("scale", "var")) else 1
            )
    return {path: np.float32(value) for path, value in found.items()}


def golden(name: str, options: dict, shape: tuple[int, ...]) -> None:
    """Prints logits of PyTorch's network at test, in float64."""
    info = metadata.Info(name, ("x",) * CLASSES, options)
    module = theirs(name, options)
    torch_resnet.load(module, noise(metadata.variable_shapes(info)))
    clip = np.random.default_rng(1).uniform(-1, 1, (*shape, 3))
    with torch.no_grad():
        logits = module.eval()(to_torch(np.float32(clip).astype(np.float64))).numpy()
    print(f"{name} {options} {shape}\n{np.array2string(logits, precision=7, separator=', ')}")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="whole networks, forward only")
    parser.add_argument("--golden", action="store_true", help="numbers for the tests")
    flags = parser.parse_args()
    if flags.golden:
        for name, options, shape in SMALL[1:-2]:
            golden(name, {"width": 0.125, "depth": 14} | options, shape)
        return
    jax.config.update("jax_enable_x64", True)
    heads = ["", "logits, float32"]
    heads += [] if flags.full else ["logits, float64", "in training", "gradients", "means"]
    rows, result = {}, {}
    for name, options, shape in FULL if flags.full else SMALL:
        if not flags.full:
            options = {"width": 0.125, "depth": 14} | options
        clip = np.random.default_rng(1).uniform(-1, 1, (*shape, 3))
        figures = [forward(name, options, clip, "float32")]
        if not flags.full:
            figures += [forward(name, options, clip, "float64"), *training(name, options, clip)]
        what = f"{name} {options} {'x'.join(map(str, shape))}"
        rows[what], result[what] = [f"{each:.1e}" for each in figures], figures
        print(what, *rows[what], flush=True)
    about = harness.about("jax", "torch")
    harness.report(harness.table(rows, heads), result, about, flags.json)


if __name__ == "__main__":
    main()
