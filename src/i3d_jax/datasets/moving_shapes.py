"""moving_shapes: a small data set for action recognition, generated without any download.

A textured shape moves over a textured background. The class is shape and movement, such as "cross
moving left" or "disc turning clockwise". Movements come in pairs, one the time reversal of the
other.

At every instant position and angle are uniformly distributed: a shape that leaves on one side comes
back on the other. So a single frame tells the shape, but nothing of the movement (accuracy 1 in 6),
and an unordered set of frames does not tell a movement from its reversal (accuracy 1 in 2).

The videos are written as H.264 files with a CSV of annotations in Kinetics' layout, and prepared as
Kinetics is. Their flow comes from the renderer, so it is exact; `videos_tvl1` has the same videos
with TV-L1's flow. The config `images` takes the place of ImageNet: still images (videos of one
frame), whose class is the shape.

The configs `transfer_1` to `transfer_3` take the place of UCF-101's three splits: a smaller data
set of other shapes, textures and movements (`other_shapes`). Each split trains on a third of the
same videos, and is tested on the others.
"""

import concurrent.futures
import pathlib
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from i3d_jax import pixels
from i3d_jax.datasets import annotations, clips, other_shapes, video_files
from i3d_jax.prefetch import usable_cores
from i3d_jax.video import h264

SIZE = 56  # Height and width in pixels; nothing is resized.
FRAMES = 32  # Frames of a video, 1.28 s.
SHAPES = ("disc", "square", "triangle", "cross")
# Motion to the right, motion down, clockwise rotation.
MOVEMENTS = {
    "moving left": (-1, 0, 0),
    "moving right": (1, 0, 0),
    "moving up": (0, -1, 0),
    "moving down": (0, 1, 0),
    "turning clockwise": (0, 0, 1),
    "turning anticlockwise": (0, 0, -1),
}
TRANSFER = tuple(f"transfer_{number}" for number in (1, 2, 3))
CLASSES = {
    "videos": [f"{shape} {movement}" for shape in SHAPES for movement in MOVEMENTS],
    "images": list(SHAPES),
}
CLIPS_PER_CLASS = {
    "videos": {"train": 100, "validation": 20},
    "images": {"train": 600, "validation": 100},
}
for table in CLASSES, CLIPS_PER_CLASS:
    table["videos_tvl1"] = table["videos"]  # The same videos, with other flow.
for config in TRANSFER:
    CLASSES[config] = [
        f"{shape} {movement}"
        for shape in other_shapes.SHAPES
        for movement in other_shapes.MOVEMENTS
    ]
    CLIPS_PER_CLASS[config] = {"train": 20, "test": 40}


class MovingShapes(clips.ClipBuilder):
    """Textured shapes in motion; no single frame tells the class."""

    name = "moving_shapes"
    SHORT_SIDE = SIZE
    GENERATED = True
    # Its videos are MP4 at 25 frames per second, which every format reads alike.
    KNOWN_PROBLEMS: ClassVar = {}
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "2.0.0": "Written by shards.",
        "1.1.0": "Flow.",
        "1.0.0": "Videos and images.",
    }
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(
            name="videos", description=f"{FRAMES} frames; the class is shape and movement."
        ),
        tfds.core.BuilderConfig(name="images", description="One frame; the class is the shape."),
        tfds.core.BuilderConfig(
            name="videos_tvl1", description="The same videos; their flow is TV-L1's."
        ),
        *(
            tfds.core.BuilderConfig(
                name=name, description=f"Other shapes and movements, split {name[-1]} of three."
            )
            for name in TRANSFER
        ),
    ]

    def classes(self) -> list[str]:
        return CLASSES[self.config_name]

    def splits(self) -> list[str]:
        return list(CLIPS_PER_CLASS[self.config_name])

    def will_have_flow(self) -> bool:
        return self.config_name != "images"

    def flow_preset(self) -> str | None:
        return "fast" if self.config_name == "videos_tvl1" else None

    def clips(self, folder: pathlib.Path) -> list[video_files.Clip]:
        lists = [
            write_videos(folder, self.config_name, *split)
            for split in CLIPS_PER_CLASS[self.config_name].items()
        ]
        rows = annotations.kinetics(lists, self.classes())
        rendered = self.will_have_flow() and self.flow_preset() is None
        flow = folder / "flow" if rendered else None
        return video_files.clips(rows, folder / "videos", flow)


class Sample(NamedTuple):
    """One video of a data set.

    Attributes:
      id: its name.
      label: its class, "disc moving left"; of images the shape alone.
      seed: of all that is random in it.
    """

    id: str
    label: str
    seed: list[int]


