"""Pairs of smooth images between which the motion is known."""

import numpy as np


def texture(seed: int):
    """A smooth image as a function of places [..., 2] in pixels: waves of 20 to 100 of them, grey levels about 128."""
    rng = np.random.default_rng(seed)
    lengths, angles, phases = 20 * 5 ** rng.random(40), *(2 * np.pi * rng.random((2, 40)))
    waves = 2 * np.pi / lengths * np.stack([np.cos(angles), np.sin(angles)])
    heights = 40 * np.sqrt(2 * lengths / lengths.sum())
    return lambda places: 128 + np.sin(places @ waves + phases) @ heights


def moving(matrix, shift, height: int = 256, width: int = 340, seed: int = 0):
    """Two images, uint8 [H, W], and the flow between them [H, W, 2]: a texture that goes from p to matrix p + shift.

    Places are counted from the centre. Images are drawn, not warped: the flow is exact.
    """
    places = (
        np.moveaxis(np.mgrid[:height, :width][::-1], 0, -1) - np.array([width - 1, height - 1]) / 2
    )
    there, before = (
        places @ np.transpose(matrix) + shift,
        (places - shift) @ np.linalg.inv(matrix).T,
    )
    image = texture(seed)
    first, second = (
        np.clip(np.rint(image(each)), 0, 255).astype(np.uint8) for each in (places, before)
    )
    return first, second, there - places


def stays(flow: np.ndarray) -> np.ndarray:
    """Where the flow does not lead out of the image, bool [H, W]: where others go cannot be seen."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width]
    x, y = x + flow[..., 0], y + flow[..., 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def motion(kind: str, most: float, height: int = 256, width: int = 340):
    """The matrix and shift of a motion of `most` pixels, in the corners if it is a "turn" or "zoom"."""
    angle = most / np.hypot(height / 2, width / 2)
    if kind == "shift":
        return np.eye(2), (-0.6 * most, 0.8 * most)
    if kind == "turn":
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), (
            0.0,
            0.0,
        )
    return (1 + angle) * np.eye(2), (0.0, 0.0)
