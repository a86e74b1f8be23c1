"""ResNet for images and videos in PyTorch, with the names of torchvision and of SlowFast.

It is written from those projects' descriptions, with their explicit padding, and shares no table
with ours. `load` takes our variables. Videos are [B, C, T, H, W].
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from i3d_jax.inflate import named_leaves
from i3d_jax.weights import resnet_names

BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
MEAN_AND_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}


def normalized(x: torch.Tensor, scaling: str) -> torch.Tensor:
    """What ports feed their networks: RGB from [-1, 1] to [0, 1], less the mean, by the std."""
    mean, std = (
        torch.tensor(each, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 2))
        for each in MEAN_AND_STD[scaling]
    )
    return ((x + 1) / 2 - mean) / std


class ImageBlock(nn.Module):
    """torchvision's Bottleneck."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ImageResNet(nn.Module):
    """torchvision's ResNet on images [B, C, H, W], or on every frame of videos."""

    def __init__(self, num_classes: int, width: float = 1.0, depth: int = 50, **options: Any):
        super().__init__()
        self.options = {"input_scaling": "imagenet"} | options
        sizes = [round(64 * 2**stage * width) for stage in range(4)]
        channels = round(64 * width)
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, (inner, blocks) in enumerate(zip(sizes, BLOCKS[depth], strict=True)):
            outputs, made = round(256 * 2**stage * width), []
            for number in range(blocks):
                made.append(ImageBlock(channels, inner, outputs, 2 if stage and not number else 1))
                channels = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, video):
        x = video
        if video.ndim == 5:
            x = video.transpose(1, 2).flatten(0, 1)
            if self.conv1.weight.is_contiguous(memory_format=torch.channels_last):
                x = x.contiguous(memory_format=torch.channels_last)
        x = normalized(x, self.options["input_scaling"])
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.fc(x.mean((2, 3)))
        return x.unflatten(0, (len(video), -1)).mean(1) if video.ndim == 5 else x


