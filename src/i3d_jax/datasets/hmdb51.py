"""HMDB-51 (Kuehne et al. 2011), from the videos and the 70/30 lists as they are shipped; a config per split."""

import pathlib
from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from i3d_jax.datasets import annotations, clips


class HMDB51(clips.ClipBuilder):
    """51 human actions; of each, 70 videos to train on and 30 to test on."""

    NAME = "hmdb51"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=str(number), description=f"Split {number}.") for number in (1, 2, 3)
    ]

    def classes(self) -> list[str]:
        return clips.class_names("hmdb51")

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        return annotations.hmdb51(clips.one(lists), int(self.config_name), self.classes())
