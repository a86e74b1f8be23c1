"""A contact sheet of clips: what a network is shown, after decoding and augmentation."""

import pathlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from i3d_jax import pixels
from i3d_jax.datasets import pipeline
from i3d_jax.datasets.clips import ClipBuilder
from i3d_jax.flow.colours import flow_to_rgb
from i3d_jax.models.timing import Timing
from i3d_jax.pictures import layout, png, text
from i3d_jax.pictures.sheet import sheet
from i3d_jax.video import planes

STREAMS = {"rgb": "RGB", "flow": "flow"}  # From top to bottom, and what they are called.
SHOWN_FRAMES = 6  # Of a clip, at most.
MOST_CLIPS = 100  # On a sheet.
LEAST_SIDE = 160  # Pixels of a frame on the sheet; smaller frames are enlarged.
LEAST_WIDTH = 560  # Pixels of a row, so that its caption can be read.
GAP = 2  # Pixels between the frames of a row, and around them.
TITLE_SIZE, TEXT_SIZE, LEAST_SIZE = 22, 18, 10  # Pixels. Long texts are smaller, down to the least.
LINE_HEIGHT = 24
SOFTWARE = "i3d_jax clip sheet"  # Tells our PNG files from others.


class Clip(NamedTuple):
    """Some frames of a clip.

    Attributes:
      record: id of the record that it was cut out of.
      label: its class.
      frames: of each stream, those that are shown, as the network gets them: "rgb",
        f32 [T, s, s, 3] in [-1, 1], and "flow", f32 [T, s, s, 2] in pixels / 20.
      lengths: of each stream, the frames of the whole clip.
      mirrored: whether it is mirrored.
      backwards: whether it is played backwards.
    """

    record: str
    label: int
    frames: dict[str, np.ndarray]
    lengths: dict[str, int]
    mirrored: bool
    backwards: bool


class Numbered(Sequence[dict]):
    """Records with their index as label, so that the clips of a batch tell their record.

    Args:
      records: the records, by index.
    """

    def __init__(self, records: Sequence[dict]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):  # pyright: ignore - never a slice
        return self.records[index] | {"label": index}


def training_clips(
    batches: Iterable[Mapping[str, Any]], numbered: Numbered
) -> Generator[Clip, None, None]:
    """Yields the clips of training batches.

    Args:
      batches: of `pipeline.train_batches`.
      numbered: the records that they are made from.
    """
    for batch in batches:
        for row, index in enumerate(batch["label"]):
            packed = {name: each[row : row + 1] for name, each in batch.items() if name != "label"}
            yield _clip(packed, numbered.records[int(index)])


def test_clips(
    records: Iterable[dict], timing: Timing, **arguments: Any
) -> Generator[Clip, None, None]:
    """Yields whole videos as the test takes them.

    Args:
      records: the videos' records.
      timing: of the network.
      **arguments: other arguments of `pipeline.eval_chunks`.
    """
    # In batches of one video they keep their order.
    arguments |= {"batch_size": 1, "timing": timing}
    for chunk in pipeline.eval_chunks(records, **arguments):
        yield _clip(chunk.streams, chunk.records[0])


def _clip(packed: Mapping[str, Any], record: dict) -> Clip:
    """Unpacks a batch of one clip, as the compiled step does."""
    unpacked = _unpack(dict(packed))
    frames = {name: np.asarray(unpacked[name][0]) for name in STREAMS if name in unpacked}
    return Clip(
        str(record["id"]),
        int(record["label"]),
        {name: each[shown_frames(len(each))] for name, each in frames.items()},
        {name: len(each) for name, each in frames.items()},
        bool(packed["mirrored"][0]),
        "backwards" in packed and bool(packed["backwards"][0]),
    )


_unpack = jax.jit(planes.unpack)


def shown_frames(length: int) -> np.ndarray:
    """The numbers of the frames of a clip that are shown: the first, the last, some between."""
    return np.rint(np.linspace(0, length - 1, min(length, SHOWN_FRAMES))).astype(int)


