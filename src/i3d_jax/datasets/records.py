"""Records: what a data set keeps of a clip, and how it is made of the clip's files."""

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

# Of the records. Data sets say it (`ClipBuilder.format`); unfinished shards of an earlier one are written again.
FORMAT = "2"
# By earlier format, what is wrong with its records: data sets of it can be read, with this as a warning.
FAULTS = {
    "1": "which showed frames of sources below 25 frames per second or of varying rate too early, those of AVI files with "
    "B-frames out of order, and mirrored videos unmirrored"
}


class Settings(NamedTuple):
    """What the records of a data set are.

    Attributes:
      flow: whether they have flow: that of the clips' files or, if there is a preset `tv_l1`, computed.
      tv_l1: of `flow.PRESETS`.
      recipe: how the flow is or was made, if that is known (see `flow.recipe`).
    """

    classes: tuple[str, ...]
    short_side: int
    flow: bool
    tv_l1: str | None = None
    recipe: dict | None = None


def record_features(classes: Sequence[str], flow: bool = False) -> tfds.features.FeaturesDict:
    """What is in a record: the names of the values, and their types."""
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
    """Transcodes one of a clip's files to what its record holds.

    Flow is copied, whose files are what `python -m i3d_jax.flow` makes of it, or computed.

    Raises:
      video.VideoError: it cannot be used, `reason` says why.
    """
    try:
        found = h264.transcode(path, short_side=settings.short_side, seconds=clip.seconds)
        about = {"label": clip.label, "id": clip.id, "video": found.data}
        about |= {"frames": found.frames, "height": found.height, "width": found.width}
        if settings.tv_l1 is not None:
            return about | {"flow": computed_flow(clip, path, settings)}
        return about | {"flow": read_flow(clip, path, found)} if settings.flow else about
    except av.error.FFmpegError as error:  # Of frames larger than H.264 has, for one.
        raise video.VideoError(path, f"cannot be encoded: {error.strerror}") from None


def computed_flow(clip: Clip, path: str, settings: Settings) -> bytes:
    """The TV-L1 flow of one of a clip's files; other clips are worked on at the same time."""
    assert settings.tv_l1 is not None
    most = None if clip.seconds is None else decoding.frame_count(clip.seconds)
    grey = video.grey(path, short_side=settings.short_side, frames=most, threads=1, strict=True)
    return h264.encode(
        map(pixels.flow_bytes, flow_of_frames(grey, flow.PRESETS[settings.tv_l1], threads=1))
    )


def read_flow(clip: Clip, path: str, found: h264.Transcoded) -> bytes:
    """The file with the flow of a clip, of which `found` was made of `path`; of several that which lies as the video does, if it fits.

    Raises:
      video.VideoError: there is none, or none is the clip's.
    """
    problem = video.VideoError(clip.id, "its flow is missing")
    for number, each in enumerate(sorted(clip.flows, key=lambda each: -_shared_end(each, path))):
        try:
            return _fitting_flow(each, found)
        except video.VideoError as error:
            problem = problem if number else error
    raise problem


def _fitting_flow(path: str, found: h264.Transcoded) -> bytes:
    try:
        count, height, width = flow_shape(path)
    except video.VideoError as error:
        raise video.VideoError(path, f"its flow {error.reason}") from None
    if count < found.frames or (height, width) != (found.height, found.width):
        raise video.VideoError(
            path,
            f"its flow does not fit: {count} frames of {height}x{width}, "
            f"the video has {found.frames} of {found.height}x{found.width}",
        )
    return pathlib.Path(path).read_bytes()


def _shared_end(*paths: str) -> int:
    """How many names two paths share at their ends, extensions apart."""
    ends = (reversed(pathlib.PurePath(path).with_suffix("").parts) for path in paths)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends))))


def check_storage(*paths: str) -> None:
    """Makes sure that files which could not be used can be read: storage that went away is no damaged video.

    Raises:
      OSError: they cannot.
    """
    for path in paths:
        with contextlib.suppress(PermissionError), open(path, "rb") as file:
            while file.read(2**20):
                pass


def flow_shape(path: str) -> tuple[int, int, int]:
    """Frames, height, width of the flow in a file, all of which is decoded.

    Raises:
      video.VideoError: it is damaged, or not as `h264.encode` writes flow: it would be read as something else.
    """
    h264.check_flow(path)
    count, height, width = 0, 0, 0
    for frame in video.iter_frames(path, threads=1, strict=True):
        count, height, width = count + 1, frame.height // 2, frame.width
    return count, height, width
