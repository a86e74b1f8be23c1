"""Video files: decoding, H.264 encoding, and the packed planes that the input pipeline reads.

`playback` decides which frame is on the screen at a given time; `decoding` turns frames into
arrays; `lengths` predicts how many there are. `capture` reads live sources, such as webcams.
`h264` writes the files that records hold, and `windows` reads crops of them as packed planes, which
`planes` unpacks on the device. `listing` finds the videos below a folder.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i3d_jax.video.decoding import (
        FPS,
        DamageWarning,
        VideoError,
        decode,
        grey,
        iter_frames,
        rgb_frames,
    )
    from i3d_jax.video.lengths import frame_rate, predicted_length

# By name, the module that has it.
_PUBLIC = {
    "FPS": "decoding",
    "DamageWarning": "decoding",
    "VideoError": "decoding",
    "decode": "decoding",
    "frame_rate": "lengths",
    "grey": "decoding",
    "iter_frames": "decoding",
    "predicted_length": "lengths",
    "rgb_frames": "decoding",
}
__all__ = [
    "FPS",
    "DamageWarning",
    "VideoError",
    "decode",
    "frame_rate",
    "grey",
    "iter_frames",
    "predicted_length",
    "rgb_frames",
]


def __getattr__(name: str) -> Any:
    """Imports the decoder on first use, so that `video.planes` runs where PyAV is not installed."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"i3d_jax.video.{_PUBLIC[name]}"), name)
