"""Writes a network as ONNX, by a walk along the tables of layers that it is built from.

Convolutions are those of ONNX, with batch norm folded into them; `auto_pad=SAME_UPPER` is
TensorFlow's SAME for every size. Videos are [batch, channels, time, height, width], as is usual in
ONNX. The description is in the model's `metadata_props`, as JSON but for plain text.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from i3d_jax import files
from i3d_jax.export.description import ExportError, Source, describe, has_features, takes_images
from i3d_jax.models import c3d, inception, resnet
from i3d_jax.models.c3d import C3D
from i3d_jax.models.inception import Inception
from i3d_jax.models.network import CHANNELS, Network
from i3d_jax.models.resnet import ResNet

OPSET, IR_VERSION = 18, 8  # Of ONNX 1.13, of December 2022.
LAYOUT = "batch channels time height width"
LOGITS, FEATURES = "logits", "features"


def write(path: pathlib.Path, source: Source) -> dict[str, Any]:
    """Writes a network to a file, atomically; returns its description.

    Args:
      path: the file.
      source: the network.

    Raises:
      ExportError: this network cannot be written as ONNX.
      OSError: the file cannot be written.
    """
    about = describe(source, LAYOUT)
    data = model(source, about).SerializeToString()
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return about


def model(source: Source, about: Mapping[str, Any]) -> onnx.ModelProto:
    """The ONNX model of a network, which `onnx.checker` has checked.

    Args:
      source: the network.
      about: its description.

    Raises:
      ExportError: as `write`.
    """
    walk = _Walk(source.network, source.variables)
    ((name, described),) = _single(about["inputs"], source).items()
    network = source.network
    if isinstance(network, Inception):
        _inception(walk, name, network)
    elif isinstance(network, ResNet):
        _resnet(walk, name, network, described["shape"][1])
    elif isinstance(network, C3D):
        _c3d(walk, name, described["shape"])
    else:
        raise ExportError(f"{source.info.model}: is not written as ONNX; try --to stablehlo")
    outputs = {LOGITS: ["batch", len(source.info.classes)]}
    if has_features(network):
        outputs[FEATURES] = ["batch", *([] if takes_images(network) else ["steps"]), walk.width]
    graph = helper.make_graph(
        walk.nodes,
        source.info.model,
        [_value(name, described["shape"])],
        [_value(each, shape) for each, shape in outputs.items()],
        walk.constants,
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="i3d_jax",
        producer_version=about["made_by"].split()[-1],
    )
    helper.set_model_props(
        made,
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in about.items()
        },
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _single(inputs: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
    if len(inputs) > 1:
        raise ExportError(
            f"{source.info.model}: networks of two streams are not written as ONNX; export each "
            "stream's network, or try --to stablehlo"
        )
    return inputs


def _value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


class _Walk:
    """A graph that grows as a walk along a table adds layers.

    Attributes:
      nodes: of the graph so far.
      constants: its arrays.
      width: channels of the features.
    """

    def __init__(self, network: Network, variables: Mapping[str, Any]):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.width = 0
        self._epsilon = network.norm_epsilon
        self._params, self._stats = variables["params"], variables.get("batch_stats", {})

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns its output, which has the node's name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Adds an array, such as a kernel; returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def conv_bn(
        self, path: str, x: str, strides: tuple[int, ...], pads: str = "same", relu: bool = True
    ) -> str:
        """Adds a convolution with its batch norm folded in, and ReLU; a `layers.ConvBN`.

        Args:
          path: of its variables, with "/".
          x: the input.
          strides: one per axis of the window.
          pads: as in `padding.pads_of`.
          relu: whether ReLU follows.
        """
        kernel, shift = self.folded(path)
        self.convolution(f"{path}/conv", x, kernel, shift, strides, pads)
        return self.node("Relu", f"{path}/relu", f"{path}/conv") if relu else f"{path}/conv"

    def folded(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """The kernel and bias of a layer with its batch norm."""
        params, stats = _at(self._params, path), _at(self._stats, path)["bn"]
        scale = 1 / np.sqrt(np.asarray(stats["var"], np.float64) + self._epsilon)
        if "scale" in params["bn"]:
            scale = scale * params["bn"]["scale"]
        shift = params["bn"]["bias"] - stats["mean"] * scale
        return params["conv"]["kernel"] * scale, shift  # Output channels are the last axis.

    def plain_conv(self, path: str, x: str, name: str | None = None) -> str:
        """Adds a convolution with a window of 1 and a bias."""
        params = _at(self._params, path)
        kernel = np.asarray(params["kernel"])
        ones = (1,) * (kernel.ndim - 2)
        return self.convolution(name or path, x, kernel, params["bias"], ones, "valid")

    def convolution(
        self, name: str, x: str, kernel: Any, bias: Any, strides: tuple[int, ...], pads: str
    ) -> str:
        """Adds a convolution.

        Args:
          name: of the node.
          x: the input.
          kernel: [*window, I, O].
          bias: [O].
          strides: one per axis of the window.
          pads: as in `padding.pads_of`.
        """
        kernel = np.asarray(kernel)
        window = kernel.shape[:-2]
        weight = np.moveaxis(kernel, (-1, -2), (0, 1)).astype(np.float32)
        return self.node(
            "Conv",
            name,
            x,
            self.constant(f"{name}/weight", weight),
            self.constant(f"{name}/bias", np.asarray(bias, np.float32)),
            kernel_shape=window,
            strides=strides,
            **_pads(window, pads),
        )

    def inputs_of(self, path: str) -> int:
        """Input channels of a convolution."""
        return _at(self._params, path)["kernel"].shape[-2]

    def max_pool(
        self, name: str, x: str, window: tuple[int, ...], strides: tuple[int, ...], pads: str
    ) -> str:
        return self.node(
            "MaxPool",
            name,
            x,
            kernel_shape=window,
            strides=strides,
            **_pads(window, pads),
        )

    def dense(self, name: str, x: str, kernel: Any, bias: Any) -> str:
        """Adds a dense layer, of a kernel [I, O] and a bias [O]."""
        arrays = {"kernel": kernel, "bias": bias}
        names = [
            self.constant(f"{name}/{each}", np.asarray(value, np.float32))
            for each, value in arrays.items()
        ]
        return self.node("Gemm", name, x, *names)

    def last_layer(self) -> tuple[Any, Any]:
        """The kernel and bias of the last layer."""
        return self._params["Logits"]["kernel"], self._params["Logits"]["bias"]

    def mean(self, name: str, x: str, axes: tuple[int, ...], keepdims: bool) -> str:
        numbers = self.constant(f"{name}/axes", np.array(axes, np.int64))
        return self.node("ReduceMean", name, x, numbers, keepdims=int(keepdims))

    def reshape(self, name: str, x: str, shape: list[int]) -> str:
        """Adds a reshape; as in ONNX, 0 in `shape` keeps a size and -1 is inferred."""
        return self.node("Reshape", name, x, self.constant(f"{name}/shape", np.array(shape)))

    def head(self, x: str, dims: int) -> None:
        """Adds the last layer, and both outputs.

        Args:
          x: the features [B, C, S, 1, 1], of images [B, C, 1, 1].
          dims: 3, or 2 for images.
        """
        self.width = self.inputs_of("Logits")
        space = self.constant("space", np.array([dims, dims + 1], np.int64))
        if dims == 3:
            steps = self.node("Squeeze", "AvgPool/steps", x, space)
            self.node("Transpose", FEATURES, steps, perm=(0, 2, 1))
        else:
            self.node("Squeeze", FEATURES, x, space)
        scores = self.plain_conv("Logits", x, "Logits/conv")
        self.mean(LOGITS, scores, tuple(range(2, 2 + dims)), keepdims=False)


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _pads(window: tuple[int, ...], pads: str) -> dict[str, Any]:
    """The attributes of a node that pads as `padding.pads_of`, whatever the input's size.

    Args:
      window: of the convolution or pool.
      pads: as in `padding.pads_of`.
    """
    if pads == "valid" or max(window) == 1:
        return {}
    if pads == "symmetric" and all(taps % 2 for taps in window):
        # What it has too much after the last window changes nothing.
        return {"pads": [taps // 2 for taps in window] * 2}
    assert pads == "same" or max(window) == 2, "larger even windows are centred otherwise"
    return {"auto_pad": "SAME_UPPER"}


def _inception(walk: _Walk, x: str, network: Inception) -> None:
    """Adds Inception-v1, of images or videos, to an input."""
    if network.time_padding != "zeros" and network.dims == 3:
        raise ExportError(
            f"time_padding is {network.time_padding!r}, wanted 'zeros' for ONNX; try --to stablehlo"
        )
    dims = network.dims
    one, three = (1,) * dims, (3,) * dims
    for kind, name, *spec in inception.LAYERS:
        if kind == "pool":
            window, strides = spec
            x = walk.max_pool(name, x, window[-dims:], strides[-dims:], "same")
        elif kind == "conv":
            x = walk.conv_bn(name, x, spec[-1][-dims:])
        else:
            b0 = walk.conv_bn(f"{name}/b0", x, one)
            b1 = walk.conv_bn(f"{name}/b1b", walk.conv_bn(f"{name}/b1a", x, one), one)
            b2 = walk.conv_bn(f"{name}/b2b", walk.conv_bn(f"{name}/b2a", x, one), one)
            pooled = walk.max_pool(f"{name}/pool", x, three, one, "same")
            b3 = walk.conv_bn(f"{name}/b3", pooled, one)
            x = walk.node("Concat", name, b0, b1, b2, b3, axis=1)
    x = walk.mean("AvgPool/space", x, (dims, dims + 1), keepdims=True)
    if dims == 3:
        x = walk.node("AveragePool", "AvgPool", x, kernel_shape=(2, 1, 1), strides=(1, 1, 1))
    walk.head(x, dims)


def _resnet(walk: _Walk, x: str, network: ResNet, channels: int) -> None:
    """Adds a ResNet, of images or videos, to an input.

    Args:
      walk: the graph.
      x: the input.
      network: the network.
      channels: of the input.
    """
    dims, depths = network.dims, iter(resnet.DEPTHS[network.depth])
    if channels == CHANNELS["rgb"] and network.input_scaling != "none":
        mean, std = np.array(resnet.SCALINGS[network.input_scaling])
        for op, values in ("Mul", 0.5 / std), ("Add", (0.5 - mean) / std):
            shaped = values.astype(np.float32).reshape(1, channels, *(1,) * dims)
            x = walk.node(op, f"scaling/{op}", x, walk.constant(f"scaling/{op}/by", shaped))
    for kind, name, *spec in network.table():
        if kind == "conv":
            x = walk.conv_bn(name, x, spec[-1][-dims:], "symmetric")
        elif kind == "pool":
            window, strides, pads = spec
            if max(window[-dims:]) > 1:  # The 2-D network has no pools in time.
                x = walk.max_pool(name, x, window[-dims:], strides[-dims:], pads)
        else:
            *_, stride = spec
            for number in range(next(depths)):
                each = f"{name}_{number}"
                x = _bottleneck(walk, each, x, dims, 1 if number else stride, number == 0)
                if network.non_local != "none" and name in resnet.NON_LOCAL_STAGES and number % 2:
                    x = _non_local(walk, f"{each}_nonlocal", x, dims, network.non_local)
    if network.pool_window:
        window = (1, network.pool_window, network.pool_window)[-dims:]
        x = walk.node("AveragePool", "AvgPool/windows", x, kernel_shape=window)
    walk.head(walk.mean("AvgPool", x, (dims, dims + 1), keepdims=True), dims)


def _bottleneck(walk: _Walk, name: str, x: str, dims: int, stride: int, project: bool) -> str:
    """Adds a `resnet.Bottleneck`; its arguments are that one's."""
    one, strides = (1,) * dims, (1, stride, stride)[-dims:]
    y = walk.conv_bn(f"{name}/a", x, one, "symmetric")
    y = walk.conv_bn(f"{name}/b", y, strides, "symmetric")
    y = walk.conv_bn(f"{name}/c", y, one, "symmetric", relu=False)
    if project:
        x = walk.conv_bn(f"{name}/shortcut", x, strides, "symmetric", relu=False)
    return walk.node("Relu", name, walk.node("Add", f"{name}/sum", x, y))


