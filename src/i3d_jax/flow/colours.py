"""Flow as colours: the direction is the hue, the length the saturation, as Middlebury shows it.

S. Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011.
"""

import numpy as np

# From one primary or secondary colour to the next on the wheel, in how many steps: perception asks for uneven ones.
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


def colours(flow: np.ndarray, most: float) -> np.ndarray:
    """Flow in pixels [..., 2] as RGB, uint8 [..., 3]: white where nothing moves, dark where it is longer than `most`.

    To the right is red, down yellow, to the left cyan-blue, up violet.
    """
    u, v = flow[..., 0] / most, flow[..., 1] / most
    length = np.hypot(u, v)[..., None]
    place = np.arctan2(-v, -u) / np.pi  # -1 to 1, once around the wheel.
    place = (place + 1) / 2 * (len(WHEEL) - 1)
    low = np.floor(place).astype(int)
    share = (place - low)[..., None]
    hue = (1 - share) * WHEEL[low] + share * WHEEL[(low + 1) % len(WHEEL)]
    shown = np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return np.rint(255 * shown).astype(np.uint8)
