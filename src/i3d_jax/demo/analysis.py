"""What the page shows of a video: classes over time, heat maps, optical flow, features."""

import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from PIL import Image

from i3d_jax import features, files, video, weights
from i3d_jax.features import records
from i3d_jax.features.jobs import Job
from i3d_jax.flow.colours import flow_to_rgb
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.models.streaming import CHUNK
from i3d_jax.pictures import heat as heat_pictures
from i3d_jax.timeline import heat, report, rows
from i3d_jax.video import VideoError, decoding

# FFmpeg's names of the containers that are read. Others, such as playlists, may have FFmpeg open
# files of the server that were never uploaded.
CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg"),
    *("mpegvideo", "m4v", "h264", "hevc", "flv", "asf", "ogg", "gif", "mxf", "ivf", "nut", "dv"),
)
SHORT_SIDE = 360  # Pixels of the frames that are shown.
FLOW_SHORT_SIDE = 256  # As `python -m i3d_jax.flow` computes it.
FULL_COLOUR = 5.0  # Pixels per frame, as in that command.
# A video's real length may differ from the one that its timestamps predict, and it is then read
# again, twice at most.
READINGS = 3

Advance = Callable[[float], Any]  # Called with the part that is done, from 0 to 1; may raise.


class Network:
    """A network that the page offers. Its programs are compiled when they are first used.

    Args:
      name: of published weights, or a file.

    Attributes:
      name: the same.
      label: what visitors see of it.
      info: of the weights.

    Raises:
      weights.WeightsError: the weights cannot be had, or the network cannot be streamed.
    """

    def __init__(self, name: str):
        self.name, self.label = name, label_of(name)
        network, variables, self.info = weights.network(name)
        self.fingerprint = weights.fingerprint(variables)
        self.rows = rows.LogitStream(network, variables, self.info)
        try:
            self.rows.start()
        except ValueError as error:
            raise weights.WeightsError(f"{name}: {error}") from None
        self.heat = heat.HeatMaps(network, variables, self.info)
        self._extraction: features.Extraction | None = None

    @property
    def extraction(self) -> features.Extraction:
        """How features are computed, as `python -m i3d_jax.features` does by default.

        Raises:
          weights.WeightsError: the network has no features of all frames.
        """
        if self._extraction is None:
            sources = features.load([self.name])
            self._extraction = features.Extraction(sources, features.reading_for(sources))
        return self._extraction


def label_of(name: str) -> str:
    """What visitors see of the name of weights: no folders of the server."""
    return pathlib.PurePath(name).name


class _Counter:
    """Counts frames, and tells what part of them is done."""

    def __init__(self, frames: int, advance: Advance):
        self.done, self._frames, self._advance = 0, frames, advance

    def __call__(self, more: int) -> None:
        self.done += more
        self._advance(min(1.0, self.done / max(1, self._frames)))


class Analysis(NamedTuple):
    """What was found in a video.

    Attributes:
      path: the video.
      label: of the weights.
      classes: names of the classes.
      rows: logits over time.
      frames: number of frames at `fps`.
      fps: frames per second.
      short_side: pixels that the network's frames are resized to.
      crop: side of the square that the network sees of these.
      about: settings, for the timeline's file.
      heat: by the number of a class, the heat maps of each stream.
      damage: sentences about parts of the video that cannot be decoded.
    """

    path: pathlib.Path
    label: str
    classes: tuple[str, ...]
    rows: rows.VideoRows
    frames: int
    fps: float
    short_side: int
    crop: int
    about: dict[str, Any]
    heat: dict[int, dict[str, heat.VideoHeat]]
    damage: tuple[str, ...] = ()


