"""moving_shapes: a small action recognition data set that needs no download, made on the spot.

A textured shape moves over a textured background; the class is which shape moves how, such as "cross moving left" or
"disc turning clockwise". Movements come in pairs that are each other's reversal in time. At every instant a shape's place
and angle are uniform (a shape that leaves on one side comes back on the other), so single frames are distributed the same
under all movements: a network that sees one frame can tell the shape and no more (right in 1 of 6), and a bag of frames
cannot tell a movement from its reversal (right in 1 of 2).

The videos are written as H.264 files with a CSV of annotations, in Kinetics' layout, and prepared as Kinetics is. Their
flow is the renderer's own: exact, and nothing but the shape's motion. The
config `images` is the miniature's ImageNet: still images (videos of one frame) whose class is the shape.
"""

import concurrent.futures
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from i3d_jax import pixels
from i3d_jax.datasets import annotations, clips, video_files
from i3d_jax.prefetch import usable_cores
from i3d_jax.video import h264

SIZE = 56  # Of the canvas, pixels; nothing is resized.
FRAMES = 32  # Of a video: 1.28 s.
SHAPES = ("disc", "square", "triangle", "cross")
# Directions: to the right, down, and clockwise.
MOVEMENTS = {
    "moving left": (-1, 0, 0),
    "moving right": (1, 0, 0),
    "moving up": (0, -1, 0),
    "moving down": (0, 1, 0),
    "turning clockwise": (0, 0, 1),
    "turning anticlockwise": (0, 0, -1),
}
CLASSES = {
    "videos": [f"{shape} {movement}" for shape in SHAPES for movement in MOVEMENTS],
    "images": list(SHAPES),
}
CLIPS_PER_CLASS = {
    "videos": {"train": 100, "validation": 20},
    "images": {"train": 600, "validation": 100},
}


class MovingShapes(clips.ClipBuilder):
    """Textured shapes in motion; no single frame tells the class."""

    name = "moving_shapes"
    SHORT_SIDE = SIZE
    SELF_MADE = True
    FAULTS: ClassVar = {}  # Its own videos, MP4 at 25 frames per second, were read rightly in every format: the bytes are the same.
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
    ]

    def classes(self) -> list[str]:
        return CLASSES[self.config_name]

    def splits(self) -> list[str]:
        return list(CLIPS_PER_CLASS[self.config_name])

    def has_flow(self) -> bool:
        return self.config_name == "videos"

    def clips(self, folder: pathlib.Path) -> list[video_files.Clip]:
        lists = [
            write_videos(folder, self.config_name, *split)
            for split in CLIPS_PER_CLASS[self.config_name].items()
        ]
        rows = annotations.kinetics(lists, self.classes())
        return video_files.clips(
            rows, folder / "videos", folder / "flow" if self.has_flow() else None
        )


def write_videos(folder: pathlib.Path, config: str, split: str, count: int) -> pathlib.Path:
    """Writes `count` videos per class under folder/videos/split/, classes taking turns, and returns their CSV's path.

    The flow of those that move goes to folder/flow/split/.
    """
    names, moving = CLASSES[config], config == "videos"
    for label in names:
        (folder / "videos" / split / label).mkdir(parents=True, exist_ok=True)
        if moving:
            (folder / "flow" / split / label).mkdir(parents=True, exist_ok=True)

    def write(number: int) -> dict:
        label = names[number % len(names)]
        shape, _, movement = label.partition(" ")
        # The seed tells splits and configs apart, so that no video is in two of them.
        rng = np.random.default_rng([number, split == "train", moving])
        frames, flow = render(shape, movement or "moving left", rng, FRAMES if moving else 1)
        identity, end = f"{split}{number:05d}", -(-len(frames) // 25)
        place = pathlib.Path(split, label, annotations.file_name(identity, 0, end))
        (folder / "videos" / place).write_bytes(h264.encode(frames))
        if moving:
            (folder / "flow" / place).write_bytes(h264.encode(pixels.flow_bytes(flow)))
        return dict(zip(annotations.COLUMNS, (label, identity, 0, end, split), strict=True))

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        rows = list(pool.map(write, range(count * len(names))))
    path = folder / f"{split}.csv"
    annotations.write_kinetics(path, rows)
    return path


def render(
    shape: str, movement: str, rng: np.random.Generator, frames: int = FRAMES, size: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one video, uint8 [frames, size, size, 3], and its flow in pixels, [frames, size, size, 2].

    A shape that leaves on one side moves on there, by its flow, and does not jump to the other.
    """
    right, down, turn = MOVEMENTS[movement]
    time = np.arange(frames, dtype=np.float32)[:, None, None]
    speed, radius = rng.uniform(0.014, 0.028) * size, rng.uniform(0.19, 0.25) * size
    first_angle, turn = rng.uniform(0, 2 * np.pi), turn * rng.uniform(0.07, 0.14)
    angle = first_angle + turn * time
    # The centre leaves the inner square where the whole shape is visible on one side and comes back on the other.
    inner = size - 2 * radius
    x0, y0 = rng.uniform(0, inner, 2)
    pixels = np.arange(size, dtype=np.float32) + 0.5
    x = pixels[None, None, :] - radius - (x0 + right * speed * time) % inner
    y = pixels[None, :, None] - radius - (y0 + down * speed * time) % inner
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
    """Signed distance in pixels from (u, v) to the outline of a shape of about this radius; negative inside."""
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
    place = 2 * np.pi * (np.arange(size) + 0.5) / size
    image = np.zeros((size, size))
    for _ in range(6):
        across, along = rng.integers(-5, 6, 2)
        image += np.sin(
            across * place[None, :] + along * place[:, None] + rng.uniform(0, 2 * np.pi)
        )
    return 70 + 8 * image[..., None] + rng.uniform(-20, 20, 3)