def _non_local(walk: _Walk, name: str, x: str, dims: int, kind: str) -> str:
    """Adds a `resnet.NonLocal`, which is named and of a kind as there."""
    two = (1, 2, 2)[-dims:]
    fewer = walk.max_pool(f"{name}/fewer", x, two, two, "valid")
    inputs = {"theta": x, "phi": fewer, "g": fewer}
    maps = {each: walk.plain_conv(f"{name}/{each}", of) for each, of in inputs.items()}
    theta, phi, g = (
        walk.reshape(f"{name}/{each}/flat", of, [0, 0, -1]) for each, of in maps.items()
    )
    theta = walk.node("Transpose", f"{name}/theta/rows", theta, perm=(0, 2, 1))
    weights = walk.node("MatMul", f"{name}/products", theta, phi)
    if kind == "softmax":
        factor = walk.constant(
            f"{name}/factor", np.float32(walk.inputs_of(f"{name}/out/conv") ** -0.5)
        )
        weights = walk.node("Mul", f"{name}/scaled", weights, factor)
        weights = walk.node("Softmax", f"{name}/weights", weights, axis=-1)
    else:
        number = walk.node("Shape", f"{name}/number", phi, start=2)
        number = walk.node("Cast", f"{name}/positions", number, to=onnx.TensorProto.FLOAT)
        weights = walk.node("Div", f"{name}/weights", weights, number)
    # [B, inner, Q] times [B, Q, P].
    weights = walk.node("Transpose", f"{name}/columns", weights, perm=(0, 2, 1))
    y = walk.node("MatMul", f"{name}/mean", g, weights)
    shape = walk.node("Shape", f"{name}/shape", maps["theta"])
    y = walk.node("Reshape", f"{name}/mean/shaped", y, shape)
    y = walk.conv_bn(f"{name}/out", y, (1,) * dims, relu=False)
    return walk.node("Add", name, x, y)


