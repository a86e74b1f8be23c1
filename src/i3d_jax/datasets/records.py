"""Makes the record of a clip from the clip's files."""

import contextlib
import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import av.error
import numpy as np
import tensorflow_datasets as tfds

from i3d_jax import flow, pixels, video
from i3d_jax.datasets.video_files import Clip
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.video import decoding, h264

# Version of the records, which data sets state (`ClipBuilder.format`). Unfinished shards of an
# earlier one are written again.
FORMAT = "2"
# Known problems of earlier formats. Data sets of these can still be read, with a warning.
KNOWN_PROBLEMS = {
    "1": "which showed frames of sources below 25 frames per second or of varying rate too early, "
    "those of AVI files with B-frames out of order, and mirrored videos unmirrored"
}


class Settings(NamedTuple):
    """What the records of a data set hold.

    Attributes:
      classes: names of the classes, in the order of the labels.
      short_side: pixels of the frames' shorter side.
      flow: whether records have flow: copied from the clips' flow files, or computed if there is a
        `flow_preset`.
      flow_preset: one of `flow.PRESETS`; None: flow is not computed.
      recipe: how the flow is or was made (see `flow.recipe`); None: unknown.
    """

    classes: tuple[str, ...]
    short_side: int
    flow: bool
    flow_preset: str | None = None
    recipe: dict | None = None


def record_features(classes: Sequence[str], flow: bool = False) -> tfds.features.FeaturesDict:
    """The names and types of a record's values.

    Args:
      classes: names of the classes.
      flow: whether records have flow.
    """
    # Not `features.Video`, which imports TensorFlow.
    file = tfds.features.Tensor(shape=(), dtype=np.object_)
    return tfds.features.FeaturesDict(
        {
            "video": file,
            **({"flow": file} if flow else {}),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "id": tfds.features.Text(),
            "frames": np.int32,
            "height": np.int32,
            "width": np.int32,
        }
    )


def make_record(clip: Clip, path: str, settings: Settings) -> dict:
    """Transcodes one of a clip's files, and adds flow if the records have it.

    Args:
      clip: the clip.
      path: one of its video files.
      settings: of the data set.

    Returns:
      the values of `record_features`.

    Raises:
      video.VideoError: the file cannot be used; its `reason` says why.
    """
    try:
        transcoded = h264.transcode(path, short_side=settings.short_side, seconds=clip.seconds)
        record = {
            "label": clip.label,
            "id": clip.id,
            "video": transcoded.data,
            "frames": transcoded.frames,
            "height": transcoded.height,
            "width": transcoded.width,
        }
        if settings.flow_preset is not None:
            return record | {"flow": compute_flow(clip, path, settings)}
        if settings.flow:
            return record | {"flow": read_flow(clip, path, transcoded)}
        return record
    except av.error.FFmpegError as error:  # For example, frames are larger than H.264 allows.
        raise video.VideoError(path, f"cannot be encoded: {error.strerror}") from None


def compute_flow(clip: Clip, path: str, settings: Settings) -> bytes:
    """Computes the TV-L1 flow of one of a clip's files, as an H.264 file.

    It runs on one thread: other clips are in work at the same time.
    """
    assert settings.flow_preset is not None
    frames = None if clip.seconds is None else decoding.frame_count(clip.seconds)
    grey = video.grey(path, short_side=settings.short_side, frames=frames, threads=1, strict=True)
    flows = flow_of_frames(grey, flow.PRESETS[settings.flow_preset], threads=1)
    return h264.encode(map(pixels.flow_bytes, flows))


def read_flow(clip: Clip, path: str, transcoded: h264.Transcoded) -> bytes:
    """Reads the flow file of a clip.

    Of several, the first that fits is taken, beginning with the one whose path is most like the
    video's.

    Args:
      clip: the clip, with its flow files.
      path: the video file.
      transcoded: the transcoded video.

    Raises:
      video.VideoError: there is no flow file, or none fits the video.
    """
    problem = video.VideoError(clip.id, "its flow is missing")
    best_first = sorted(clip.flows, key=lambda each: -_common_suffix(each, path))
    for number, each in enumerate(best_first):
        try:
            return _read_fitting_flow(each, transcoded)
        except video.VideoError as error:
            problem = problem if number else error
    raise problem


def _read_fitting_flow(path: str, transcoded: h264.Transcoded) -> bytes:
    try:
        count, height, width = flow_shape(path)
    except video.VideoError as error:
        raise video.VideoError(path, f"its flow {error.reason}") from None
    wanted = transcoded.height, transcoded.width
    if count < transcoded.frames or (height, width) != wanted:
        raise video.VideoError(
            path,
            f"its flow does not fit: {count} frames of {height}x{width}, "
            f"the video has {transcoded.frames} of {wanted[0]}x{wanted[1]}",
        )
    return pathlib.Path(path).read_bytes()


def _common_suffix(*paths: str) -> int:
    """The number of path components that two paths share at their ends, apart from extensions."""
    ends = (reversed(pathlib.PurePath(path).with_suffix("").parts) for path in paths)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends))))


def check_storage(*paths: str) -> None:
    """Checks that files which could not be decoded can be read.

    Otherwise a disk that went away would look like damaged videos.

    Raises:
      OSError: a file cannot be read.
    """
    for path in paths:
        with contextlib.suppress(PermissionError), open(path, "rb") as file:
            while file.read(2**20):
                pass


def flow_shape(path: str) -> tuple[int, int, int]:
    """Decodes a flow file, and returns its number of frames, their height and width.

    Raises:
      video.VideoError: the file is damaged, or is not a flow file that `h264.encode` wrote.
    """
    h264.check_flow(path)
    count, height, width = 0, 0, 0
    for frame in video.iter_frames(path, threads=1, strict=True):
        count, height, width = count + 1, frame.height // 2, frame.width
    return count, height, width
