"""Video files: decoding, H.264 encoding, and the packed planes that the input pipeline reads.

`playback` decides which frame is on the screen at a given time; `decoding` turns frames into
arrays. `h264` writes the files that records hold, and `windows` reads crops of them as packed
planes, which `planes` unpacks on the device. `capture` reads live sources, such as webcams.
`listing` finds the videos below a folder.
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
    )

__all__ = ["FPS", "DamageWarning", "VideoError", "decode", "grey", "iter_frames"]


def __getattr__(name: str) -> Any:
    """Imports the decoder on first use, so that `video.planes` runs where PyAV is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("i3d_jax.video.decoding"), name)
