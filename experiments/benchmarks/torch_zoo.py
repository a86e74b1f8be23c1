"""The networks in PyTorch, which the benchmarks compare with, from the same tables as ours.

ResNet is in `torch_resnet.py`. The others are written as PyTorch ports usually are: convolution,
batch norm, ReLU, and TensorFlow's SAME padding by F.pad before every convolution and pool, as in
piergiaj/pytorch-i3d. Modules have the names of our variables, so that `load` can copy these. Videos
are [B, C, T, H, W].
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_resnet
from torch import nn

from i3d_jax.models import c3d, inception

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {0: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {2: F.max_pool2d, 3: F.max_pool3d}


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True  # cuDNN takes its fastest convolution, as with XLA.


def finish() -> None:
    """Waits until the device has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def padded(x: torch.Tensor, window: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """TensorFlow's SAME padding with zeros, in plain Python, which torch.compile can trace.

    Args:
      x: [B, C, ...].
      window: of the following convolution or pool.
      strides: of the following convolution or pool.
    """
    pads: list[int] = []
    for size, taps, stride in zip(x.shape[2:], window, strides):
        total = max((-(-size // stride) - 1) * stride + taps - size, 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad takes the last axis first.
    return F.pad(x, pads) if any(pads) else x


class Unit(nn.Module):
    """Convolution, or without a window a dense layer, then batch norm and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, window: tuple[int, ...] = (), strides: tuple[int, ...] = ()
    ):
        super().__init__()
        self.window, self.strides = window, strides
        if window:
            self.conv = CONVS[len(window)](inputs, outputs, window, strides, bias=False)
        else:
            self.conv = nn.Linear(inputs, outputs, bias=False)
        self.bn = NORMS[len(window)](outputs, eps=1e-3, momentum=0.001)

    def forward(self, x):
        x = padded(x, self.window, self.strides) if self.window else x
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Pool(nn.Module):
    """Max-pool with SAME padding."""

    def __init__(self, window: tuple[int, ...], strides: tuple[int, ...]):
        super().__init__()
        self.window, self.strides = window, strides

    def forward(self, x):
        # The input comes from a ReLU, so padded zeros never change the maximum.
        x = padded(x, self.window, self.strides)
        return POOLS[len(self.window)](x, self.window, self.strides)


class Mixed(nn.Module):
    """Inception's block of four branches."""

    def __init__(self, inputs: int, channels: tuple[int, ...], dims: int):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        one, three = (1,) * dims, (3,) * dims
        self.b0 = Unit(inputs, c0, one, one)
        self.b1a, self.b1b = Unit(inputs, c1a, one, one), Unit(c1a, c1b, three, one)
        self.b2a, self.b2b = Unit(inputs, c2a, one, one), Unit(c2a, c2b, three, one)
        self.pool, self.b3 = Pool(three, one), Unit(inputs, c3, one, one)

    def forward(self, x):
        b0, b1, b2 = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x))
        return torch.cat([b0, b1, b2, self.b3(self.pool(x))], 1)


class Body(nn.Module):
    """The layers of a table.

    Args:
      table: as `inception.LAYERS`.
      channels: of the input.
      dims: dimensions; 2 drops time.
    """

    def __init__(self, table: tuple[tuple, ...], channels: int, dims: int):
        super().__init__()
        self.table = [name for _, name, *_ in table]
        for kind, name, *spec in table:
            if kind == "conv":
                features, window, strides = spec
                layer = Unit(channels, features, window[-dims:], strides[-dims:])
                channels = features
            elif kind == "pool":
                layer = Pool(*(each[-dims:] for each in spec))
            else:
                layer = Mixed(channels, tuple(spec), dims)
                channels = spec[0] + spec[2] + spec[4] + spec[5]
            self.add_module(name, layer)
        self.channels = channels

    def walk(self, x):
        for name in self.table:
            x = getattr(self, name)(x)
        return x


class Inception(Body):
    """Inception-v1 in 2 dimensions, I3D in 3. Returns logits [B, K].

    Args:
      num_classes: None: returns features [B, T, C].
      channels: of the input.
      dims: dimensions.
      average: False: returns the activations before the average pool.
    """

    def __init__(
        self, num_classes: int | None, channels: int = 3, dims: int = 3, average: bool = True
    ):
        super().__init__(inception.LAYERS, channels, dims)
        self.dims, self.average = dims, average
        self.dropout = nn.Dropout(0.5)
        self.Logits = None if num_classes is None else CONVS[dims](self.channels, num_classes, 1)

    def forward(self, video):
        batch = len(video)
        if self.dims == 2:
            video = video.transpose(1, 2).flatten(0, 1)
            video = video.contiguous(memory_format=torch.channels_last) if self.last else video
        x = self.walk(video)
        if not self.average:
            return x.unflatten(0, (batch, -1)).transpose(1, 2) if self.dims == 2 else x
        if self.dims == 3:
            x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        else:
            x = x.mean((2, 3), keepdim=True)
        if self.Logits is None:
            return x.flatten(1).unflatten(0, (batch, -1))
        x = self.Logits(self.dropout(x)).flatten(2).mean(2)
        return x.unflatten(0, (batch, -1)).mean(1) if self.dims == 2 else x

    @property
    def last(self) -> bool:
        """Whether weights are channels-last."""
        return self.Conv_1a.conv.weight.is_contiguous(memory_format=torch.channels_last)


class C3D(Body):
    """3D-ConvNet. Returns logits [B, K]."""

    def __init__(self, num_classes: int, size: int = 112):
        super().__init__(c3d.LAYERS, 3, 3)
        pools = sum(kind == "pool" for kind, *_ in c3d.LAYERS)
        side = -(-size // 2**pools)
        for name, features in c3d.DENSE:
            inputs = self.channels * side**2 if name == "Dense_6" else self.channels
            self.add_module(name, Unit(inputs, features))
            self.channels = features
        self.dropout = nn.Dropout(0.5)
        self.Logits = nn.Linear(self.channels, num_classes)

    def forward(self, video):
        x = self.walk(video).permute(0, 2, 3, 4, 1).flatten(1)  # In our order.
        x = self.Dense_7(self.dropout(self.Dense_6(x)))
        return self.Logits(self.dropout(x))


class ConvNetLSTM(nn.Module):
    """ConvNet+LSTM. Returns logits [B, K] of the last step; in training [B, K, T] of all steps."""

    def __init__(self, num_classes: int, steps: int = 25, hidden: int = 512):
        super().__init__()
        self.inception = Inception(None, dims=2)
        self.lstm = NormLSTM(self.inception.channels, hidden, steps)
        self.dropout = nn.Dropout(0.5)
        self.Logits = nn.Linear(hidden, num_classes)

    def forward(self, video):
        states = self.lstm(self.inception(video))
        logits = self.Logits(self.dropout(states))
        return logits.transpose(1, 2) if self.training else logits[:, -1]


class NormLSTM(nn.Module):
    """LSTM with recurrent batch norm. Maps [B, T, C] to its states [B, T, D]."""

    def __init__(self, channels: int, hidden: int, steps: int):
        super().__init__()
        sizes = {"input": 4 * hidden, "hidden": 4 * hidden, "cell": hidden}
        shapes = {
            "input_kernel": (channels, 4 * hidden),
            "hidden_kernel": (hidden, 4 * hidden),
            "bias": (4 * hidden,),
        }
        shapes |= {f"{name}_scale": (size,) for name, size in sizes.items()} | {
            "cell_bias": (hidden,)
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        for name, size in sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(steps, size))
            self.register_buffer(f"{name}_var", torch.ones(steps, size))

    def forward(self, x):
        inputs = x @ self.input_kernel
        cell = state = x.new_zeros(len(x), len(self.hidden_kernel))
        states = []
        for step in range(x.shape[1]):
            slot = min(step, len(self.cell_mean) - 1)

            def norm(name, values, bias=None, slot=slot):
                mean, var = getattr(self, f"{name}_mean")[slot], getattr(self, f"{name}_var")[slot]
                scale = getattr(self, f"{name}_scale")
                return F.batch_norm(values, mean, var, scale, bias, self.training, 0.001, 1e-5)

            total = (
                norm("hidden", state @ self.hidden_kernel)
                + norm("input", inputs[:, step])
                + self.bias
            )
            forget, take, give, new = total.chunk(4, -1)
            cell = forget.sigmoid() * cell + take.sigmoid() * new.tanh()
            state = give.sigmoid() * norm("cell", cell, self.cell_bias).tanh()
            states.append(state)
        return torch.stack(states, 1)


class TwoStream(nn.Module):
    """Two streams. Returns logits [B, K]: in 2 dimensions their average, in 3 their sum.

    In 2 dimensions it takes rgb [B, 3, S, H, W] and flow [B, 2, S * snippet, H, W]; in 3 dimensions
    the videos have equal lengths.
    """

    def __init__(self, num_classes: int, dims: int = 2, snippet: int = 10):
        super().__init__()
        self.dims, self.snippet = dims, snippet
        self.rgb = Inception(num_classes, 3, dims)
        self.flow = Inception(num_classes, 2 * snippet if dims == 2 else 2, dims)

    def forward(self, rgb, flow):
        flow = stacked(flow, self.snippet) if self.dims == 2 else flow
        total = self.rgb(rgb) + self.flow(flow)
        return total / 2 if self.dims == 2 else total


class FusedTwoStream(nn.Module):
    """Two streams, fused by 3-D layers. Takes what `TwoStream` takes in 2 dimensions."""

    def __init__(self, num_classes: int, snippet: int = 10):
        super().__init__()
        self.snippet = snippet
        self.rgb = Inception(None, 3, 2, average=False)
        self.flow = Inception(None, 2 * snippet, 2, average=False)
        three, one = (3, 3, 3), (1, 1, 1)
        self.Conv_6a = Unit(2 * self.rgb.channels, 512, three, one)
        self.pool = Pool(three, one)
        self.dropout = nn.Dropout(0.5)
        self.Logits = nn.Linear(512, num_classes)

    def forward(self, rgb, flow):
        x = torch.cat([self.rgb(rgb), self.flow(stacked(flow, self.snippet))], 1)
        x = self.pool(self.Conv_6a(x)).mean((3, 4)).transpose(1, 2)
        return self.Logits(self.dropout(x)).mean(1)


def stacked(flow: torch.Tensor, snippet: int) -> torch.Tensor:
    """Puts the frames of a snippet into channels: u and v of each frame in turn.

    [B, 2, S * snippet, H, W] -> [B, 2 * snippet, S, H, W].
    """
    flow = flow.unflatten(2, (-1, snippet))
    return flow.permute(0, 3, 1, 2, 4, 5).flatten(1, 2)


ZOO = {
    "inception": lambda classes: Inception(classes, dims=2),
    "convnet_lstm": ConvNetLSTM,
    "two_stream": TwoStream,
    "fused_two_stream": FusedTwoStream,
    "i3d": Inception,
    "two_stream_i3d": lambda classes: TwoStream(classes, dims=3),
    "resnet50": torch_resnet.ImageResNet,
    "i3d_r50": torch_resnet.VideoResNet,
}


def has_bfloat16() -> bool:
    """Whether the hardware has bfloat16. A CPU without it emulates it, far slower than float32."""
    return DEVICE == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def build(name: str, num_classes: int, variables: Any, size: int) -> nn.Module:
    """A network with our variables.

    Args:
      name: of the network.
      num_classes: number of classes.
      variables: ours.
      size: pixels of its clips.
    """
    model = C3D(num_classes, size) if name == "c3d" else ZOO[name](num_classes)
    if name in ("resnet50", "i3d_r50"):
        torch_resnet.load(model, variables)
        return model
    with torch.no_grad():
        load(model, variables["params"], variables["batch_stats"])
    return model


def load(module: nn.Module, params: dict, stats: dict) -> None:
    """Copies our variables into a module.

    Args:
      module: changed in place.
      params: our "params".
      stats: our "batch_stats".
    """

    def tensor(x):
        x = torch.tensor(np.array(x, np.float32))
        return x.movedim((-1, -2), (0, 1)) if x.ndim > 1 else x

    if isinstance(module, Unit):
        module.conv.weight.copy_(tensor(params["conv"]["kernel"]))
        module.bn.weight.fill_(1.0)
        module.bn.bias.copy_(tensor(params["bn"]["bias"]))
        module.bn.running_mean.copy_(tensor(stats["bn"]["mean"]))
        module.bn.running_var.copy_(tensor(stats["bn"]["var"]))
    elif isinstance(module, NormLSTM):
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            value.copy_(torch.tensor(np.array((params | stats)[name])))
    else:
        for name, child in module.named_children():
            if name == "Logits":
                kernel = tensor(params[name]["kernel"])
                child.weight.copy_(kernel.reshape(child.weight.shape))
                child.bias.copy_(tensor(params[name]["bias"]))
            elif name in params:
                load(child, params[name], stats[name])
