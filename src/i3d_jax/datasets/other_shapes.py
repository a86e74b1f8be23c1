"""The videos of moving_shapes/transfer_1 to _3: other shapes, textures and movements.

A dark checked shape moves over a bright background of blocks. As in moving_shapes/videos, movements
come in pairs, one the time reversal of the other, and a single frame tells nothing of the movement:
position, angle and size are distributed alike at every instant, whatever the movement.
"""

import numpy as np

SHAPES = ("star", "ring", "crescent", "bar")
# Motion right and down, along a circle (clockwise is positive), and growth.
MOVEMENTS = {
    "moving up left": (-1, -1, 0, 0),
    "moving down right": (1, 1, 0, 0),
    "circling clockwise": (0, 0, 1, 0),
    "circling anticlockwise": (0, 0, -1, 0),
    "growing": (0, 0, 0, 1),
    "shrinking": (0, 0, 0, -1),
}
LEAST_RADIUS, GREATEST_RADIUS = 0.15, 0.27  # Of a shape, as shares of the frame's side.


def render(
    shape: str, movement: str, rng: np.random.Generator, frames: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one video and its flow.

    A shape that leaves on one side comes back on the other, and one that has grown to its greatest
    size is small again. The flow is without these jumps.

    Args:
      shape: one of `SHAPES`.
      movement: one of `MOVEMENTS`.
      rng: source of position, speed, size, texture and background.
      frames: number of frames.
      size: height and width in pixels.

    Returns:
      the video, uint8 [frames, size, size, 3], and the flow in pixels, [frames, size, size, 2].
    """
    right, down, circle, growth = MOVEMENTS[movement]
    time = np.arange(frames + 1, dtype=np.float32)  # One more, for the last frame's flow.
    speed, angular = rng.uniform(0.012, 0.024) * size, circle * rng.uniform(0.15, 0.3)
    growth = growth * rng.uniform(0.06, 0.12)  # Of all sizes, per frame.
    phase, orbit, first = rng.uniform(), 0.12 * size, rng.uniform(0, 2 * np.pi)
    reach = (1 - 2 * GREATEST_RADIUS) * size  # The centre moves where the whole shape is visible.
    x0, y0 = rng.uniform(0, reach, 2)
    turn = first + angular * time
    x_path = right * speed * time + orbit * np.cos(turn)
    y_path = down * speed * time + orbit * np.sin(turn)
    ratio = GREATEST_RADIUS / LEAST_RADIUS
    radius = LEAST_RADIUS * size * ratio ** ((phase + growth * time) % 1)

    def over_frames(values):
        return values[:-1, None, None]

    centres = np.arange(size, dtype=np.float32) + 0.5 - GREATEST_RADIUS * size
    x = centres[None, None, :] - over_frames((x0 + x_path) % reach)
    y = centres[None, :, None] - over_frames((y0 + y_path) % reach)
    angle = rng.uniform(0, 2 * np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = np.clip(0.5 - distance(shape, u, v, over_frames(radius)), 0, 1)[..., None]
    # Checks grow with the shape.
    checks = np.sin(rng.uniform(5, 9) * u / over_frames(radius)) * np.sin(
        rng.uniform(5, 9) * v / over_frames(radius)
    )
    texture = rng.uniform(20, 90, 3) * (1 + 0.5 * np.clip(3 * checks, -1, 1)[..., None])
    image = background(rng, size) * (1 - inside) + texture * inside
    wider = ratio**growth - 1
    moved = (
        np.diff(x_path)[:, None, None] + wider * x,
        np.diff(y_path)[:, None, None] + wider * y,
    )
    flow = np.stack(np.broadcast_arrays(*moved), -1) * (inside > 0.5)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), flow


def distance(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance in pixels, about, to the outline of a shape; negative inside.

    Args:
      shape: one of `SHAPES`.
      u: first coordinate, relative to the centre, in the shape's own axes.
      v: second coordinate.
      radius: of the shape, about.
    """
    from_centre = np.hypot(u, v)
    if shape == "star":
        return from_centre - radius * (0.72 + 0.2 * np.cos(5 * np.arctan2(v, u)))
    if shape == "ring":
        return abs(from_centre - 0.7 * radius) - 0.25 * radius
    if shape == "crescent":
        return np.maximum(
            from_centre - 0.95 * radius, 0.75 * radius - np.hypot(u - 0.5 * radius, v)
        )
    return np.maximum(abs(u) - 0.95 * radius, abs(v) - 0.3 * radius)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Bright blocks of 7 pixels [size, size, 3]."""
    blocks = rng.uniform(-22, 22, (-(-size // 7), -(-size // 7), 1))
    image = blocks.repeat(7, 0).repeat(7, 1)[:size, :size]
    return 195 + image + rng.uniform(-20, 20, 3)
