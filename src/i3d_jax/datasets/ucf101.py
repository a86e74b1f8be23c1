"""UCF-101 (Soomro et al. 2012), from its published videos and lists. A config per split."""

from i3d_jax.datasets import annotations, clips


class UCF101(clips.OfficialSplits):
    """101 human actions, 13,320 videos."""

    name = "ucf101"
    read = staticmethod(annotations.ucf101)