def check(path: pathlib.Path, fps: float, max_seconds: float) -> int:
    """The number of frames of a video, from its timestamps, before anything is computed.

    Args:
      path: of the video.
      fps: frames per second.
      max_seconds: length of the longest video to take.

    Raises:
      VideoError: the file is no video that the page takes, or is too long.
    """
    try:
        # `file:`, since FFmpeg takes "a:b" for an address.
        options = {"format_whitelist": ",".join(CONTAINERS)}
        with av.open(f"file:{path}", options=options, metadata_errors="replace"):
            pass
    except av.error.FFmpegError as error:
        empty = path.is_file() and not path.stat().st_size
        reason = "is empty" if empty else f"cannot be read as a video: {error.strerror}"
        raise VideoError(os.fspath(path), reason) from None
    frames = video.predicted_length(path, fps)
    if frames > max_seconds * fps:
        raise VideoError(
            os.fspath(path),
            f"takes {frames / fps:,.1f} s, and {max_seconds:g} s are the most that are analysed",
        )
    return frames


def analyse(
    path: pathlib.Path,
    network: Network,
    max_seconds: float,
    advance: Advance = lambda part: None,
) -> Analysis:
    """Computes the classes of a video over time.

    Args:
      path: of the video.
      network: that sees it.
      max_seconds: length of the longest video to take.
      advance: told how far it is.

    Raises:
      VideoError: the file is no video, is damaged, too short or too long.
    """
    info = network.info
    predicted = check(path, info.fps, max_seconds)
    counted = _Counter(predicted, advance)
    most = READINGS * (max_seconds * info.fps + CHUNK)

    def bounded(more: int) -> None:
        counted(more)
        if counted.done > most:
            raise VideoError(os.fspath(path), "is longer than its timestamps say")

    # Only one video is analysed at a time, so that the warnings of others do not come here.
    with warnings.catch_warnings(record=True) as damage:
        warnings.simplefilter("always", video.DamageWarning)
        found = rows.video_rows(os.fspath(path), network.rows, info, advance=bounded)
    about = {
        "weights": [
            {"name": network.label, "model": info.model, "fingerprint": network.fingerprint}
        ],
        "fps": info.fps,
        "short_side": info.short_side,
        "crop": info.crop,
    }
    if "flow" in info.footprint:
        about["flow_preset"] = "opencv"
    stride = next(stride for _, stride in info.footprint.values())
    return Analysis(
        path,
        network.label,
        tuple(info.classes),
        found,
        found.frames if stride == 1 else min(found.frames * stride, predicted),
        float(info.fps),
        info.short_side,
        info.crop,
        about | {"frames": found.frames},
        {},
        tuple(dict.fromkeys(str(each.message).removeprefix(f"{path}: ") for each in damage)),
    )


def explain(
    found: Analysis, network: Network, number: int, advance: Advance = lambda part: None
) -> None:
    """Computes the heat maps of a class, unless `found.heat` has them already.

    Args:
      found: of the video; its `heat` gets the maps.
      network: that it was analysed with.
      number: of the class.
      advance: as in `analyse`.

    Raises:
      VideoError: the video cannot be read any more.
    """
    if number not in found.heat:
        counted = _Counter(found.frames, advance)
        maps = heat.video_heat(os.fspath(found.path), network.heat, number, advance=counted)
        # In the network's order, so that RGB comes first.
        found.heat[number] = {each: maps[each] for each in network.info.footprint if each in maps}


def likeliest(found: Analysis, count: int) -> list[int]:
    """The numbers of the classes that are likeliest over the whole video."""
    return np.argsort(-found.rows.logits.mean(0), kind="stable")[:count].tolist()


def shares_of_video(found: Analysis, count: int) -> dict[str, float]:
    """The likeliest classes of the whole video, with their probabilities."""
    return _shares(found.rows.logits.mean(0), found.classes, count)


def shares_at(found: Analysis, seconds: float, count: int) -> dict[str, float]:
    """The likeliest classes of the row whose centre is nearest to a time."""
    row = np.abs(found.rows.spans.mean(1) - seconds).argmin()
    return _shares(found.rows.logits[row], found.classes, count)