class Branch(nn.Module):
    """SlowFast's BottleneckTransform: the window in time is in the first convolution."""

    def __init__(self, inputs: int, inner: int, outputs: int, taps: int, stride: int):
        super().__init__()
        self.a = nn.Conv3d(inputs, inner, (taps, 1, 1), padding=(taps // 2, 0, 0), bias=False)
        self.a_bn = nn.BatchNorm3d(inner)
        self.b = nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.b_bn = nn.BatchNorm3d(inner)
        self.c = nn.Conv3d(inner, outputs, 1, bias=False)
        self.c_bn = nn.BatchNorm3d(outputs)

    def forward(self, x):
        x = F.relu(self.a_bn(self.a(x)))
        return self.c_bn(self.c(F.relu(self.b_bn(self.b(x)))))


class VideoBlock(nn.Module):
    """SlowFast's ResBlock."""

    def __init__(self, inputs: int, inner: int, outputs: int, taps: int, stride: int):
        super().__init__()
        self.projects = stride > 1 or inputs != outputs
        if self.projects:
            self.branch1 = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(outputs)
        self.branch2 = Branch(inputs, inner, outputs, taps, stride)

    def forward(self, x):
        shortcut = self.branch1_bn(self.branch1(x)) if self.projects else x
        return F.relu(shortcut + self.branch2(x))


class NonLocal(nn.Module):
    """SlowFast's Nonlocal, with its pool of 1x2x2."""

    def __init__(self, channels: int, kind: str):
        super().__init__()
        self.kind, inner = kind, channels // 2
        self.conv_theta = nn.Conv3d(channels, inner, 1)
        self.conv_phi = nn.Conv3d(channels, inner, 1)
        self.conv_g = nn.Conv3d(channels, inner, 1)
        self.conv_out = nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels)

    def forward(self, x):
        fewer = F.max_pool3d(x, (1, 2, 2), (1, 2, 2))
        theta = self.conv_theta(x).flatten(2)
        phi, g = self.conv_phi(fewer).flatten(2), self.conv_g(fewer).flatten(2)
        weights = theta.transpose(1, 2) @ phi
        if self.kind == "softmax":
            weights = torch.softmax(weights * theta.shape[1] ** -0.5, 2)
        else:
            weights = weights / weights.shape[2]
        y = (g @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.bn(self.conv_out(y))


class VideoStage(nn.Module):
    """SlowFast's ResStage of one pathway."""

    def __init__(self, inputs, inner, outputs, taps, stride, non_local):
        super().__init__()
        self.names = []
        for number, each in enumerate(taps):
            self.add(
                f"pathway0_res{number}",
                VideoBlock(inputs, inner, outputs, each, 1 if number else stride),
            )
            inputs = outputs
            if non_local != "none" and number % 2:
                self.add(f"pathway0_nonlocal{number}", NonLocal(outputs, non_local))

    def add(self, name, module):
        self.add_module(name, module)
        self.names.append(name)

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class VideoResNet(nn.Module):
    """I3D-ResNet, with the stems of SlowFast ("8x8"), mmaction2 and video-nonlocal-net."""

    def __init__(self, num_classes: int, width: float = 1.0, depth: int = 50, **options: Any):
        super().__init__()
        defaults = {"stem": "8x8", "input_scaling": "imagenet", "non_local": "none"}
        self.options = defaults | {"pool_window": 0} | options
        channels, stride = round(64 * width), 1 if self.options["stem"] == "8x8" else 2
        self.s1 = nn.Module()
        self.s1.pathway0_stem = nn.Module()
        self.s1.pathway0_stem.conv = nn.Conv3d(
            3, channels, (5, 7, 7), (stride, 2, 2), (2, 3, 3), bias=False
        )
        self.s1.pathway0_stem.bn = nn.BatchNorm3d(channels)
        patterns = (3, 3, 3, 3, 3, 3), (3, 1) * 3, (3, 1) * 3, (1, 3) * 3
        for stage, (pattern, blocks) in enumerate(zip(patterns, BLOCKS[depth], strict=True)):
            inner, outputs = (round(size * 2**stage * width) for size in (64, 256))
            non_local = self.options["non_local"] if stage in (1, 2) else "none"
            made = VideoStage(
                channels, inner, outputs, pattern[:blocks], 2 if stage else 1, non_local
            )
            self.add_module(f"s{stage + 2}", made)
            channels = outputs
        self.head = nn.Module()
        self.head.projection = nn.Linear(channels, num_classes)

    def forward(self, video):
        stem = self.s1.pathway0_stem
        x = normalized(video, self.options["input_scaling"])
        x = F.relu(stem.bn(stem.conv(x)))
        if self.options["stem"] == "8x8":
            x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        elif self.options["stem"] == "32x2":
            x = F.max_pool3d(x, (1, 3, 3), (2, 2, 2), (0, 1, 1))
        else:
            x = F.max_pool3d(x, (2, 3, 3), (2, 2, 2))
        x = F.max_pool3d(self.s2(x), (2, 1, 1), (2, 1, 1))
        x = self.s5(self.s4(self.s3(x)))
        window = self.options["pool_window"]
        window = (window, window) if window else x.shape[3:]
        x = F.avg_pool3d(x, (x.shape[2], *window), 1).permute(0, 2, 3, 4, 1)
        return self.head.projection(x).mean((1, 2, 3))


def load(module: nn.Module, variables: Any) -> None:
    """Copies our variables into a network, by the names that our importers know.

    Args:
      module: an ImageResNet or a VideoResNet; changed in place.
      variables: ours.
    """
    names = resnet_names.TORCHVISION if isinstance(module, ImageResNet) else resnet_names.SLOWFAST
    state = module.state_dict()
    with torch.no_grad():
        for path, value in named_leaves(variables).items():
            value = torch.from_numpy(np.array(value))
            value = value.movedim((-1, -2), (0, 1)) if path.endswith("kernel") else value
            target = state.pop(names.tensor(path))
            target.copy_(value.reshape(target.shape))
    left = [name for name in state if "num_batches" not in name and "conv_out.bias" not in name]
    assert not left, left
