"""The runs of the miniature: the paper's experiments on moving_shapes.

moving_shapes/images takes the place of ImageNet, moving_shapes/videos that of Kinetics, and
moving_shapes/transfer_1 to _3 that of UCF-101 with its three splits. Networks have a quarter of
the paper's width, 48x48 pixels and clips of 16 frames: configs/moving_shapes.py, with the changes
below.

Learning rates and steps were chosen by `choices.py`, on another seed and on training videos alone,
of which a fifth was held out. Then every network ran once for each of SEEDS, on all training
videos. The other settings are those of configs/moving_shapes.py. They are older, and had been seen
with the test videos of moving_shapes/videos.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from i3d_jax.training import config_files
from paper.runs import Run

SEEDS = 1, 2, 3
CHOICE_SEED = 100
VIDEOS, TVL1 = "moving_shapes/videos", "moving_shapes/videos_tvl1"
TRANSFER = tuple(f"moving_shapes/transfer_{number}" for number in (1, 2, 3))


def schedule(steps: int, lr: float) -> dict[str, Any]:
    """Changes of a config that give a run its steps and learning rate."""
    return {
        "steps": steps,
        "optimizer.lr": lr,
        "optimizer.milestones": ((steps * 7 // 8, 0.1),),
    }


# Chosen by `choices.py`. Networks that it does not have take I3D's.
ON_VIDEOS = {
    "i3d": schedule(400, 0.02),
    "i3d_flow": schedule(400, 0.02),
    "two_stream": schedule(400, 0.02),
    "fused_two_stream": schedule(400, 0.02),
    "convnet_lstm": schedule(800, 0.05),  # More would be better, and take over three minutes.
    "c3d": schedule(400, 0.01),
    "frames": schedule(400, 0.02),
}
ON_TRANSFER = {
    "original": schedule(200, 0.02),
    "fixed": schedule(200, 0.2) | {"freeze_backbone": True},
    "full": schedule(200, 0.02),
}
# Of networks that need others than I3D: half of the steps that they have on the large data set.
OWN_ON_TRANSFER = {"convnet_lstm": schedule(400, 0.05), "c3d": schedule(200, 0.01)}
WITHOUT_IMAGES = ("c3d",)  # There is no image network that they could start from.


@functools.cache
def load(name: str) -> ConfigDict:
    return config_files.load(f"moving_shapes:{name}")


def settings(name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The config of a run of configs/moving_shapes.py, with changes.

    Args:
      name: the run's.
      seed: its seed.
      changes: values by path, "optimizer.lr".
    """
    config = load(name).to_dict()
    config.pop("pretrain", None)
    for path, value in ({"seed": seed, "test_split": "validation"} | changes).items():
        *parents, key = path.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[key] = value
    return config


def images(seed: int) -> Run:
    """The image network, the miniature's ImageNet."""
    return Run(f"images-s{seed}", seed, settings("images", seed, {}))


def on_videos(
    name: str,
    seed: int,
    images_first: bool = True,
    dataset: str = VIDEOS,
    label: str = "",
    changes: dict[str, Any] | None = None,
    inflation: str = "mean",
) -> Run:
    """A network on the large data set, the miniature's Kinetics.

    Args:
      name: of a run of configs/moving_shapes.py; "two_stream_i3d" adds the logits of I3D's streams.
      seed: of the run.
      images_first: whether it starts from the image network.
      dataset: VIDEOS, or TVL1, whose flow is TV-L1's.
      label: of other `changes`, for the run's name.
      changes: values of the config, by path.
      inflation: see `Run`.
    """
    origin = "images" if images_first and name not in WITHOUT_IMAGES else "scratch"
    full_name = f"{dataset.split('/')[1]}-{name}-{origin}{label and '-' + label}-s{seed}"
    if name == "two_stream_i3d":
        # RGB is the same in both data sets.
        parts = (
            on_videos("i3d", seed, images_first),
            on_videos("i3d_flow", seed, images_first, dataset),
        )
        return Run(full_name, seed, {"dataset": {"name": dataset}}, kind="sum", parts=parts)
    own = {"dataset.name": dataset} | ON_VIDEOS[name] | (changes or {})
    start = images(seed) if origin == "images" else None
    return Run(full_name, seed, settings(name, seed, own), start, inflation)


def on_transfer(name: str, seed: int, how: str, images_first: bool = True, split: int = 1) -> Run:
    """A network on the small data set, the miniature's UCF-101.

    Args:
      name: as in `on_videos`.
      seed: of the run.
      how: "original" (without the large data set), "fixed" or "full", as in table 4.
      images_first: whether it, or the network that it starts from, started from the image network.
      split: 1 to 3.
    """
    origin = "images" if images_first and name not in WITHOUT_IMAGES else "scratch"
    full_name = f"transfer_{split}-{name}-{how}-{origin}-s{seed}"
    dataset = TRANSFER[split - 1]
    if name == "two_stream_i3d":
        parts = tuple(
            on_transfer(stream, seed, how, images_first, split) for stream in ("i3d", "i3d_flow")
        )
        return Run(full_name, seed, {"dataset": {"name": dataset}}, kind="sum", parts=parts)
    own = {"dataset.name": dataset, "test_split": "test"}
    own |= ON_TRANSFER[how] | OWN_ON_TRANSFER.get(name, {})
    if how != "original":
        start = on_videos(name, seed, images_first)
    else:
        start = images(seed) if origin == "images" else None
    return Run(full_name, seed, settings(name, seed, own), start)
