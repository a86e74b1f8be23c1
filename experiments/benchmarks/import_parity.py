"""Weights of PyTorch ports of I3D: our logits against PyTorch's.

    python experiments/benchmarks/import_parity.py [--data FOLDER]

The ports are written out here, with random weights and trained scales of batch norm. They are saved
by PyTorch and read by us. With --data, the folder of `I3D_JAX_TEST_DATA`, it also measures on the
released rgb_scratch and its sample clip what the ports' epsilon and constant padding change. Prints
Markdown tables. "Relative" is the norm of the difference, divided by the norm of ours.
"""

import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping

import harness
import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from i3d_jax import models, pixels, video, weights
from i3d_jax.weights.importer import with_epsilon

TABLE = (
    ("Conv3d_1a_7x7", 64, 7, 2),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("Conv3d_2b_1x1", 64, 1, 1),
    ("Conv3d_2c_3x3", 192, 3, 1),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("Mixed_3b", 64, 96, 128, 16, 32, 32),
    ("Mixed_3c", 128, 128, 192, 32, 96, 64),
    ("pool", (3, 3, 3), (2, 2, 2)),
    ("Mixed_4b", 192, 96, 208, 16, 48, 64),
    ("Mixed_4c", 160, 112, 224, 24, 64, 64),
    ("Mixed_4d", 128, 128, 256, 24, 64, 64),
    ("Mixed_4e", 112, 144, 288, 32, 64, 64),
    ("Mixed_4f", 256, 160, 320, 32, 128, 128),
    ("pool", (2, 2, 2), (2, 2, 2)),
    ("Mixed_5b", 256, 160, 320, 32, 128, 128),
    ("Mixed_5c", 384, 192, 384, 48, 128, 128),
)
# Which axes are padded by constants, as if sizes were multiples of the stride, and not by size.
PADDING = {"by size": (), "space constant": (1, 2), "constant": (0, 1, 2)}


