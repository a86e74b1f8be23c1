"""Classes and their probabilities as bars."""

from collections.abc import Sequence

import numpy as np

from i3d_jax.pictures import layout, text
from i3d_jax.pictures.layout import Box

# Parts of a class, in heights of its text: the name, the bar below it, the gap to the next.
NAME, BAR, GAP = 1.25, 1.0, 0.5
LARGEST = 1.4  # Of the text, where there is room, in smallest ones.


def fitting(height: int, size: int = text.READABLE) -> int:
    """The number of bars that fit into a height; at least 1.

    Args:
      height: pixels.
      size: pixels; the smallest text.
    """
    return max(1, int(height / (size * (NAME + BAR + GAP))))


def draw(
    height: int,
    width: int,
    names: Sequence[str],
    shares: Sequence[float] | np.ndarray,
    *,
    size: int = text.READABLE,
    decimals: int = 1,
) -> np.ndarray:
    """Draws classes below one another: the name, below it a bar, and the probability beside it.

    Args:
      height: pixels of the picture.
      width: pixels of the picture.
      names: of the classes, as many as `fitting` or fewer.
      shares: probability of each, from 0 to 1.
      size: pixels; the smallest text.
      decimals: of the percentages.

    Returns:
      uint8 [height, width, 3].
    """
    picture = layout.blank(height, width)
    row = height / max(1, len(names))
    letters = round(min(max(size, row / (NAME + BAR + GAP)), LARGEST * size))
    row = min(row, 1.5 * letters * (NAME + BAR + GAP))
    line, thick = round(NAME * letters), round(BAR * letters)
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        top = round(number * row)
        text.draw(picture, Box(top, 0, line, width), name, size=letters, least=size)
        whole = track(width, letters, decimals)
        place = picture[top + line : top + line + thick]
        place[:, :whole] = layout.FAINT
        place[:, : length(share, whole)] = layout.CLASSES[number % len(layout.CLASSES)]
        beside = Box(top + line, whole, thick, width - whole)
        percent = f"{share:.{decimals}%}"
        text.draw(picture, beside, percent, size=letters, least=size // 2, align="right")
    return picture


def track(width: int, letters: int, decimals: int) -> int:
    """Pixels of the bar of probability 1, beside which the percentage is written.

    Args:
      width: pixels of the picture.
      letters: pixels; the size of the text.
      decimals: of the percentages.
    """
    widest = text.measure(f"{1:.{decimals}%}", letters).width
    return max(1, width - widest - letters // 2)


def length(share: float, whole: int) -> int:
    """Pixels of a probability's bar, of which 1 has `whole`."""
    return round(min(max(float(share), 0.0), 1.0) * whole)
