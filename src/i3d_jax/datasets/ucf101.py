"""UCF-101 (Soomro et al. 2012), from the videos and `ucfTrainTestlist` as they are shipped; a config per split."""

import pathlib
from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from i3d_jax.datasets import annotations, clips


class UCF101(clips.ClipBuilder):
    """101 human actions, 13,320 videos."""

    NAME = "ucf101"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=str(number), description=f"Split {number}.") for number in (1, 2, 3)
    ]

    def classes(self) -> list[str]:
        return clips.class_names("ucf101")

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        return annotations.ucf101(clips.one(lists), int(self.config_name), self.classes())
