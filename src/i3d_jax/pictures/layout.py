"""Where panels go on a picture, and in which colours."""

from typing import NamedTuple

import numpy as np

PAPER, INK, FAINT = (255, 255, 255), (34, 34, 34), (225, 225, 225)
# After P. Tol, Colour Schemes, "bright": the colour-blind can tell the first ones apart.
CLASSES = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (170, 51, 119),
    (102, 204, 238),
    (238, 119, 51),
    (120, 120, 120),
)
MARGIN = 16  # Pixels between panels, and around them.


class Box(NamedTuple):
    """A part of a picture, in pixels.

    Attributes:
      top: its first row.
      left: its first column.
      height: number of rows.
      width: number of columns.
    """

    top: int
    left: int
    height: int
    width: int


class Panels(NamedTuple):
    """Where the parts of an annotated video go.

    Attributes:
      height: of the whole.
      width: of the whole.
      video: the frame.
      flow: the optical flow, if it is shown.
      flow_caption: a word beside or below the flow.
      header: lines of text above the bars.
      bars: the classes.
      strip: the time line.
    """

    height: int
    width: int
    video: Box
    flow: Box | None
    flow_caption: Box | None
    header: list[Box]
    bars: Box
    strip: Box


def panels(height: int, width: int, *, with_flow: bool, lines: int, size: int) -> Panels:
    """Arranges an annotated video of the shape of its frames.

    Landscape is 1280x720: the flow is below the frame, the bars are beside them. Portrait is
    720x1280: the flow is beside the frame, the bars are below them. The time line is at the foot.

    Args:
      height: of the frames.
      width: of the frames.
      with_flow: whether flow is shown.
      lines: of text above the bars.
      size: pixels; the size of the text.
    """
    portrait, aspect = height > width, width / height
    whole_height, whole_width = (1280, 720) if portrait else (720, 1280)
    line, inner, foot = round(1.35 * size), whole_width - 2 * MARGIN, 5 * size
    strip = Box(whole_height - foot - MARGIN, MARGIN, foot, inner)
    flow = caption = None
    if portrait:
        cell = (inner - MARGIN) // 2 if with_flow else inner
        high = min(640 - line * with_flow, max(240, round(cell / aspect)))
        frame = Box(MARGIN, MARGIN, high, cell)
        if with_flow:
            flow = frame._replace(left=2 * MARGIN + cell)
            caption = Box(MARGIN + high, flow.left, line, cell)
        beside = Box(MARGIN + high + line * with_flow + MARGIN, MARGIN, 0, inner)
        beside = beside._replace(height=strip.top - MARGIN - beside.top)
    else:
        high = strip.top - 2 * MARGIN
        first = round(0.66 * (high - MARGIN)) if with_flow else high
        column = min(800, max(320, round(first * aspect)))
        frame = Box(MARGIN, MARGIN, min(first, round(column / aspect)), column)
        if with_flow:
            second = high - first - MARGIN
            # Beside the flow there is room for its caption.
            wide = min(column - 3 * size, round(second * aspect))
            below = frame.top + frame.height + MARGIN
            flow = Box(below, MARGIN, min(second, round(wide / aspect)), wide)
            left = flow.left + flow.width + MARGIN // 2
            caption = Box(flow.top, left, line, MARGIN + column - left)
        beside = Box(MARGIN, column + 3 * MARGIN, high, inner - column - 2 * MARGIN)
    header = [beside._replace(top=beside.top + i * line, height=line) for i in range(lines)]
    taken = lines * line + (MARGIN if lines else 0)
    bars = beside._replace(top=beside.top + taken, height=beside.height - taken)
    return Panels(whole_height, whole_width, frame, flow, caption, header, bars, strip)


def blank(height: int, width: int) -> np.ndarray:
    """An empty picture, uint8 [height, width, 3]."""
    return np.full((height, width, 3), PAPER, np.uint8)


def place(picture: np.ndarray, box: Box, image: np.ndarray) -> Box:
    """Puts an image into the middle of a box; what is larger than the box is cut off.

    Args:
      picture: uint8 [H, W, 3], which is written.
      box: a part of it.
      image: uint8 [h, w, 3].

    Returns:
      the part of the picture that the image covers.
    """
    height, width = min(box.height, image.shape[0]), min(box.width, image.shape[1])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    covered = Box(
        box.top + (box.height - height) // 2, box.left + (box.width - width) // 2, height, width
    )
    part(picture, covered)[:] = image[top : top + height, left : left + width]
    return covered


def part(picture: np.ndarray, box: Box) -> np.ndarray:
    """A box of a picture, as a view."""
    return picture[box.top : box.top + box.height, box.left : box.left + box.width]


def framed(image: np.ndarray) -> np.ndarray:
    """A copy of an image with a faint line around it: what is white would have no edge."""
    copy = image.copy()
    outline(copy, Box(0, 0, *image.shape[:2]), FAINT)
    return copy


def outline(picture: np.ndarray, box: Box, colour: tuple[int, int, int] = PAPER) -> None:
    """Draws a line of two pixels around a box, inside of it."""
    inside = part(picture, box)
    for edge in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
        edge[:] = colour
