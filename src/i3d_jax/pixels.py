"""Frames as arrays: cropping, looping, and the values that networks take.

For the meaning of the bytes see `i3d_jax.video`.
"""

import numpy as np

MAX_FLOW = 20.0  # Pixels; the paper's truncation.


def crop(video: np.ndarray, size: int) -> np.ndarray:
    """Crops the centre of a video.

    Args:
      video: [T, H, W, C].
      size: height and width of the result.

    Raises:
      ValueError: the frames are smaller than the crop.
    """
    height, width = video.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} out of frames of {height}x{width}")
    top, left = (height - size) // 2, (width - size) // 2
    return video[:, top : top + size, left : left + size]


def to_unit(frames):
    """Converts uint8 frames to what networks take: float32, RGB in [-1, 1] and flow / 20.

    Args:
      frames: RGB [..., 3] or flow [..., 2], a NumPy or JAX array.
    """
    if frames.shape[-1] == 2:
        return (frames.astype(np.float32) - 128) / 127
    return frames.astype(np.float32) / 127.5 - 1


def streams_to_unit(streams: dict) -> dict:
    """Converts the streams of a clip that are uint8 by `to_unit`; floats stay as they are."""
    return {
        name: to_unit(frames) if frames.dtype == np.uint8 else frames
        for name, frames in streams.items()
    }


def flow_unit(flow: np.ndarray) -> np.ndarray:
    """Converts flow in pixels to what networks take (paper, section 3).

    Returns:
      float32, truncated to [-20, 20] and divided by 20.
    """
    return (np.clip(flow, -MAX_FLOW, MAX_FLOW) / MAX_FLOW).astype(np.float32)


def flow_bytes(flow: np.ndarray) -> np.ndarray:
    """Converts flow in pixels [..., 2] to uint8, truncated to [-20, 20] (see `i3d_jax.video`)."""
    return np.rint(128 + 127 / MAX_FLOW * np.clip(flow, -MAX_FLOW, MAX_FLOW)).astype(np.uint8)


def loop(video: np.ndarray, frames: int) -> np.ndarray:
    """Repeats a video from its start, or cuts it, so that it has `frames` frames."""
    return video[:frames] if len(video) >= frames else video[np.arange(frames) % len(video)]