def _shares(logits: np.ndarray, classes: Sequence[str], count: int) -> dict[str, float]:
    return {
        each["class"]: each["probability"] for each in report.top_classes(logits, classes, count)
    }


def curves(found: Analysis, count: int) -> dict[str, list]:
    """The probabilities of the video's likeliest classes over time, as columns of a table.

    Returns:
      "seconds", the centres of the rows; "probability"; "class".
    """
    shares, centres = report.softmax(found.rows.logits), found.rows.spans.mean(1)
    best = likeliest(found, count)
    return {
        "seconds": np.tile(centres, len(best)).round(3).tolist(),
        "probability": shares[:, best].T.ravel().astype(float).tolist(),
        "class": [found.classes[number] for number in best for _ in centres],
    }


def last_second(found: Analysis) -> float:
    """When the last frame is shown, in seconds."""
    return (found.frames - 1) / found.fps


def frame_with_heat(found: Analysis, seconds: float, number: int, stream: str) -> np.ndarray:
    """The frame at a time, uint8 [H, W, 3], with the heat map of a class over it.

    Args:
      found: of the video.
      seconds: of the frame.
      number: of the class; `explain` has computed its maps.
      stream: "rgb" or "flow".

    Raises:
      VideoError: the video cannot be read any more.
    """
    (image,) = video.decode(
        found.path, fps=found.fps, short_side=SHORT_SIDE, start=_frame(found, seconds), frames=1
    )
    height, width, _ = image.shape
    square = heat_pictures.seen_square(height, width, found.short_side, found.crop)
    return heat_pictures.overlay(image, found.heat[number][stream].at(seconds), square)


def flow_at(found: Analysis, seconds: float) -> np.ndarray:
    """The flow from the frame at a time to the next in colours, uint8 [H, W, 3].

    The last frame has the flow of the one before it.

    Args:
      found: of the video.
      seconds: of the frame.

    Raises:
      VideoError: the video cannot be read any more.
    """
    start = max(0, min(_frame(found, seconds), found.frames - 2))
    pair = video.grey(found.path, fps=found.fps, short_side=FLOW_SHORT_SIDE, start=start, frames=2)
    colours = flow_to_rgb(next(flow_of_frames(pair, batch_size=1, threads=1)), FULL_COLOUR)
    height, width, _ = colours.shape
    height, width = decoding.resized_shape(height, width, SHORT_SIDE)
    return np.asarray(Image.fromarray(colours).resize((width, height)))


def _frame(found: Analysis, seconds: float) -> int:
    """The number of the frame at a time."""
    return int(np.clip(round(seconds * found.fps), 0, found.frames - 1))


def write_timeline(found: Analysis, target: pathlib.Path, count: int) -> None:
    """Writes the classes over time as JSON, as `python -m i3d_jax.predict --timeline` does."""
    spans, logits = found.rows.spans, found.rows.logits
    content = report.describe(found.path.name, found.about, spans, logits, found.classes, count)
    files.write_json(target, content)


def write_features(
    found: Analysis,
    network: Network,
    target: pathlib.Path,
    advance: Advance = lambda part: None,
) -> None:
    """Writes the features of the video, as `python -m i3d_jax.features` does.

    Args:
      found: of the video.
      network: that it was analysed with.
      target: the file, whose name ends with .npz.
      advance: as in `analyse`.

    Raises:
      VideoError: the video cannot be read any more.
      weights.WeightsError: the network has no features of all frames.
    """
    what = network.extraction
    counted = _Counter(found.frames, advance)
    ((_, computed),) = features.extract([found.path], what, counted)
    if isinstance(computed, VideoError):
        raise computed
    settings = records.settings_of(what, "AvgPool", "opencv", "npz")
    outputs = records.Outputs("npz", settings, [network.label])
    outputs.write(Job(found.path, target.with_name(target.name.removesuffix(".npz"))), computed)
