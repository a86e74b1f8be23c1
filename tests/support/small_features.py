"""Small networks as files, small videos, and features computed in the plainest way."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from i3d_jax import flow, models, pixels, video, weights
from i3d_jax.flow.videos import flow_of_frames
from support import small_networks
from support.small_weights import INFO, small_variables
from support.videos import clip, encode


def save_weights(folder: pathlib.Path, stream: str = "rgb") -> str:
    """Saves a tiny I3D of a stream; returns its path."""
    path = folder / f"{stream}.safetensors"
    variables = small_variables(stream == "flow", 2 if stream == "flow" else 3)
    weights.save(path, variables, dataclasses.replace(INFO, footprint={stream: (250, 1)}))
    return str(path)


def save_other_weights(folder: pathlib.Path, name: str) -> str:
    """Saves a tiny network of another kind, with the paper's test clip; returns its path."""
    options, clips = small_networks.SMALL[name]
    variables = small_networks.small(name).init(jax.random.key(0), small_networks.clip(clips))
    footprint = models.MODELS[name].test
    info = dataclasses.replace(
        INFO, model=name, options={"width": 0.1, **options}, footprint=footprint
    )
    path = folder / f"{name}.safetensors"
    weights.save(path, jax.tree.map(np.asarray, variables), info)
    return str(path)


def save_video(path: pathlib.Path, frames: int, seed: int = 0, width: int = 64, rate: int = 25):
    """Writes a video of a moving texture, 48 pixels high."""
    times = [round(1000 * number / rate) for number in range(frames)]
    kind = {".mp4": "mp4", ".mkv": "matroska", ".avi": "avi"}[path.suffix]
    options = {"codec": "mpeg4", "time_base": f"1/{rate}"} if kind == "avi" else {}
    times = [*range(frames)] if kind == "avi" else times
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(clip(frames, seed, 48, width), times, kind, **options))


@functools.lru_cache
def _apply(network):
    return jax.jit(
        functools.partial(network.apply, endpoints=True), compiler_options=models.compiler_options()
    )


def one_pass(name: str, frames: np.ndarray, layer: str = "AvgPool") -> np.ndarray:
    """A layer's activations in one pass over whole frames [T, H, W, C], [S, ..., C]."""
    network, variables, _ = weights.network(name)
    unit = pixels.to_unit(frames) if frames.dtype == np.uint8 else frames
    return np.asarray(_apply(network)(variables, unit[None])[1][layer][0])


def rgb(path: pathlib.Path, crop: int | None = 32, **options) -> np.ndarray:
    """A video's frames as the small networks take them."""
    return video.decode(path, short_side=40, crop=crop, **options)


def flow_frames(path: pathlib.Path, crop: int = 32) -> np.ndarray:
    """A video's flow as the small networks take it."""
    found = np.stack([*flow_of_frames(video.grey(path, short_side=40), flow.FAST)])
    return pixels.crop(pixels.flow_unit(found), crop)
