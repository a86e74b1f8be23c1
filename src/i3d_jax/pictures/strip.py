"""The time line of a video: probabilities of classes over time, with a cursor."""

import numpy as np
from PIL import Image, ImageDraw

from i3d_jax.pictures import layout, text
from i3d_jax.pictures.layout import Box

# Seconds between labels.
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
TICK, KNOB = 8, 8  # Pixels of the marks of times, and of the cursor's triangle.
FINER = 3  # Lines are drawn in a picture so many times as large.


class Strip:
    """A time line, drawn once; `at` adds the cursor.

    Args:
      height: pixels.
      width: pixels.
      seconds: f64 [rows], ascending: when each row is.
      shares: f32 [rows, k], the probabilities of classes, which have the colours of `bars`.
      length: of the video, in seconds.
      size: pixels; the size of the text.

    Attributes:
      picture: uint8 [height, width, 3], without the cursor.
      plot: the part of it between the axes.
    """

    def __init__(
        self,
        height: int,
        width: int,
        seconds: np.ndarray,
        shares: np.ndarray,
        length: float,
        size: int = text.READABLE,
    ):
        self._length = length
        self.picture = layout.blank(height, width)
        labels = "100%", "0%"
        left = text.measure(labels[0], size).width + size // 2
        right = text.measure(text.clock(length, length, 1), size).width // 2 + 2
        line, above = round(1.3 * size), size // 2
        self.plot = Box(above, left, height - above - line - TICK, width - left - right)
        for label, middle in zip(labels, (above, above + self.plot.height), strict=True):
            top = min(max(0, middle - line // 2), height - line)
            box = Box(top, 0, line, left - size // 2)
            text.draw(self.picture, box, label, size=size, align="right")
        self._draw_times(size, line)
        part = layout.part(self.picture, self.plot)
        part[:] = _curves(part, seconds, shares, length)
        part[-2:] = layout.INK

    def column(self, seconds: float) -> int:
        """The column of the picture in which a time is."""
        share = min(max(seconds / self._length, 0.0), 1.0)
        return self.plot.left + round(share * (self.plot.width - 1))

    def at(self, seconds: float) -> np.ndarray:
        """The time line with the cursor at a time, uint8 [height, width, 3]."""
        picture, column = self.picture.copy(), self.column(seconds)
        bottom = self.plot.top + self.plot.height
        picture[self.plot.top : bottom, max(0, column - 1) : column + 2] = layout.INK
        for row in range(2 * KNOB):  # A triangle that points down.
            half, top = KNOB - row // 2, self.plot.top + row - KNOB
            picture[top, max(0, column - half) : column + half + 1] = layout.INK
        return picture

    def _draw_times(self, size: int, line: int) -> None:
        below = self.plot.top + self.plot.height
        for step in STEPS:
            decimals = int(step < 1)
            widest = text.measure(text.clock(self._length, self._length, decimals), size).width
            if self.plot.width * step / self._length >= widest + size:
                break
        else:  # Days.
            step, decimals = self._length, 0
        for number in range(int(self._length / step * (1 + 1e-9)) + 1):
            label = text.clock(number * step, self._length, decimals)
            middle, wide = self.column(number * step), text.measure(label, size).width
            left = max(0, middle - wide // 2)
            if left + wide > self.picture.shape[1]:
                continue
            self.picture[below : below + TICK, middle - 1 : middle + 1] = layout.INK
            text.draw(self.picture, Box(below + TICK, left, line, wide), label, size=size)


def _curves(
    background: np.ndarray, seconds: np.ndarray, shares: np.ndarray, length: float
) -> np.ndarray:
    """Draws the probabilities of classes over the whole of a picture."""
    height, width = background.shape[:2]
    large = Image.fromarray(background).resize((width * FINER, height * FINER))
    pen = ImageDraw.Draw(large)
    columns = width * FINER
    times = (np.arange(columns) + 0.5) / columns * length
    # Many rows in a column are averaged.
    ends = np.searchsorted(seconds, times + length / columns / 2)
    starts = np.concatenate([[0], ends[:-1]])
    sums = np.concatenate([np.zeros((1, shares.shape[1])), np.cumsum(shares, 0, np.float64)])
    for number in reversed(range(shares.shape[1])):  # The likeliest is on top.
        values = np.interp(times, seconds, shares[:, number])
        many = ends - starts > 1
        means = (sums[ends, number] - sums[starts, number]) / np.maximum(ends - starts, 1)
        values = np.where(many, means, values)
        heights = (1 - np.clip(values, 0, 1)) * (height - 4) * FINER + 2 * FINER
        colour = layout.CLASSES[number % len(layout.CLASSES)]
        points = np.stack([np.arange(columns), heights], 1).ravel().tolist()
        pen.line(points, fill=colour, width=3 * FINER, joint="curve")
    return np.asarray(large.resize((width, height), Image.Resampling.BOX))
