"""What the data sets share: TFDS builders of records of clips, prepared and read without TensorFlow.

A record holds one clip: H.264 at 25 frames per second with a given short side (see `h264.transcode`), its label, its id,
its number of frames and their size; in some data sets also its flow, as many frames of the same size.
"""

import abc
import functools
import pathlib
import resource
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds
from google.protobuf import message
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core import splits as splits_lib
from tensorflow_datasets.proto import tf_example_pb2

from i3d_jax import files, flow, labels, video
from i3d_jax.datasets import annotations, description, records, shards, video_files


class Source(NamedTuple):
    """What a data set is prepared from: the user's files.

    Attributes:
      videos: folder of them.
      annotations: the lists of clips, as they are published: files, or the folder that has them.
      flow: folder of flow, laid out as the videos are, of files that `python -m i3d_jax.flow` writes; None: without flow.
      tv_l1: preset that computes flow from the videos, instead.
    """

    videos: pathlib.Path
    annotations: tuple[pathlib.Path, ...]
    flow: pathlib.Path | None = None
    tv_l1: str | None = None


class Info(tfds.core.DatasetInfo):
    """TFDS's description of a data set, with checksums."""

    def initialize_from_bucket(self) -> None:
        """TFDS's asks its bucket on the network for data sets that are not prepared, and leaves a temporary folder."""

    def write_to_directory(self, dataset_info_dir: Any, all_metadata: bool = True) -> None:
        super().write_to_directory(dataset_info_dir, all_metadata)
        description.write_checksums(pathlib.Path(dataset_info_dir))


class ClipBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
    """A data set of records of clips, all of one short side in pixels.

    Args:
      source: what to prepare it from; not needed to read it.
      workers: processes that prepare it; None: this one, with threads.
      beam: options of the Apache Beam pipeline that prepares it, instead.
      others: TFDS's: config, data_dir, ...
    """

    SHORT_SIDE: ClassVar[int] = 256
    FAULTS: ClassVar[dict[str, str]] = records.FAULTS  # What is wrong with records of earlier formats.
    SELF_MADE: ClassVar[bool] = False  # Whether it is prepared from nothing.
    ANNOTATED: ClassVar[bool] = True  # Whether its videos come with lists.

    def __init__(
        self, *, source: Source | None = None, workers: int | None = None, beam: list[str] | None = None, **others
    ):
        self.source, self.workers, self.beam = source, workers, beam
        super().__init__(**others, file_format="array_record")

    @functools.cached_property
    def final(self) -> pathlib.Path:
        """Where the data set lies, or will; `data_dir` is another folder while TFDS prepares."""
        return pathlib.Path(self.data_dir)

    @property
    def config_name(self) -> str:
        assert self.builder_config is not None, "every config is listed in the class"
        return self.builder_config.name

    @property
    def full_name(self) -> str:
        return f"{self.name}/{self.config_name}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.info.features["label"].names)  # pyright: ignore - a FeaturesDict with a ClassLabel

    @property
    def streams(self) -> tuple[str, ...]:
        """What the records have of "rgb" and "flow"."""
        return ("rgb", "flow") if "flow" in self.info.features else ("rgb",)  # pyright: ignore - a FeaturesDict

    @property
    def statistics(self) -> dict[str, dict]:
        """By split what was annotated and what there is of it (see `shards.statistics`); empty before preparation."""
        return self._metadata.get("splits", {})

    @property
    def flow_recipe(self) -> dict | None:
        """How the records' flow was computed (see `flow.recipe`); None: that is not known, or there is none."""
        return self._metadata.get("flow")

    @property
    def format(self) -> str:
        """The format of the records that are prepared, see `records.FORMAT`."""
        return self._metadata.get("format", "1")  # The first did not say it.

    @property
    def fault(self) -> str | None:
        """What is wrong with the records that an earlier version prepared; None: nothing that is known."""
        reason = self.FAULTS.get(self.format) if self.final.exists() else None
        return reason and f"{self.final}: prepared by an earlier version, {reason}; prepare it again"

    @property
    def _metadata(self) -> dict[str, Any]:
        return dict(self.info.metadata or {})  # pyright: ignore - a MetadataDict

    def records(self, split: str) -> "Records":
        """The clips of a split, by index."""
        _allow_open_files(sum(each.num_shards for each in self.info.splits.values()) + 200)
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        examples = self.as_data_source(split, deserialize_method=method)  # pyright: ignore - hidden by a decorator
        return Records(examples, f"{split} in {self.final}", len(self.class_names))

    @abc.abstractmethod
    def classes(self) -> Sequence[str]:
        """The names of the classes, in the order of the labels."""

    def splits(self) -> Sequence[str]:
        """The names of the splits that are prepared or, of a data set that makes its videos itself, will be."""
        return list(self.info.splits)

    def has_flow(self) -> bool:
        """Whether what is prepared has flow, if nothing is prepared yet."""
        return self.source is not None and (self.source.flow is not None or self.source.tv_l1 is not None)

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        """What the lists of clips say."""
        raise shards.PrepareError(f"{self.full_name} makes its videos itself")

    def clips(self, folder: pathlib.Path) -> list[video_files.Clip]:
        """All clips that are annotated; `folder` is for files that a data set makes itself."""
        if self.source is None:
            raise shards.PrepareError(
                f"{self.full_name} is prepared from your files, by python -m i3d_jax.datasets prepare"
            )
        return video_files.clips(self.rows(self.source.annotations), self.source.videos, self.source.flow)

    def _info(self) -> Info:
        if self.final.exists():  # What is prepared says what it has.
            classes = self.classes() if self.ANNOTATED else None
            found = description.read_description(self.final, str(self.version), classes)
        else:
            found = description.Description(tuple(self.classes()), self.has_flow())
        return Info(
            builder=self,
            features=records.record_features(found.classes, found.flow),
            supervised_keys=("video", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager, download_config=None):
        own = pathlib.Path(dl_manager.download_dir) / self.name / self.config_name / str(self.version)
        tv_l1 = None if self.source is None else self.source.tv_l1
        recipe = self._flow_recipe() if tv_l1 is None else flow.recipe(tv_l1)
        result = shards.prepare(
            self.clips(own),
            name=self.name,
            parts=self.final.with_name(f"{self.version}.parts"),
            folder=pathlib.Path(self.data_dir),
            settings=records.Settings(self.class_names, self.SHORT_SIDE, "flow" in self.streams, tv_l1, recipe),
            processes=self.workers,
            beam=self.beam,
        )
        splits = []
        for split, found in result.items():
            template = self._get_filename_template(split)
            splits.append(tfds.core.SplitInfo(split, found.shard_lengths, found.bytes, template))
        self.info.set_splits(splits_lib.SplitDict(splits))
        metadata: Any = self.info.metadata
        metadata["splits"] = {split: found.statistics for split, found in result.items()}
        metadata["format"] = records.FORMAT
        if recipe is not None:
            metadata["flow"] = recipe

    def _flow_recipe(self) -> dict | None:
        """How the folder of flow says that it was made, if it does.

        Raises:
          PrepareError: it is not flow that these records can have.
        """
        path = None if self.source is None or self.source.flow is None else self.source.flow / flow.RECIPE_FILE
        if path is None or not path.exists():
            return None
        try:
            found = files.read_json(path)
        except ValueError as error:
            raise shards.PrepareError(str(error)) from None
        for name, wanted in (("format", "h264"), ("short_side", self.SHORT_SIDE), ("frames", None)):
            if found.pop(name, wanted) != wanted:
                raise shards.PrepareError(f"{path}: {name} is {files.read_json(path)[name]!r}, wanted {wanted!r}")
        return {name: found[name] for name in flow.recipe("opencv") if name in found}

    def prepare(self, wait: bool = False) -> None:
        """Prepares the data set, or goes on with that; see `shards.prepare`.

        Args:
          wait: for another process that does it, which is an error otherwise.
        """
        with shards.lock_data_set(self.final, wait):
            if not self.final.exists():
                with files.naming_errors(self.final):
                    config = tfds.download.DownloadConfig(try_download_gcs=False)
                    self.download_and_prepare(download_config=config)
            shards.remove_parts(self.final)


class OfficialSplits(ClipBuilder, skip_registration=True):
    """A data set with three official splits, each of which is a config."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=str(number), description=f"Split {number}.") for number in (1, 2, 3)
    ]
    # Reads the folder of lists: annotations.ucf101 for one.
    read: ClassVar[Callable[[pathlib.Path, int, Sequence[str]], list[annotations.Row]]]

    def classes(self) -> Sequence[str]:
        return labels.names(self.name)

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        if len(lists) != 1:
            raise annotations.AnnotationError(f"{len(lists)} annotations, wanted the one folder of lists")
        return type(self).read(lists[0], int(self.config_name), self.classes())


class Records(Sequence[dict]):
    """The clips of a split: "video" and perhaps "flow", the bytes of H.264 files, "label", "id", "frames", "height", "width".

    TFDS decodes a feature by way of arrays, which takes longer than reading it: these values are the records' own.
    """

    def __init__(self, examples: Any, where: str, classes: int):
        self.examples, self.where, self.classes = examples, where, classes

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):  # pyright: ignore - never a slice
        if not 0 <= index < len(self):  # Which ends an iteration.
            raise IndexError(f"record {index} of {len(self)}")
        try:
            example = tf_example_pb2.Example.FromString(self.examples[index])  # pyright: ignore - a generated module
            features = example.features.feature
            record = {name: getattr(each, each.WhichOneof("kind")).value[0] for name, each in features.items()}
            if not 0 <= record["label"] < self.classes:  # A loss would not be finite.
                raise ValueError(f"label {record['label']} of {self.classes} classes")
            return record | {"id": record["id"].decode()}
        # A shard that is damaged or gone.
        except (RuntimeError, KeyError, TypeError, IndexError, ValueError, message.DecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise video.VideoError(f"record {index} of {self.where}", f"cannot be read: {reason}") from None


def _allow_open_files(number: int) -> None:
    """Lets this process, and those it starts, have so many files open: readers keep every shard's, those of several splits at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < number:
        if hard != unlimited and hard < number:
            raise OSError(f"{number} files must be open at once, the system's limit is {hard}: see `ulimit -n`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
