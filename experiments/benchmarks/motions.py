"""Pairs of smooth images with known motion between them."""

import numpy as np


def texture(seed: int):
    """A smooth image: the sum of waves with lengths of 20 to 100 pixels, about grey level 128.

    Args:
      seed: of the waves.

    Returns:
      a function of positions [..., 2] in pixels that returns grey levels [...].
    """
    rng = np.random.default_rng(seed)
    lengths, angles, phases = 20 * 5 ** rng.random(40), *(2 * np.pi * rng.random((2, 40)))
    waves = 2 * np.pi / lengths * np.stack([np.cos(angles), np.sin(angles)])
    heights = 40 * np.sqrt(2 * lengths / lengths.sum())
    return lambda places: 128 + np.sin(places @ waves + phases) @ heights


def moving(matrix, shift, height: int = 256, width: int = 340, seed: int = 0):
    """Two images of a texture that moves from position p to matrix p + shift.

    Positions are relative to the centre. Both images are drawn, none is warped: the flow is exact.

    Args:
      matrix: [2, 2].
      shift: (x, y) in pixels.
      height: in pixels.
      width: in pixels.
      seed: of the texture.

    Returns:
      the two images, uint8 [H, W]; and the flow between them, [H, W, 2].
    """
    pixels = np.moveaxis(np.mgrid[:height, :width][::-1], 0, -1)
    places = pixels - np.array([width - 1, height - 1]) / 2
    there = places @ np.transpose(matrix) + shift
    before = (places - shift) @ np.linalg.inv(matrix).T
    image = texture(seed)
    levels = (np.rint(image(each)) for each in (places, before))
    first, second = (np.clip(each, 0, 255).astype(np.uint8) for each in levels)
    return first, second, there - places


def stays(flow: np.ndarray) -> np.ndarray:
    """The pixels that stay in the image, bool [H, W].

    Args:
      flow: [H, W, 2].
    """
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width]
    x, y = x + flow[..., 0], y + flow[..., 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def motion(kind: str, most: float, height: int = 256, width: int = 340):
    """The matrix and the shift of a motion.

    Args:
      kind: "shift", "turn" or "zoom".
      most: its greatest length in pixels, which turns and zooms have in the corners.
      height: of the image, in pixels.
      width: of the image, in pixels.
    """
    angle = most / np.hypot(height / 2, width / 2)
    if kind == "shift":
        return np.eye(2), (-0.6 * most, 0.8 * most)
    if kind == "turn":
        cosine, sine = np.cos(angle), np.sin(angle)
        return np.array([[cosine, -sine], [sine, cosine]]), (0.0, 0.0)
    return (1 + angle) * np.eye(2), (0.0, 0.0)
