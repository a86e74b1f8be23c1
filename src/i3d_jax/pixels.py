"""Frames as arrays: cropped, looped, and from bytes and pixels to what networks take. See `video` for what the bytes mean."""

import numpy as np

MAX_FLOW = 20.0  # Pixels; the paper's truncation.


def crop(video: np.ndarray, size: int) -> np.ndarray:
    """Cuts the size x size window in the centre out of [T, H, W, C]."""
    height, width = video.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} out of frames of {height}x{width}")
    top, left = (height - size) // 2, (width - size) // 2
    return video[:, top : top + size, left : left + size]


def to_unit(frames):
    """uint8 frames, of NumPy or JAX, as the networks take them: float32, RGB in [-1, 1] and flow / 20."""
    if frames.shape[-1] == 2:
        return (frames.astype(np.float32) - 128) / 127
    return frames.astype(np.float32) / 127.5 - 1


def flow_unit(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels as the networks take it: float32, truncated to [-20, 20] and divided by 20 (paper, section 3)."""
    return (np.clip(flow, -MAX_FLOW, MAX_FLOW) / MAX_FLOW).astype(np.float32)


def flow_bytes(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels [..., 2] as uint8, truncated to [-20, 20] (see `video`)."""
    return np.rint(128 + 127 / MAX_FLOW * np.clip(flow, -MAX_FLOW, MAX_FLOW)).astype(np.uint8)


def loop(video: np.ndarray, frames: int) -> np.ndarray:
    """Repeats a video from its start until it has `frames` frames, or cuts it there."""
    return video[:frames] if len(video) >= frames else video[np.arange(frames) % len(video)]