def _c3d(walk: _Walk, x: str, shape: list[Any]) -> None:
    """Adds a 3D-ConvNet to an input [batch, channels, time, height, width].

    Args:
      walk: the graph.
      x: the input.
      shape: of the input.
    """
    channels, _, *space = shape[1:]
    # Windows of 16 frames become clips.
    cut = walk.reshape("windows/cut", x, [0, channels, -1, c3d.FRAMES, *space])
    moved = walk.node("Transpose", "windows/moved", cut, perm=(0, 2, 1, 3, 4, 5))
    x = walk.reshape("windows", moved, [-1, channels, c3d.FRAMES, *space])
    for kind, name, *spec in c3d.LAYERS:
        if kind == "pool":
            window, strides = spec
            x = walk.max_pool(name, x, window, strides, "same")
        else:
            x = walk.conv_bn(name, x, spec[-1])
    # Dense layers take positions before channels.
    x = walk.node("Transpose", "channels_last", x, perm=(0, 2, 3, 4, 1))
    x = walk.node("Flatten", "flat", x, axis=1)
    for name, _ in c3d.DENSE:
        x = walk.dense(f"{name}/dense", x, *walk.folded(name))
        x = walk.node("Relu", f"{name}/relu", x)
    x = walk.dense("Logits/dense", x, *walk.last_layer())
    number = walk.node("Shape", "clips", moved, start=0, end=2)
    classes = walk.constant("classes", np.array([-1], np.int64))
    number = walk.node("Concat", "clips/shape", number, classes, axis=0)
    walk.mean(LOGITS, walk.node("Reshape", "Logits", x, number), (1,), keepdims=False)
