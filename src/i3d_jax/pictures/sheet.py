"""Grids of pictures with captions: contact sheets."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from i3d_jax.pictures import layout, text
from i3d_jax.pictures.layout import MARGIN, Box


def sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    columns: int,
    *,
    title: str = "",
    width: int = 1600,
    size: int = text.READABLE,
    max_height: int | None = None,
) -> np.ndarray:
    """Draws images in rows, each in a cell of the same size with a caption below.

    Images are scaled to fit into their cells and keep their shape. The cell has the mean shape of
    the images.

    Args:
      images: uint8 [h, w, 3], of any sizes; at least one.
      captions: of each image; all "": none, and no room for them.
      columns: images per row.
      title: above everything; "" for none.
      width: pixels of the result.
      size: pixels; the size of the text.
      max_height: pixels; most height of a cell. None: twice its width.

    Returns:
      uint8 [H, width, 3].

    Raises:
      ValueError: there are no images, or as many captions as images.
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"sheet: {len(images)} images and {len(captions)} captions, wanted one of each or more"
        )
    cell_width = (width - MARGIN) // columns - MARGIN
    if cell_width < 1:
        raise ValueError(f"sheet: {columns} columns do not fit into {width} pixels")
    aspect = np.exp(np.mean([np.log(each.shape[0] / each.shape[1]) for each in images]))
    cell_height = max(1, min(round(cell_width * aspect), max_height or 2 * cell_width))
    line = round(1.4 * size) if any(captions) else 0
    above = round(1.8 * size) if title else 0
    rows = -(-len(images) // columns)
    picture = layout.blank(MARGIN + above + rows * (cell_height + line + MARGIN), width)
    if title:
        text.draw(
            picture, Box(MARGIN, MARGIN, above - MARGIN, width - 2 * MARGIN), title, size=size
        )
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        box = Box(
            MARGIN + above + row * (cell_height + line + MARGIN),
            MARGIN + column * (cell_width + MARGIN),
            cell_height,
            cell_width,
        )
        layout.place(picture, box, scaled(image, cell_height, cell_width))
        if line and caption:
            below = Box(box.top + cell_height, box.left, line, cell_width)
            text.draw(picture, below, caption, size=size, align="centre")
    return picture


def scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales an image to the largest size that fits, and keeps its shape.

    Args:
      image: uint8 [h, w, 3].
      height: pixels, at most.
      width: pixels, at most.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    size = [max(1, min(round(n * scale), most)) for n, most in zip(image.shape, (height, width))]
    if tuple(size) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)
