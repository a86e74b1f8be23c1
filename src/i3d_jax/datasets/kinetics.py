"""Kinetics-400, -600 and -700-2020, from the public CSVs and clips that you have downloaded.

Clips may lie as common download tools leave them (see `video_files`). Longer ones are cut to the
annotated duration. Classes are in alphabetical order, that of the published logits.

Kay et al. 2017, Carreira et al. 2018, Smaira et al. 2020.
"""

import pathlib
from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from i3d_jax import labels
from i3d_jax.datasets import annotations, clips


class Kinetics(clips.ClipBuilder):
    """Human actions in YouTube videos, about 10 seconds a clip."""

    name = "kinetics"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="400", description="400 classes."),
        tfds.core.BuilderConfig(name="600", description="600 classes."),
        tfds.core.BuilderConfig(name="700_2020", description="700 classes, the edition of 2020."),
    ]

    def classes(self) -> Sequence[str]:
        return labels.names(f"kinetics_{self.config_name}")

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        return annotations.kinetics(lists, self.classes())
