"""I3D as the widely used PyTorch ports write it: the peer of the benchmarks, from the same table as ours.

Conv3d, BatchNorm3d, ReLU; TensorFlow's SAME padding by F.pad before every convolution and pool, as in piergiaj/pytorch-i3d.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from i3d_jax.models import convolution, inception


def padded(x: torch.Tensor, window: tuple[int, ...], strides: tuple[int, ...], value: float = 0.0) -> torch.Tensor:
    pads = convolution.same_pads(tuple(x.shape[2:]), window, strides)
    if not any(map(any, pads)):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, window: tuple[int, ...], strides: tuple[int, ...]):
        super().__init__()
        self.window, self.strides = window, strides
        self.conv = nn.Conv3d(inputs, outputs, window, strides, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(padded(x, self.window, self.strides))), inplace=True)


class Pool(nn.Module):
    def __init__(self, window: tuple[int, ...], strides: tuple[int, ...]):
        super().__init__()
        self.window, self.strides = window, strides

    def forward(self, x):
        # What comes before is a ReLU: zeros never win.
        return F.max_pool3d(padded(x, self.window, self.strides), self.window, self.strides)


class Mixed(nn.Module):
    def __init__(self, inputs: int, channels: tuple[int, ...]):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        one, three = (1, 1, 1), (3, 3, 3)
        self.b0 = Unit(inputs, c0, one, one)
        self.b1a, self.b1b = Unit(inputs, c1a, one, one), Unit(c1a, c1b, three, one)
        self.b2a, self.b2b = Unit(inputs, c2a, one, one), Unit(c2a, c2b, three, one)
        self.pool, self.b3 = Pool(three, one), Unit(inputs, c3, one, one)

    def forward(self, x):
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3(self.pool(x))], 1)


class I3D(nn.Module):
    """Video [B, 3, T, H, W] -> logits [B, K]."""

    def __init__(self, num_classes: int = 400, dropout: float = 0.5):
        super().__init__()
        self.body, channels = nn.Sequential(), 3
        for kind, name, *spec in inception.LAYERS:
            if kind == "conv":
                features, window, strides = spec
                layer = Unit(channels, features, window, strides)
                channels = features
            elif kind == "pool":
                layer = Pool(*spec)
            else:
                layer = Mixed(channels, tuple(spec))
                channels = spec[0] + spec[2] + spec[4] + spec[5]
            self.body.add_module(name, layer)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Conv3d(channels, num_classes, 1)

    def forward(self, video):
        x = self.body(video)
        x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        return self.logits(self.dropout(x)).mean((2, 3, 4))


def load(model: I3D, variables: dict) -> I3D:
    """Gives it our variables."""

    def tensor(x):
        return torch.tensor(np.array(x, np.float32))

    def unit(module: Unit, params: dict, stats: dict) -> None:
        module.conv.weight.copy_(tensor(params["conv"]["kernel"]).permute(4, 3, 0, 1, 2))
        module.bn.weight.fill_(1.0)
        module.bn.bias.copy_(tensor(params["bn"]["bias"]))
        module.bn.running_mean.copy_(tensor(stats["bn"]["mean"]))
        module.bn.running_var.copy_(tensor(stats["bn"]["var"]))

    params, stats = variables["params"], variables["batch_stats"]
    with torch.no_grad():
        for name, layer in model.body.named_children():
            if isinstance(layer, Unit):
                unit(layer, params[name], stats[name])
            elif isinstance(layer, Mixed):
                for branch in params[name]:
                    unit(getattr(layer, branch), params[name][branch], stats[name][branch])
        model.logits.weight.copy_(tensor(params["Logits"]["kernel"]).permute(4, 3, 0, 1, 2))
        model.logits.bias.copy_(tensor(params["Logits"]["bias"]))
    return model
