"""The TFDS builder that all data sets share; it prepares and reads records without TensorFlow.

A record holds one clip: H.264 at 25 frames per second with a given short side (see
`h264.transcode`), its label, its id, its number of frames and their size. In some data sets it also
holds the clip's flow, with at least as many frames of the same size.
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
    """The user's files that a data set is prepared from.

    Attributes:
      videos: folder of the videos.
      annotations: the published lists of clips: files, or the folder that has them.
      flow: folder of flow files that `python -m i3d_jax.flow` wrote, laid out as the videos are.
        None: there are none.
      flow_preset: one of `flow.PRESETS`, to compute flow from the videos instead. None: it is not
        computed.
    """

    videos: pathlib.Path
    annotations: tuple[pathlib.Path, ...]
    flow: pathlib.Path | None = None
    flow_preset: str | None = None


class Info(tfds.core.DatasetInfo):
    """TFDS's description of a data set, with checksums."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS's method asks the network, and leaves a temporary folder."""

    def write_to_directory(self, dataset_info_dir: Any, all_metadata: bool = True) -> None:
        super().write_to_directory(dataset_info_dir, all_metadata)
        description.write_checksums(pathlib.Path(dataset_info_dir))


class ClipBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
    """A data set of clips whose frames all have one short side.

    Args:
      source: the files to prepare it from; not needed for reading.
      workers: number of processes that prepare it. None: this process, with threads.
      beam: options of an Apache Beam pipeline, which prepares it instead. None: no Beam.
      others: arguments of TFDS's builder: config, data_dir, ...

    Attributes:
      SHORT_SIDE: pixels of the frames' shorter side.
      KNOWN_PROBLEMS: problems of records of earlier formats, by format.
      GENERATED: whether the data set generates its videos, and needs no `source`.
      ANNOTATED: whether its videos come with lists of clips.
    """

    SHORT_SIDE: ClassVar[int] = 256
    KNOWN_PROBLEMS: ClassVar[dict[str, str]] = records.KNOWN_PROBLEMS
    GENERATED: ClassVar[bool] = False
    ANNOTATED: ClassVar[bool] = True

    def __init__(
        self,
        *,
        source: Source | None = None,
        workers: int | None = None,
        beam: list[str] | None = None,
        **others,
    ):
        self.source, self.workers, self.beam = source, workers, beam
        super().__init__(**others, file_format="array_record")

    @functools.cached_property
    def final(self) -> pathlib.Path:
        """The data set's folder. While TFDS prepares it, `data_dir` is another folder."""
        return pathlib.Path(self.data_dir)

    @property
    def config_name(self) -> str:
        assert self.builder_config is not None, "every config is listed in the class"
        return self.builder_config.name

    @property
    def full_name(self) -> str:
        """Data set and config, "kinetics/400"."""
        return f"{self.name}/{self.config_name}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the prepared data set, in the order of the labels."""
        label: Any = self.info.features["label"]  # pyright: ignore - a FeaturesDict
        return tuple(label.names)

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of the records: "rgb", and "flow" if they have it."""
        features: Any = self.info.features
        return ("rgb", "flow") if "flow" in features else ("rgb",)

    @property
    def statistics(self) -> dict[str, dict]:
        """Counts of clips by split (see `shards.statistics`); empty before preparation."""
        return self._metadata.get("splits", {})

    @property
    def flow_recipe(self) -> dict | None:
        """How the records' flow was computed (see `flow.recipe`); None: no flow, or unknown."""
        return self._metadata.get("flow")

    @property
    def format(self) -> str:
        """The format of the prepared records (see `records.FORMAT`)."""
        return self._metadata.get("format", "1")  # Data sets of format 1 do not state it.

    @property
    def known_problem(self) -> str | None:
        """A warning if an earlier version prepared the records with a known problem."""
        reason = self.KNOWN_PROBLEMS.get(self.format) if self.final.exists() else None
        if reason is None:
            return None
        return f"{self.final}: prepared by an earlier version, {reason}; prepare it again"

    @property
    def _metadata(self) -> dict[str, Any]:
        return dict(self.info.metadata or {})  # pyright: ignore - a MetadataDict

    def records(self, split: str) -> "Records":
        """The records of a split, by index.

        Args:
          split: as TFDS writes it: "train", "validation[:100]", ...
        """
        _raise_open_file_limit(sum(each.num_shards for each in self.info.splits.values()) + 200)
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        examples = self.as_data_source(split, deserialize_method=method)  # pyright: ignore - hidden by a decorator
        return Records(examples, f"{split} in {self.final}", len(self.class_names))

    @abc.abstractmethod
    def classes(self) -> Sequence[str]:
        """The names of the classes, in the order of the labels."""

    def splits(self) -> Sequence[str]:
        """The names of the prepared splits; of a generated data set, those that it will have."""
        return list(self.info.splits)

    def will_have_flow(self) -> bool:
        """Whether records will have flow, when the data set is prepared."""
        return self.source is not None and (
            self.source.flow is not None or self.source.flow_preset is not None
        )

    def flow_preset(self) -> str | None:
        """The preset of `flow.PRESETS` to compute flow with; None: it is not computed."""
        return None if self.source is None else self.source.flow_preset

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        """Reads the lists of clips."""
        raise shards.PrepareError(f"{self.full_name} generates its own videos")

    def clips(self, folder: pathlib.Path) -> list[video_files.Clip]:
        """All annotated clips.

        Args:
          folder: where a generated data set may write its videos.
        """
        if self.source is None:
            raise shards.PrepareError(
                f"{self.full_name} is prepared from your files: "
                "run python -m i3d_jax.datasets prepare"
            )
        return video_files.clips(
            self.rows(self.source.annotations), self.source.videos, self.source.flow
        )

    def _info(self) -> Info:
        if self.final.exists():
            classes = self.classes() if self.ANNOTATED else None
            found = description.read_description(self.final, str(self.version), classes)
        else:
            found = description.Description(tuple(self.classes()), self.will_have_flow())
        return Info(
            builder=self,
            features=records.record_features(found.classes, found.flow),
            supervised_keys=("video", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager, download_config=None):
        downloads = pathlib.Path(dl_manager.download_dir)
        preset = self.flow_preset()
        recipe = self._flow_folder_recipe() if preset is None else flow.recipe(preset)
        result = shards.prepare(
            self.clips(downloads / self.name / self.config_name / str(self.version)),
            name=self.name,
            parts=self.final.with_name(f"{self.version}.parts"),
            folder=pathlib.Path(self.data_dir),
            settings=records.Settings(
                self.class_names, self.SHORT_SIDE, "flow" in self.streams, preset, recipe
            ),
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

    def _flow_folder_recipe(self) -> dict | None:
        """Reads from the folder of flow how it was made; None if it does not say.

        Raises:
          PrepareError: these records cannot have such flow.
        """
        if self.source is None or self.source.flow is None:
            return None
        path = self.source.flow / flow.RECIPE_FILE
        if not path.exists():
            return None
        try:
            found = files.read_json(path)
        except ValueError as error:
            raise shards.PrepareError(str(error)) from None
        for name, wanted in (("format", "h264"), ("short_side", self.SHORT_SIDE), ("frames", None)):
            if found.pop(name, wanted) != wanted:
                raise shards.PrepareError(
                    f"{path}: {name} is {files.read_json(path)[name]!r}, wanted {wanted!r}"
                )
        return {name: found[name] for name in flow.recipe("opencv") if name in found}

    def prepare(self, wait: bool = False) -> None:
        """Prepares the data set, or resumes its preparation (see `shards.prepare`).

        Args:
          wait: whether to wait if another process prepares it. Otherwise that is an error.
        """
        with shards.lock_data_set(self.final, wait):
            if not self.final.exists():
                with files.naming_errors(self.final):
                    config = tfds.download.DownloadConfig(try_download_gcs=False)
                    self.download_and_prepare(download_config=config)
            shards.remove_parts(self.final)


class OfficialSplits(ClipBuilder, skip_registration=True):
    """A data set with three official train and test splits; each is a config.

    Attributes:
      read: reads the folder of lists, as `annotations.ucf101` does.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=str(number), description=f"Split {number}.")
        for number in (1, 2, 3)
    ]
    read: ClassVar[Callable[[pathlib.Path, int, Sequence[str]], list[annotations.Row]]]

    def classes(self) -> Sequence[str]:
        return labels.names(self.name)

    def rows(self, lists: Sequence[pathlib.Path]) -> list[annotations.Row]:
        if len(lists) != 1:
            raise annotations.AnnotationError(
                f"{len(lists)} annotations, wanted the one folder of lists"
            )
        return type(self).read(lists[0], int(self.config_name), self.classes())


class Records(Sequence[dict]):
    """The records of a split: dicts with the values of `records.record_features`.

    "video" and "flow" are the bytes of H.264 files. TFDS's own decoding goes through arrays, which
    takes longer than reading; here the values are taken from the record as they are.

    Args:
      examples: the serialized records, by index.
      where: name of the split, for messages.
      classes: number of classes.
    """

    def __init__(self, examples: Any, where: str, classes: int):
        self.examples, self.where, self.classes = examples, where, classes

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):  # pyright: ignore - never a slice
        if not 0 <= index < len(self):  # An IndexError ends an iteration.
            raise IndexError(f"record {index} of {len(self)}")
        try:
            example = tf_example_pb2.Example.FromString(self.examples[index])  # pyright: ignore - a generated module
            features = example.features.feature
            record = {
                name: getattr(each, each.WhichOneof("kind")).value[0]
                for name, each in features.items()
            }
            if not 0 <= record["label"] < self.classes:  # The loss would not be finite.
                raise ValueError(f"label {record['label']} of {self.classes} classes")
            return record | {"id": record["id"].decode()}
        # The shard is damaged or gone.
        except (
            RuntimeError,
            KeyError,
            TypeError,
            IndexError,
            ValueError,
            message.DecodeError,
        ) as error:
            reason = " ".join(str(error).split())[:300]
            raise video.VideoError(
                f"record {index} of {self.where}", f"cannot be read: {reason}"
            ) from None


def _raise_open_file_limit(number: int) -> None:
    """Allows so many open files, here and in child processes: readers keep every shard open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < number:
        if hard != unlimited and hard < number:
            raise OSError(
                f"{number} files must be open at once, but the system allows {hard}: "
                "see `ulimit -n`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
