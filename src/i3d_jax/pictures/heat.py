"""Heat maps over images, in matplotlib's viridis."""

import functools

import numpy as np
from PIL import Image


def seen_square(height: int, width: int, short_side: int, crop: int) -> tuple[int, int, int]:
    """The part of a displayed frame that a network sees: the centre crop of the resized frame.

    Args:
      height: of the frame as it is displayed, in pixels.
      width: of the same.
      short_side: pixels to which the network's frames are resized.
      crop: height and width of the network's input.

    Returns:
      (top, left, side) in pixels of the frame.
    """
    side = max(1, min(height, width, round(min(height, width) * crop / short_side)))
    return (height - side) // 2, (width - side) // 2, side


def overlay(
    image: np.ndarray,
    heat: np.ndarray,
    square: tuple[int, int, int] | None = None,
    alpha: float = 0.5,
) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
      image: uint8 [H, W, 3].
      heat: f32 [h, w] in [0, 1]; it is interpolated to the square's pixels.
      square: (top, left, side), the part of the image that the map is of; None: all of it.
      alpha: share of the map's colour, from 0 to 1.

    Returns:
      uint8 [H, W, 3].
    """
    top, left, height, width = 0, 0, *image.shape[:2]
    if square is not None:
        top, left, height = square
        width = height
    resized = Image.fromarray(np.asarray(heat, np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    places = np.rint(np.clip(np.asarray(resized), 0, 1) * 255).astype(np.uint8)
    part = slice(top, top + height), slice(left, left + width)
    mixed = image.copy()
    mixed[part] = np.rint((1 - alpha) * image[part] + alpha * _viridis()[places]).astype(np.uint8)
    return mixed


@functools.cache
def _viridis() -> np.ndarray:
    """uint8 [256, 3]."""
    from matplotlib import colormaps  # Imported here, since it takes a while.

    return np.rint(colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
