"""Which frames of a video a row of features covers, and when these are shown; pure arithmetic.

Frames are those of the video at the rate of the extraction. A span is a pair: the first frame of a
row, and the frame after its last one.
"""

from typing import NamedTuple

import numpy as np

PARTIAL = "drop", "pad", "loop"
PER_FRAME = "nearest", "linear"


class Dense(NamedTuple):
    """The rows that a layer has in one pass over the whole video.

    Row s covers the frames from `step` * s on, `size` of them or up to the video's end.

    Attributes:
      step: frames from one row to the next.
      size: frames that a row covers.
    """

    step: int = 8
    size: int = 16

    def rows(self, frames: int) -> int:
        """The number of rows of a video of so many frames."""
        return max(0, -(-frames // self.step) - (self.size // self.step - 1))

    def spans(self, frames: int) -> np.ndarray:
        """The spans of the rows of a video of so many frames, int64 [rows, 2]."""
        starts = self.step * np.arange(self.rows(frames))
        return np.stack([starts, np.minimum(starts + self.size, frames)], -1)


class Windows(NamedTuple):
    """Windows that the network sees one by one, each as if it were a whole video.

    Attributes:
      size: frames of a window.
      stride: frames from one window to the next.
      partial: what becomes of a last window that the video's end cuts: it is left out ("drop"),
        its last frame is repeated ("pad"), or its frames are, from its first on ("loop").
      following: frames that the video must have after a window that is not partial, or it is left
        out. Programs that compute flow for pairs of frames want one.
    """

    size: int
    stride: int
    partial: str = "pad"
    following: int = 0

    def rows(self, frames: int) -> int:
        """The number of windows of a video of so many frames."""
        if self.partial == "drop":
            return max(0, (frames - self.following - self.size) // self.stride + 1)
        # Windows up to the first that reaches the end; each has a frame of its own.
        reaching = max(0, -(-(frames - self.size) // self.stride)) + 1
        return min(reaching, -(-frames // self.stride))

    def spans(self, frames: int) -> np.ndarray:
        """The spans of a video's windows, without what fills up the last: int64 [rows, 2]."""
        starts = self.stride * np.arange(self.rows(frames))
        return np.stack([starts, np.minimum(starts + self.size, frames)], -1)

    def filled(self, found: int) -> np.ndarray:
        """The frames that a window is made of, counted from its first.

        Args:
          found: frames that the video has from the window's first on, at most `size` of them.

        Returns:
          int64 [size].
        """
        wanted = np.arange(self.size)
        return wanted % found if self.partial == "loop" else np.minimum(wanted, found - 1)


def each_frame(frames: int) -> np.ndarray:
    """The spans of rows of one frame each, int64 [frames, 2]."""
    return np.arange(frames)[:, None] + np.arange(2)


def seconds(spans: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When rows start and end, and their centres, float64 [rows] each.

    Frame i is on the screen from i / fps to (i + 1) / fps.

    Args:
      spans: of the rows.
      fps: frames per second.
    """
    start, end = (spans / fps).T
    return start, end, spans.mean(-1) / fps


def per_frame(features: np.ndarray, spans: np.ndarray, frames: int, method: str) -> np.ndarray:
    """Makes one row per frame out of rows that cover several.

    Args:
      features: [rows, ...], at least one row.
      spans: of the rows, in order.
      frames: of the video.
      method: "nearest" takes the row whose centre is nearest to the frame's centre, the earlier
        one of two; "linear" interpolates between centres. Beyond the first and the last centre
        both repeat the row there.

    Returns:
      [frames, ...], of the features' type.
    """
    centres = spans.mean(-1)
    wanted = np.arange(frames) + 0.5
    after = np.searchsorted(centres, wanted).clip(1, max(1, len(centres) - 1))
    before, after = after - 1, np.minimum(after, len(centres) - 1)
    gap = np.where(after > before, centres[after] - centres[before], 1.0)
    share = ((wanted - centres[before]) / gap).clip(0, 1)
    if method == "nearest":
        return features[np.where(share > 0.5, after, before)]
    share = share.astype(features.dtype).reshape(-1, *[1] * (features.ndim - 1))
    # Exact at both ends.
    return features[before] * (1 - share) + features[after] * share
