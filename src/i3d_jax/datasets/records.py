"""Records: what a data set keeps of a clip, and how it is made of the clip's files."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import av.error
import numpy as np
import tensorflow_datasets as tfds

from i3d_jax import flow, h264, pixels, video
from i3d_jax.datasets.video_files import Clip
from i3d_jax.flow.videos import of_frames

FORMAT = "1"  # Of the records; another makes the shards of an earlier one be written again.


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


def features(classes: Sequence[str], flow: bool = False) -> tfds.features.FeaturesDict:
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


def record(clip: Clip, settings: Settings) -> dict:
    """Transcodes a clip to what its record holds.

    Flow is copied, whose files are what `python -m i3d_jax.flow` makes of it, or computed.

    Raises:
      video.VideoError: it cannot be used, `reason` says why.
    """
    if clip.path is None:
        raise video.VideoError(clip.id, "is missing")
    try:
        found = h264.transcode(clip.path, short_side=settings.short_side, seconds=clip.seconds)
        about = {"label": clip.label, "id": clip.id, "video": found.data}
        about |= {"frames": found.frames, "height": found.height, "width": found.width}
        if settings.tv_l1 is not None:
            return about | {"flow": computed_flow(clip, settings)}
        return about | {"flow": read_flow(clip, found)} if settings.flow else about
    except av.error.FFmpegError as error:  # Of frames that are 300 times as wide as high, for one.
        raise video.VideoError(clip.path, f"cannot be encoded: {error.strerror}") from None


def computed_flow(clip: Clip, settings: Settings) -> bytes:
    """The TV-L1 flow of a clip's file; other clips are worked on at the same time."""
    assert clip.path is not None and settings.tv_l1 is not None
    most = None if clip.seconds is None else video.frames_in(clip.seconds)
    grey = video.grey(clip.path, short_side=settings.short_side, frames=most, threads=1, strict=True)
    return h264.encode(map(pixels.flow_bytes, of_frames(grey, flow.PRESETS[settings.tv_l1], threads=1)))


def read_flow(clip: Clip, found: h264.Transcoded) -> bytes:
    """The file with the flow of a clip that was transcoded.

    Raises:
      video.VideoError: there is none, or it is not the clip's.
    """
    if clip.flow is None:
        raise video.VideoError(clip.id, "its flow is missing")
    try:
        count, height, width = flow_shape(clip.flow)
    except video.VideoError as error:
        raise video.VideoError(clip.flow, f"its flow {error.reason}") from None
    if count < found.frames or (height, width) != (found.height, found.width):
        raise video.VideoError(
            clip.flow,
            f"its flow does not fit: {count} frames of {height}x{width}, "
            f"the video has {found.frames} of {found.height}x{found.width}",
        )
    return pathlib.Path(clip.flow).read_bytes()


def check_storage(clip: Clip) -> None:
    """Makes sure that files which could not be used can be read: storage that went away is no damaged video.

    Raises:
      OSError: they cannot.
    """
    for path in (clip.path, clip.flow):
        if path is not None:
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
    for frame in video.shown(path, threads=1, strict=True):
        count, height, width = count + 1, frame.height // 2, frame.width
    return count, height, width