def paper_clips(builder: ClipBuilder) -> dict[str, Any]:
    """The paper's training clips for I3D, of the streams that a data set has (section 3).

    Args:
      builder: of the data set. The crop is at most its frames' short side.

    Returns:
      arguments of `pipeline.train_batches`.
    """
    streams = dict.fromkeys(builder.streams, (64, 1))
    return {"crop": min(224, builder.SHORT_SIDE // 2 * 2), "flip": True, **streams}


def draw(
    clips: Sequence[Clip], class_names: Sequence[str], streams: pipeline.Streams, title: str
) -> np.ndarray:
    """Draws clips below each other, each with its caption and with its flow below its RGB.

    The frames are enlarged by a whole number, and otherwise as they are.

    Args:
      clips: of one shape.
      class_names: names of the classes, by label.
      streams: the frames of a clip and the step between them.
      title: of the sheet.

    Returns:
      the picture, uint8 [H, W, 3].
    """
    full_colour = _full_colour(clips)
    rows = [
        _row(clip, captions(clip, class_names, streams, full_colour), full_colour) for clip in clips
    ]
    # Clips of single frames are narrow: there is room for several, and for the title, side by side.
    columns = max(1, 3 * LEAST_WIDTH // rows[0].shape[1])
    # The cells of the sheet are as large as the rows, so that nothing is scaled.
    width = columns * (rows[0].shape[1] + layout.MARGIN) + layout.MARGIN
    height = max(each.shape[0] for each in rows)
    size = text.fit(title, width - 2 * layout.MARGIN, TITLE_SIZE, LEAST_SIZE).size
    blank = [""] * len(rows)
    return sheet(rows, blank, columns, title=title, width=width, size=size, max_height=height)


def _full_colour(clips: Sequence[Clip]) -> float:
    """Pixels of flow that are drawn with full saturation: hardly any of the clips' is longer."""
    lengths = [
        pixels.MAX_FLOW * np.hypot(flow[..., 0], flow[..., 1]).ravel()
        for clip in clips
        if (flow := clip.frames.get("flow")) is not None
    ]
    return max(1.0, float(np.quantile(np.concatenate(lengths), 0.995))) if lengths else 1.0


def captions(
    clip: Clip, class_names: Sequence[str], streams: pipeline.Streams, full_colour: float
) -> tuple[str, str]:
    """The two lines above a clip.

    Returns:
      its class and whether it is mirrored or backwards; its frames, the step between them, and its
      record.
    """
    marks = [name for name in ("mirrored", "backwards") if getattr(clip, name)]
    scale = {"rgb": "", "flow": f" (full colour: {full_colour:.2g} pixels)"}
    parts = [
        f"{STREAMS[name]} {number} x {streams[name][1]}{scale[name]}"
        for name, number in clip.lengths.items()
    ]
    first = " · ".join([class_names[clip.label], *marks])
    return first, " · ".join([*parts, text.shortened(clip.record, 60)])


def _row(clip: Clip, lines: Sequence[str], full_colour: float) -> np.ndarray:
    """Draws a clip: lines of text, and the frames beside each other, uint8 [H, W, 3]."""
    columns = max(len(each) for each in clip.frames.values())
    side = next(iter(clip.frames.values())).shape[1]
    scale = -(-LEAST_SIDE // side)
    cell, head = side * scale + GAP, len(lines) * LINE_HEIGHT
    width = max(cell * columns + GAP, LEAST_WIDTH)
    picture = layout.blank(head + cell * len(clip.frames) + GAP, width)
    for number, line in enumerate(lines):
        box = layout.Box(number * LINE_HEIGHT, 0, LINE_HEIGHT, width)
        text.draw(picture, box, line, size=TEXT_SIZE - 2 * number, least=LEAST_SIZE)
    for row, (stream, frames) in enumerate(clip.frames.items()):
        top = head + row * cell
        # Flow is white where nothing moves: its frames need edges.
        picture[top : top + cell + GAP, : len(frames) * cell + GAP] = layout.FAINT
        for column, image in enumerate(as_images(stream, frames, full_colour)):
            box = layout.Box(top + GAP, GAP + column * cell, cell - GAP, cell - GAP)
            layout.place(picture, box, image.repeat(scale, 0).repeat(scale, 1))
    return picture


def as_images(stream: str, frames: np.ndarray, full_colour: float) -> np.ndarray:
    """Converts frames as a network gets them to images, uint8 [T, H, W, 3].

    Args:
      stream: "rgb" or "flow".
      frames: see `Clip`.
      full_colour: pixels of flow with full saturation.
    """
    if stream == "flow":
        return flow_to_rgb(pixels.MAX_FLOW * frames, full_colour)
    return np.rint(127.5 * (frames + 1)).astype(np.uint8)


def write(path: pathlib.Path, picture: np.ndarray) -> None:
    """Writes a sheet as a PNG file.

    Args:
      path: of the file.
      picture: uint8 [H, W, 3].
    """
    png.write(path, picture, SOFTWARE)


def check_target(path: pathlib.Path) -> None:
    """Checks that a sheet can be written to a file.

    Raises:
      ValueError: its name is not that of a PNG file, its folder is missing, or there is a file that
        is no sheet of ours.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out: {path}: wanted a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--out: {path.absolute().parent}: no such folder")
    if path.exists() and not png.is_of_kind(path, SOFTWARE):
        raise ValueError(f"--out: {path}: is there already, and is no sheet of clips")
