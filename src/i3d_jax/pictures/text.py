"""Text on pictures, which fits: it shrinks down to a readable size, and then loses its middle."""

import functools
import pathlib
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i3d_jax import cli
from i3d_jax.pictures import layout

# Pixels of the smallest text on a video of 1280x720, so that it can be read on a phone.
READABLE = 26
MAX_LETTERS = 500  # Of a longer text, as some file names are, the middle is not even measured.
ELLIPSIS = "…"


class Line(NamedTuple):
    """A text in one line, as it is drawn.

    Attributes:
      text: what is left of the text.
      size: of the font, in pixels.
      left: pixels from the origin to the leftmost one that is drawn.
      width: pixels that are drawn.
    """

    text: str
    size: int
    left: int
    width: int


def draw(
    picture: np.ndarray,
    box: layout.Box,
    text: str,
    *,
    size: int,
    least: int | None = None,
    colour: tuple[int, int, int] = layout.INK,
    align: Literal["left", "centre", "right"] = "left",
) -> Line:
    """Draws a text in one line into a box; nothing outside of the box changes.

    Control characters are drawn as escapes. Letters that the font lacks are drawn as boxes.

    Args:
      picture: uint8 [H, W, 3], which is written.
      box: where the text goes, in the middle of its height.
      text: the text.
      size: pixels; the size of the text if there is room for it.
      least: pixels; the smallest size, None: `size`. Text that is still too long loses its middle.
      colour: of the text.
      align: where in the box's width the text is.

    Returns:
      what was drawn.
    """
    line = fit(text, box.width, size, size if least is None else least)
    room = {"left": 0, "centre": (box.width - line.width) // 2, "right": box.width - line.width}
    ascent, descent = font(line.size).getmetrics()
    foot = (box.height + ascent - descent) // 2
    mask = Image.new("L", (box.width, box.height))
    ImageDraw.Draw(mask).text(
        (room[align] - line.left, foot), line.text, 255, font(line.size), anchor="ls"
    )
    share = np.asarray(mask, np.float32)[..., None] / 255
    part = layout.part(picture, box)
    part[:] = np.rint(part + share * (np.array(colour, np.float32) - part)).astype(np.uint8)
    return line


@functools.lru_cache(4096)
def fit(text: str, width: int, size: int, least: int) -> Line:
    """The text as it fits into a width.

    Args:
      text: the text.
      width: pixels.
      size: pixels; the size to begin with.
      least: pixels; the smallest size.
    """
    text = cli.escape_unprintable(shortened(text, MAX_LETTERS))
    for each in range(size, least - 1, -1):
        if (line := measure(text, each)).width <= width:
            return line
    low, high = 0, len(text)  # Numbers of letters that fit, and that do not.
    while high - low > 1:
        middle = (low + high) // 2
        fits = measure(shortened(text, middle), least).width <= width
        low, high = (middle, high) if fits else (low, middle)
    return measure(shortened(text, low), least)


def shortened(text: str, letters: int) -> str:
    """The text with at most so many letters: of a longer one an ellipsis replaces the middle."""
    if len(text) <= letters:
        return text
    kept = letters - 1
    if kept < 0:
        return ""
    tail = kept // 2
    return text[: kept - tail] + ELLIPSIS + text[len(text) - tail :]


def measure(text: str, size: int) -> Line:
    """The text in a size, with the columns that it covers."""
    left, _, right, _ = font(size).getbbox(text, anchor="ls")
    return Line(text, size, int(np.floor(left)), int(np.ceil(right)) - int(np.floor(left)))


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, in a size in pixels."""
    import matplotlib  # Imported here, since it takes long.

    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    # Pillow's other engine is not in every build of it, and sets text differently.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def clock(seconds: float, length: float, decimals: int = 0) -> str:
    """A time in a video: "1.5 s" in one of less than a minute, else "2:05" or "1:02:05".

    Args:
      seconds: the time.
      length: of the video, in seconds.
      decimals: of the seconds.
    """
    whole = round(max(0.0, seconds) * 10**decimals)
    minutes, rest = divmod(whole, 60 * 10**decimals)
    digits = f"{rest / 10**decimals:0{2 + (decimals > 0) + decimals}.{decimals}f}"
    if length < 60:
        return f"{whole / 10**decimals:.{decimals}f} s"
    if length < 3600:
        return f"{minutes}:{digits}"
    return f"{minutes // 60}:{minutes % 60:02}:{digits}"
