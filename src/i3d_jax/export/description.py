"""The sizes of an exported network's input, and the description that its file carries."""

import dataclasses
import sys
from collections.abc import Collection, Mapping
from typing import Any

from i3d_jax import models, pixels, weights
from i3d_jax.models.c3d import C3D
from i3d_jax.models.inception import Inception
from i3d_jax.models.network import CHANNELS, Network
from i3d_jax.models.resnet import ResNet

FORMAT = "i3d_jax export 1"
DIMENSIONS = "batch", "time", "height", "width"
SPACE = "height", "width"
VALUES = {
    "rgb": "RGB in [-1, 1]: byte / 127.5 - 1",
    "flow": f"optical flow in pixels per frame, u and v, cut to [-{pixels.MAX_FLOW:g}, "
    f"{pixels.MAX_FLOW:g}] and divided by {pixels.MAX_FLOW:g}",
}


class ExportError(ValueError):
    """A network cannot be exported as wanted."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A network to export, and its input.

    Attributes:
      network: the network.
      variables: its variables.
      info: their description.
      sizes: of the input, for each stream, by dimension; None is left open. Networks of images
        have no time.
    """

    network: Network
    variables: Mapping[str, Any]
    info: weights.Info
    sizes: Mapping[str, Mapping[str, int | None]]

    @property
    def open_dimensions(self) -> tuple[str, ...]:
        """The dimensions that are left open."""
        (sizes, *_) = self.sizes.values()
        return tuple(name for name, size in sizes.items() if size is None)

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the inputs, by stream."""
        if len(self.sizes) > 1:
            return {stream: stream for stream in self.sizes}
        return {
            stream: "video" if "time" in sizes else "images" for stream, sizes in self.sizes.items()
        }


def takes_images(network: Network) -> bool:
    """Whether a network's input is images, not videos."""
    return isinstance(network, Inception | ResNet) and network.dims == 2


def has_features(network: Network) -> bool:
    """Whether the file has the output "features", besides the logits."""
    return isinstance(network, Inception | ResNet)


def load(
    name: str,
    dynamic: Collection[str] | None,
    default: Collection[str] = (),
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> Source:
    """Reads weights, and sets the sizes of their network's input.

    Args:
      name: of weights, or a file of them.
      dynamic: the dimensions to leave open; None is `default`.
      default: those to leave open as far as the network and the other arguments allow.
      frames: of the input (RGB frames, if it has two streams), unless time is open; None is the
        length of the paper's training clips.
      size: height and width of the input, unless they are open; None is the weights' crop.

    Raises:
      weights.WeightsError: the weights cannot be read.
      ExportError: the network does not take such an input.
    """
    network, variables, info = weights.network(name)
    fixed = _fixed(network, info, frames, size)
    if dynamic is None:
        dynamic = [each for each in default if each not in fixed]
    for each in dynamic:
        if each in fixed:
            raise ExportError(f"--dynamic: {each} cannot be open: {fixed[each]}")
    height, width = size or (info.crop, info.crop)
    sizes = {}
    for stream, length in _lengths(network, info, frames).items():
        every = {"batch": 1, "time": length, "height": height, "width": width}
        if takes_images(network):
            del every["time"]
        sizes[stream] = {each: None if each in dynamic else n for each, n in every.items()}
    return Source(network, variables, info, sizes)


def _fixed(
    network: Network, info: weights.Info, frames: int | None, size: tuple[int, int] | None
) -> dict[str, str]:
    """The dimensions that cannot be open, with the reason; arguments are those of `load`.

    Raises:
      ExportError: `frames` or `size` are given where the network has no choice.
    """
    fixed = {}
    if takes_images(network):
        fixed["time"] = f"{info.model} takes images"
        if frames is not None:
            raise ExportError(f"--frames: {info.model} takes images, which have no time")
    elif len(info.footprint) > 1:
        fixed["time"] = f"{info.model} takes two streams"
    elif frames is not None:
        fixed["time"] = "--frames sets it"
    if isinstance(network, C3D):
        fixed |= dict.fromkeys(SPACE, f"{info.model} takes {info.crop}x{info.crop} pixels")
        if size is not None:
            raise ExportError(f"--size: {info.model} takes {info.crop}x{info.crop} pixels only")
    elif size is not None:
        fixed |= dict.fromkeys(SPACE, "--size sets it")
    return fixed


def _lengths(network: Network, info: weights.Info, frames: int | None) -> dict[str, int]:
    """Frames of each stream's input.

    Args:
      network: the network.
      info: of its weights.
      frames: of the first stream, or None for the paper's training clip.
    """
    timing, first = network.timing, next(iter(info.footprint))
    if frames is None:
        frames, _ = next(iter(models.MODELS[info.model].train.values()))
    per_tick = timing.frames(first)
    if frames % per_tick or frames < timing.least * per_tick:
        multiple = f", a multiple of {per_tick}" if per_tick > 1 else ""
        raise ExportError(
            f"{info.model}: {frames} frames, wanted at least {timing.least * per_tick}{multiple}"
        )
    return {stream: frames // per_tick * timing.frames(stream) for stream in info.footprint}


def describe(source: Source, layout: str) -> dict[str, Any]:
    """What one needs to know to use an exported network; values that JSON has.

    Args:
      source: the network.
      layout: the order of the input's dimensions, such as "batch channels height width".
    """
    info = source.info
    inputs = {}
    for stream, sizes in source.sizes.items():
        every = {**sizes, "channels": CHANNELS[stream]}
        shape = [every[name] or name for name in layout.split() if name in every]
        frames, step = info.footprint[stream]
        inputs[source.inputs[stream]] = {
            "shape": shape,
            "dtype": "float32",
            "values": VALUES[stream],
            "least_frames": source.network.timing.least * source.network.timing.frames(stream),
            "frames_at_test": frames,
            "frame_step": step,
        }
        if takes_images(source.network):
            del inputs[source.inputs[stream]]["least_frames"]
    outputs = {"logits": "[batch, classes]: unnormalised; their softmax is the probabilities"}
    if has_features(source.network):
        outputs["features"] = (
            "[batch, channels]: averaged over space"
            if takes_images(source.network)
            else "[batch, steps in time, channels]: averaged over space"
        )
    return {
        "format": FORMAT,
        "model": info.model,
        "options": dict(info.options),
        "source": info.source,
        "weights": weights.fingerprint(source.variables),
        "made_by": f"i3d_jax {getattr(sys.modules['i3d_jax'], '__version__', 'unknown')}",
        "inputs": inputs,
        "outputs": outputs,
        "preprocessing": {
            "frames_per_second": info.fps,
            "short_side": info.short_side,
            "centre_crop": info.crop,
        },
        "classes": list(info.classes),
    }
