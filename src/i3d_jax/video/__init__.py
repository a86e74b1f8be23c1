"""Video files: frames as a player shows them, and H.264 as the data sets store it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i3d_jax.video.decoding import FPS, DamageWarning, VideoError, decode, grey, shown

__all__ = ["FPS", "DamageWarning", "VideoError", "decode", "grey", "shown"]


def __getattr__(name: str) -> Any:
    """Imports the decoder when it is first used: `video.planes` runs where PyAV is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("i3d_jax.video.decoding"), name)
