"""A video as networks see it, drawn as one picture: `predict --picture`."""

import pathlib

import numpy as np

from i3d_jax import video
from i3d_jax.pictures import bars, layout, png, sheet, strip, text
from i3d_jax.pictures.layout import MARGIN, Box
from i3d_jax.timeline import annotated
from i3d_jax.timeline.annotated import FPS, Watched

MOMENTS = 8
SOFTWARE = "i3d_jax contact sheet"  # Tells our PNG files from others.
WIDTH, SIZE = 1200, 22  # Pixels, of the picture and of its text.


def draw(watched: Watched, moments: int = MOMENTS) -> np.ndarray:
    """Draws moments of a video in a row, heat maps and flow below them, then bars and time line.

    Args:
      watched: the video.
      moments: how many frames are shown.

    Returns:
      uint8 [H, 1200, 3].

    Raises:
      VideoError: the video cannot be read.
    """
    length = watched.seconds
    count = max(1, round(length * FPS))
    numbers = ((np.arange(moments) + 0.5) / moments * count).astype(int)
    times = (numbers + 0.5) / FPS
    decimals = int(length < 10 * moments)
    captions = [text.clock(each / FPS, length, decimals) for each in numbers]
    side = annotated.fitting_side(watched.path, 2 * WIDTH // moments, WIDTH // moments)
    plain = [
        next(video.rgb_frames(watched.path, fps=FPS, short_side=side, start=each, frames=1))
        for each in map(int, numbers)
    ]
    parts = [_row(plain, captions)]
    explanation = watched.explanation
    if explanation is not None:
        name = watched.classes[explanation.target]
        images = [
            annotated.explained(watched, "rgb", each, time)
            for each, time in zip(plain, times, strict=True)
        ]
        parts.append(_row(images, title=f"heat map: {name}"))
    if watched.flow_settings is not None:
        moving = [_flow_at(watched, each, count) for each in map(int, numbers)]
        images = [
            layout.framed(annotated.explained(watched, "flow", each, time))
            for each, time in zip(moving, times, strict=True)
        ]
        title = "flow, with its heat map" if explanation and "flow" in explanation.heat else "flow"
        parts.append(_row(images, title=title))
    parts.append(_foot(watched, length))
    return np.concatenate([parts[0], *(each[MARGIN:] for each in parts[1:])])


def write(path: pathlib.Path, watched: Watched, moments: int = MOMENTS) -> None:
    """Writes the contact sheet of a video as a PNG file, atomically.

    Args:
      path: of the file.
      watched: the video.
      moments: how many frames are shown.

    Raises:
      VideoError: the video cannot be read.
      OSError: the file cannot be written.
    """
    png.write(path, draw(watched, moments), SOFTWARE)


def _row(
    images: list[np.ndarray], captions: list[str] | None = None, title: str = ""
) -> np.ndarray:
    captions = captions or [""] * len(images)
    return sheet.sheet(images, captions, len(images), title=title, width=WIDTH, size=SIZE)


def _flow_at(watched: Watched, number: int, count: int) -> np.ndarray:
    """The flow from a frame to the next one, in colours; the last frame has the one before."""
    start = max(0, min(number, count - 2))
    return next(annotated.flow_pictures(watched, start=start, frames=2))


def _foot(watched: Watched, length: float) -> np.ndarray:
    """Bars of the whole video, and beside them its time line."""
    found = annotated.Probabilities(watched.rows, watched.shown)
    line = round(1.6 * SIZE)
    half = (WIDTH - 3 * MARGIN) // 2
    high = round(len(watched.shown) * 1.05 * SIZE * (bars.NAME + bars.BAR + bars.GAP))
    high = max(high, 8 * SIZE)
    picture = layout.blank(MARGIN + line + high + MARGIN, WIDTH)
    left, right = Box(MARGIN, MARGIN, line, half), Box(MARGIN, 2 * MARGIN + half, line, half)
    text.draw(picture, left, "the whole video", size=SIZE)
    text.draw(picture, right, "over time", size=SIZE)
    box = Box(MARGIN + line, MARGIN, high, half)
    layout.part(picture, box)[:] = bars.draw(
        high, half, watched.names, found.mean, size=SIZE, decimals=2
    )
    box = box._replace(left=2 * MARGIN + half)
    layout.part(picture, box)[:] = strip.Strip(
        high, half, found.centres, found.shares, length, SIZE
    ).picture
    return picture
