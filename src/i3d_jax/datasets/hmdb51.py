"""HMDB-51 (Kuehne et al. 2011), from its published videos and 70/30 lists. A config per split."""

from typing import ClassVar

from i3d_jax.datasets import annotations, clips


class HMDB51(clips.OfficialSplits):
    """51 human actions, each with 70 videos for training and 30 for testing."""

    name = "hmdb51"
    # Its files are AVI with B-frames.
    KNOWN_PROBLEMS: ClassVar = {"1": "made with the fault that B-frames in AVI came out of order"}
    read = staticmethod(annotations.hmdb51)
