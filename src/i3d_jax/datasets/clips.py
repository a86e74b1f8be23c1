"""What the data sets share: folders of clips in Kinetics' layout, and the records they are prepared into.

A record holds one clip: H.264 at 25 frames per second with a given short side (see `video.encode`), its label, its id
and its number of frames; in some data sets also its flow, as many frames of the same size. Reading them needs no TensorFlow.
"""

import concurrent.futures
import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from i3d_jax import video

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One annotated clip of a folder in Kinetics' layout."""

    id: str
    label: str
    split: str
    path: pathlib.Path
    flow: pathlib.Path | None = None


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of records of clips, all of one short side in pixels."""

    SHORT_SIDE: ClassVar[int]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.info.features["label"].names)  # pyright: ignore - a FeaturesDict with a ClassLabel

    @property
    def streams(self) -> tuple[str, ...]:
        """What the records have of "rgb" and "flow"."""
        return ("rgb", "flow") if "flow" in self.info.features else ("rgb",)  # pyright: ignore - a FeaturesDict

    def records(self, split: str) -> Sequence[dict]:
        """The examples of a split, by index; their "video" and "flow" are the bytes of H.264 files."""
        return self.as_data_source(split)  # pyright: ignore - hidden by a decorator


def features(classes: list[str], flow: bool = False) -> tfds.features.FeaturesDict:
    # Not `features.Video`, which imports TensorFlow.
    file = tfds.features.Tensor(shape=(), dtype=np.object_)
    return tfds.features.FeaturesDict(
        {
            "video": file,
            **({"flow": file} if flow else {}),
            "label": tfds.features.ClassLabel(names=classes),
            "id": tfds.features.Text(),
            "frames": np.int32,
        }
    )


def file_name(youtube_id: str, start: int, end: int) -> str:
    """Kinetics' name for a clip, its times in seconds."""
    return f"{youtube_id}_{start:06d}_{end:06d}.mp4"


def write_annotations(path: pathlib.Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_annotations(path: pathlib.Path, videos: pathlib.Path, flow: pathlib.Path | None = None) -> list[Clip]:
    """Reads Kinetics' CSV; the clips lie in `videos`/<split>/<label>/<id>_<start>_<end>.mp4, and in `flow` their flow.

    Raises:
      ValueError: a column is missing.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; found {reader.fieldnames}")
        clips = []
        for row in reader:
            name = file_name(row["youtube_id"], int(row["time_start"]), int(row["time_end"]))
            place = pathlib.Path(row["split"], row["label"], name)
            its_flow = None if flow is None else flow / place
            clips.append(Clip(name.removesuffix(".mp4"), row["label"], row["split"], videos / place, its_flow))
        return clips


def transcoded(clips: list[Clip], short_side: int) -> Iterator[tuple[str, dict]]:
    """Yields (key, example) per clip in their order, transcoded to what records hold; uses every core.

    Flow is copied: its files are what `video.encode` makes of it.
    """

    def record(clip: Clip) -> tuple[str, dict]:
        frames = video.decode(clip.path, short_side=short_side, threads=1)
        height, width = (size - size % 2 for size in frames.shape[1:3])
        data = video.encode(frames[:, :height, :width])
        example = {"video": data, "label": clip.label, "id": clip.id, "frames": len(frames)}
        return clip.id, example if clip.flow is None else example | {"flow": clip.flow.read_bytes()}

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(clips), 64):  # Not all at once: a data set's records outgrow memory.
            yield from pool.map(record, clips[start : start + 64])
