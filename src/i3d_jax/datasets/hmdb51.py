"""HMDB-51 (Kuehne et al. 2011), from the videos and the 70/30 lists as they are shipped; a config per split."""

from typing import ClassVar

from i3d_jax.datasets import annotations, clips


class HMDB51(clips.OfficialSplits):
    """51 human actions; of each, 70 videos to train on and 30 to test on."""

    name = "hmdb51"
    # Its files are AVI with B-frames.
    FAULTS: ClassVar = {"1": "made with the fault that B-frames in AVI came out of order"}
    read = staticmethod(annotations.hmdb51)