def samples(config: str, split: str, count: int) -> list[Sample]:
    """The videos of a split.

    Args:
      config: a key of CLASSES.
      split: "train", "validation" or "test".
      count: number of videos per class.
    """
    names = CLASSES[config]
    if config not in TRANSFER:
        # The seed depends on split and config, so that no video is in two of them.
        seed = [split == "train", config != "images"]
        return [
            Sample(f"{split}{number:05d}", names[number % len(names)], [number, *seed])
            for number in range(count * len(names))
        ]
    found = []
    for number in range(count * len(names)):
        example, label = divmod(number, len(names))
        # Every third example is in this split's training set, the two after it in its test set.
        group, third = (example, 0) if split == "train" else (example // 2, 1 + example % 2)
        example = 3 * group + (TRANSFER.index(config) + third) % 3
        number = example * len(names) + label
        found.append(Sample(f"transfer{number:05d}", names[label], [number, 2, True]))
    return found


def write_videos(folder: pathlib.Path, config: str, split: str, count: int) -> pathlib.Path:
    """Writes the videos of a split to `folder`/videos, and their flow to `folder`/flow.

    Images, and videos whose flow is to be computed, have no flow.

    Args:
      folder: where to write.
      config: a key of CLASSES.
      split: "train", "validation" or "test".
      count: number of videos per class.

    Returns:
      the path of their CSV of annotations.
    """
    frames, with_flow = 1 if config == "images" else FRAMES, config in ("videos", *TRANSFER)
    draw = other_shapes.render if config in TRANSFER else render
    for label in CLASSES[config]:
        (folder / "videos" / split / label).mkdir(parents=True, exist_ok=True)
        if with_flow:
            (folder / "flow" / split / label).mkdir(parents=True, exist_ok=True)

    def write(sample: Sample) -> dict:
        shape, _, movement = sample.label.partition(" ")
        rng = np.random.default_rng(sample.seed)
        video, flow = draw(shape, movement or "moving left", rng, frames, SIZE)
        end = -(-len(video) // 25)
        path = pathlib.Path(split, sample.label, annotations.file_name(sample.id, 0, end))
        (folder / "videos" / path).write_bytes(h264.encode(video))
        if with_flow:
            (folder / "flow" / path).write_bytes(h264.encode(pixels.flow_bytes(flow)))
        columns = sample.label, sample.id, 0, end, split
        return dict(zip(annotations.COLUMNS, columns, strict=True))

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        rows = list(pool.map(write, samples(config, split, count)))
    path = folder / f"{split}.csv"
    annotations.write_kinetics(path, rows)
    return path


def render(
    shape: str, movement: str, rng: np.random.Generator, frames: int = FRAMES, size: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one video and its flow.

    Where a shape jumps from one side to the other, the flow is that of its motion, without the
    jump.

    Args:
      shape: one of `SHAPES`.
      movement: one of `MOVEMENTS`.
      rng: source of position, speed, size, texture and background.
      frames: number of frames.
      size: height and width in pixels.

    Returns:
      the video, uint8 [frames, size, size, 3], and the flow in pixels, [frames, size, size, 2].
    """
    right, down, turn = MOVEMENTS[movement]
    time = np.arange(frames, dtype=np.float32)[:, None, None]
    speed, radius = rng.uniform(0.014, 0.028) * size, rng.uniform(0.19, 0.25) * size
    first_angle, turn = rng.uniform(0, 2 * np.pi), turn * rng.uniform(0.07, 0.14)
    angle = first_angle + turn * time
    # The centre moves in the square where the whole shape is visible. When it leaves this square on
    # one side, it comes back on the other.
    inner = size - 2 * radius
    x0, y0 = rng.uniform(0, inner, 2)
    centres = np.arange(size, dtype=np.float32) + 0.5
    x = centres[None, None, :] - radius - (x0 + right * speed * time) % inner
    y = centres[None, :, None] - radius - (y0 + down * speed * time) % inner
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    inside = np.clip(0.5 - distance(shape, u, v, radius), 0, 1)[..., None]
    wave, tilt = rng.uniform(0.4, 0.8), rng.uniform(0, 2 * np.pi)
    stripes = np.sin(wave * (u * np.cos(tilt) + v * np.sin(tilt)) + rng.uniform(0, 2 * np.pi))[
        ..., None
    ]
    image = (
        background(rng, size) * (1 - inside)
        + rng.uniform(140, 255, 3) * (0.8 + 0.2 * stripes) * inside
    )
    moved = (
        right * speed + (np.cos(turn) - 1) * x - np.sin(turn) * y,
        down * speed + np.sin(turn) * x + (np.cos(turn) - 1) * y,
    )
    flow = np.stack(moved, -1) * (inside > 0.5)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), flow


def distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape; negative inside.

    Args:
      shape: one of `SHAPES`.
      u: first coordinate, relative to the centre, in the shape's own axes.
      v: second coordinate.
      radius: of the shape, about.
    """
    if shape == "disc":
        return np.hypot(u, v) - 0.9 * radius
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - 0.8 * radius
    if shape == "triangle":
        sides = [
            u * np.cos(turn) + v * np.sin(turn) for turn in np.pi * np.array([1 / 2, 7 / 6, 11 / 6])
        ]
        return np.maximum.reduce(sides) - 0.62 * radius
    upright, lying = (
        np.maximum(abs(u) - 0.3 * radius, abs(v) - radius),
        np.maximum(abs(v) - 0.3 * radius, abs(u) - radius),
    )
    return np.minimum(upright, lying)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth dark noise [size, size, 3]."""
    angle = 2 * np.pi * (np.arange(size) + 0.5) / size
    image = np.zeros((size, size))
    for _ in range(6):
        across, along = rng.integers(-5, 6, 2)
        phase = rng.uniform(0, 2 * np.pi)
        image += np.sin(across * angle[None, :] + along * angle[:, None] + phase)
    return 70 + 8 * image[..., None] + rng.uniform(-20, 20, 3)
