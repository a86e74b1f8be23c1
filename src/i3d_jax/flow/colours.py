"""Shows flow as colours, as Middlebury does: the hue is the direction, the saturation the length.

S. Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011.
"""

import numpy as np

# The wheel of hues: from one colour to the next in so many steps. Eyes tell some hues apart better
# than others, so the steps are uneven.
ARCS = (
    ((255, 0, 0), (255, 255, 0), 15),
    ((255, 255, 0), (0, 255, 0), 6),
    ((0, 255, 0), (0, 255, 255), 4),
    ((0, 255, 255), (0, 0, 255), 11),
    ((0, 0, 255), (255, 0, 255), 13),
    ((255, 0, 255), (255, 0, 0), 6),
)
WHEEL = (
    np.concatenate([np.linspace(start, stop, steps, endpoint=False) for start, stop, steps in ARCS])
    / 255
)


def flow_to_rgb(flow: np.ndarray, full_colour: float) -> np.ndarray:
    """Converts flow in pixels [..., 2] to RGB, uint8 [..., 3].

    No motion is white. Motion to the right is red, down yellow, to the left cyan-blue, and up
    violet.

    Args:
      flow: in pixels.
      full_colour: length of the flow with full saturation; longer flow is darker.
    """
    u, v = flow[..., 0] / full_colour, flow[..., 1] / full_colour
    length = np.hypot(u, v)[..., None]
    place = np.arctan2(-v, -u) / np.pi  # From -1 to 1, once around the wheel.
    place = (place + 1) / 2 * (len(WHEEL) - 1)
    low = np.floor(place).astype(int)
    share = (place - low)[..., None]
    hue = (1 - share) * WHEEL[low] + share * WHEEL[(low + 1) % len(WHEEL)]
    shown = np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return np.rint(255 * shown).astype(np.uint8)