class Padded(nn.Module):
    """A convolution or max-pool after one of the ports' paddings with zeros."""

    def __init__(self, layer: nn.Module, kernel: tuple, stride: tuple, padding: str):
        super().__init__()
        self.layer, self.kernel, self.stride = [layer], kernel, stride  # No module of its own.
        self.constant = PADDING[padding]

    def forward(self, x):
        pads: list[int] = []
        for axis, (taps, step) in enumerate(zip(self.kernel, self.stride, strict=True)):
            rest = 0 if axis in self.constant else x.shape[2 + axis] % step
            total = max(taps - (rest or step), 0)
            pads = [total // 2, total - total // 2, *pads]  # F.pad takes the last axis first.
        return self.layer[0](F.pad(x, pads))


class Unit(nn.Module):
    """Convolution, batch norm with a scale, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, port: "Port"):
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.padded = Padded(self.conv3d, (kernel,) * 3, (stride,) * 3, port.padding)
        self.norm = port.norm
        setattr(self, port.norm, nn.BatchNorm3d(outputs, eps=port.epsilon))

    def forward(self, x):
        return F.relu(getattr(self, self.norm)(self.padded(x)))


class Last(nn.Module):
    """The last layer."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, classes, 1)

    def forward(self, x):
        return self.conv3d(x)


class Mixed(nn.Module):
    """Four branches, by the names of either port."""

    def __init__(self, inputs: int, channels: list[int], port: "Port"):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        sizes = {
            "b0": (inputs, c0, 1),
            "b1a": (inputs, c1a, 1),
            "b1b": (c1a, c1b, 3),
            "b2a": (inputs, c2a, 1),
            "b2b": (c2a, c2b, 3),
            "b3b": (inputs, c3, 1),
        }
        units = {name: Unit(*each, 1, port) for name, each in sizes.items()}
        pool = port.pool((3, 3, 3), (1, 1, 1))
        if port.lower:
            self.branch_0 = units["b0"]
            self.branch_1 = nn.Sequential(units["b1a"], units["b1b"])
            self.branch_2 = nn.Sequential(units["b2a"], units["b2b"])
            self.branch_3 = nn.Sequential(pool, units["b3b"])
            self.paths = [[self.branch_0], [self.branch_1], [self.branch_2], [self.branch_3]]
        else:
            for name, unit in units.items():
                self.add_module(name, unit)
            names = ["b0"], ["b1a", "b1b"], ["b2a", "b2b"], ["b3b"]
            self.paths = [[units[name] for name in each] for each in names]
            self.paths[3].insert(0, pool)

    def forward(self, x):
        return torch.cat([nn.Sequential(*path)(x) for path in self.paths], 1)


class Port(nn.Module):
    """I3D of pytorch-i3d or, with `lower`, of kinetics_i3d_pytorch; videos are [B, C, T, H, W]."""

    def __init__(
        self,
        lower: bool,
        padding: str,
        epsilon: float,
        width: float = 1,
        classes: int = 400,
        channels: int = 3,
    ):
        super().__init__()
        self.lower, self.padding, self.epsilon = lower, padding, epsilon
        self.norm = "batch3d" if lower else "bn"
        self.steps: list[nn.Module] = []
        for name, *sizes in TABLE:
            if name == "pool":
                self.steps.append(self.pool(*sizes))
                continue
            scaled = [max(1, round(size * width)) for size in sizes]
            if name.startswith("Mixed"):
                made: nn.Module = Mixed(channels, scaled, self)
                channels = scaled[0] + scaled[2] + scaled[4] + scaled[5]
            else:
                made = Unit(channels, scaled[0], sizes[1], sizes[2], self)
                channels = scaled[0]
            self.add_module(name.lower() if lower else name, made)
            self.steps.append(made)
        last = Last(channels, classes)
        self.add_module("conv3d_0c_1x1" if lower else "logits", last)
        self.last = [last]

    def pool(self, kernel: tuple, stride: tuple) -> nn.Module:
        by_size = self.padding == "by size"
        layer = nn.MaxPool3d(kernel, stride, ceil_mode=not by_size)
        return Padded(layer, kernel, stride, self.padding)

    def forward(self, x):
        """Returns the features [B, C] and the logits [B, K], both averaged over time."""
        for step in self.steps:
            x = step(x)
        x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        return x.mean((2, 3, 4)), self.last[0](x).mean((2, 3, 4))


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights by name, drawn in the names' order; `tests/weights/test_importers.py` has the same.

    About as large as in an untrained network. Scales have both signs.
    """
    rng = np.random.RandomState(seed)
    drawn = {}
    for name, shape in sorted(shapes.items()):
        if len(shape) == 5:
            value = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith("var"):
            value = rng.uniform(0.5, 2, shape)
        elif name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape) * rng.choice([1, 1, 1, -1], shape)
        else:
            value = rng.uniform(-0.3, 0.7, shape)
        drawn[name] = value.astype(np.float32)
    return drawn


def of_torch(network: Port, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of a clip [B, T, H, W, C]."""
    with torch.inference_mode():
        found = network.eval()(torch.from_numpy(clip).permute(0, 4, 1, 2, 3).contiguous())
        return found[0].numpy(), found[1].numpy()


def of_ours(variables: dict, info: weights.Info, clip: np.ndarray) -> tuple:
    """Features and logits of a clip [B, T, H, W, C]."""
    network = models.build(info.model, num_classes=len(info.classes), **info.options)
    logits, ends = jax.jit(lambda v, x: network.apply(v, x, endpoints=True))(variables, clip)
    return np.asarray(ends["AvgPool"]).mean((1, 2, 3)), np.asarray(logits)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def with_random_weights(network: Port, seed: int) -> Port:
    shapes = {
        name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim
    }
    drawn = {name: torch.from_numpy(each) for name, each in draw(shapes, seed).items()}
    network.load_state_dict(drawn, strict=False)
    return network


def save(network: Port, path: pathlib.Path, form: str) -> None:
    if form == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Of a module tree of the same names, whose code does not matter.
            torch.jit.save(torch.jit.script(tree(network)), path)
    else:
        state = {f"module.{name}": value for name, value in network.state_dict().items()}
        old = form == "old format"
        torch.save({"epoch": 1, "state_dict": state}, path, _use_new_zipfile_serialization=not old)


def tree(network: nn.Module) -> nn.Module:
    """A network's parameters and buffers in plain modules without code."""
    made = nn.Module()
    for name, value in network.named_parameters(recurse=False):
        made.register_parameter(name, value)
    for name, value in network.named_buffers(recurse=False):
        made.register_buffer(name, value)
    for name, child in network.named_children():
        if child.state_dict():
            made.add_module(name, tree(child))
    return made


# Lower-case names, padding, epsilon, format, frames, height and width.
CASES = (
    (False, "by size", 1e-3, "old format", (9, 224, 224)),
    (False, "by size", 1e-5, "zip", (17, 225, 301)),
    (False, "by size", 1e-3, "TorchScript", (21, 199, 230)),
    (True, "space constant", 1e-3, "zip", (17, 224, 224)),
    (True, "space constant", 1e-5, "old format", (21, 256, 224)),
    (True, "constant", 1e-5, "zip", (16, 224, 224)),
    (True, "constant", 1e-5, "TorchScript", (24, 256, 224)),
)


def parity() -> tuple[str, dict]:
    """Compares logits where the paddings agree."""
    result = {}
    for number, (lower, padding, epsilon, form, size) in enumerate(CASES):
        network = with_random_weights(Port(lower, padding, epsilon), number)
        clip = np.random.RandomState(number).uniform(-1, 1, (1, *size, 3)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "x.pt"
            save(network, path, form)
            variables, info = weights.read(path)
        found = of_ours(variables, with_epsilon(info, epsilon), clip)
        wanted = of_torch(network, clip)
        port = "kinetics_i3d_pytorch" if lower else "pytorch-i3d"
        name = f"{port}, padding {padding}, epsilon {epsilon:g}, {form}"
        result[name] = {
            "size": "x".join(map(str, size)),
            "features": relative(found[0], wanted[0]),
            "logits": relative(found[1], wanted[1]),
        }
    rows = {
        name: [each["size"], f"{each['features']:.1e}", f"{each['logits']:.1e}"]
        for name, each in result.items()
    }
    return harness.table(rows, ["port", "frames, pixels", "features", "logits"]), result


def differences(data: pathlib.Path) -> tuple[str, dict]:
    """What the ports' epsilon and padding change, on the release's clip."""
    release = data / "kinetics-i3d"
    variables, info = weights.read(release / "checkpoints" / "rgb_scratch")
    frames = np.stack(list(video.decode(release / "v_CricketShot_g04_c01_rgb.gif")))
    clip = pixels.to_unit(frames)[None]
    result = {}
    for length in (16, 17, 21, 24, 64):
        part = np.ascontiguousarray(clip[:, :length])
        wanted = of_ours(variables, info, part)
        result[f"{length} frames"] = row = {}
        for title, padding, epsilon in (
            ("epsilon 1e-5", "by size", 1e-5),
            ("constant", "constant", 1e-3),
            ("constant, epsilon 1e-5", "constant", 1e-5),
        ):
            found = of_torch(with_variables(Port(True, padding, epsilon), variables), part)
            row[title] = [relative(*pair) for pair in zip(found, wanted, strict=True)]
    heads = ["", *(f"{title}: features, logits" for title in next(iter(result.values())))]
    rows = {
        name: [f"{100 * one:.2g} %, {100 * other:.2g} %" for one, other in row.values()]
        for name, row in result.items()
    }
    return harness.table(rows, heads), result


def with_variables(network: Port, variables: dict) -> Port:
    """Copies our variables into a port, layer by layer in the table's order."""

    def set_unit(unit, params, statistics):
        norm = getattr(unit, network.norm)
        unit.conv3d.weight.data = torch.tensor(params["conv"]["kernel"]).permute(4, 3, 0, 1, 2)
        norm.bias.data = torch.tensor(params["bn"]["bias"])
        norm.running_mean = torch.tensor(statistics["bn"]["mean"])
        norm.running_var = torch.tensor(statistics["bn"]["var"])

    steps = [each for each in network.steps if not isinstance(each, Padded)]
    layers = [name for name in variables["params"] if name.startswith("Conv_")]
    layers = sorted(layers) + sorted(name for name in variables["params"] if "Mixed" in name)
    for step, layer in zip(steps, layers, strict=True):
        params, statistics = variables["params"][layer], variables["batch_stats"][layer]
        if isinstance(step, Unit):
            set_unit(step, params, statistics)
            continue
        units = [module for module in step.modules() if isinstance(module, Unit)]
        for unit, branch in zip(units, sorted(params), strict=True):
            set_unit(unit, params[branch], statistics[branch])
    last = variables["params"]["Logits"]
    network.last[0].conv3d.weight.data = torch.tensor(last["kernel"]).permute(4, 3, 0, 1, 2)
    network.last[0].conv3d.bias.data = torch.tensor(last["bias"])
    return network


def golden() -> list[float]:
    """Logits of a small port; `tests/weights/test_importers.py` has them."""
    network = with_random_weights(Port(False, "by size", 1e-5, 1 / 32, 5, 2), 0)
    clip = np.random.RandomState(1).uniform(-1, 1, (1, 17, 40, 33, 2)).astype(np.float32)
    return of_torch(network, clip)[1][0].tolist()


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("I3D_JAX_TEST_DATA"))
    flags = parser.parse_args()
    print("golden:", ", ".join(f"{value:.6f}" for value in golden()))
    text, result = parity()
    print(text)
    result = {"parity": result}
    if flags.data is None:
        print("Not measured, since --data is missing: what epsilon and padding change.")
    else:
        text, result["differences"] = differences(flags.data)
    harness.report(text, result, harness.about("jax", "torch"), flags.json)


if __name__ == "__main__":
    main()
