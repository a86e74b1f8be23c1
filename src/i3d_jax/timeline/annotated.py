"""A video as networks see it, drawn as a video: `predict --video`.

Each frame is drawn with the probabilities of its moment as bars, a heat map over the square that
the network sees, the optical flow in colours, and a time line. The file is read twice: for the
predictions, and for the frames to draw. Memory does not grow with its length.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from i3d_jax import flow, video, weights
from i3d_jax.flow.colours import flow_to_rgb
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.pictures import bars, heat, layout, sheet, strip, text
from i3d_jax.prefetch import prefetch, usable_cores
from i3d_jax.timeline import report
from i3d_jax.timeline.heat import VideoHeat
from i3d_jax.timeline.rows import VideoRows
from i3d_jax.video import h264

FPS = 25
COMMENT = "i3d_jax annotated video"  # Tells our MP4 files from others.
MOST_AHEAD = 4  # Frames that are drawn before they are encoded.
FULL_COLOUR = 5.0  # Pixels; motion that is shown in full colour, as by `python -m i3d_jax.flow`.


class Explanation(NamedTuple):
    """Where networks see a class.

    Attributes:
      target: number of the class.
      heat: the maps of each stream, "rgb" or "flow".
      infos: of the weights that the maps are of, by stream.
    """

    target: int
    heat: Mapping[str, VideoHeat]
    infos: Mapping[str, weights.Info]


class Watched(NamedTuple):
    """A video with all that is drawn of it.

    Attributes:
      path: of the video.
      rows: its predictions, over the whole video.
      classes: names of the classes.
      shown: int [k], the classes that are drawn, likeliest first.
      short_side: pixels; of frames whose flow is drawn.
      explanation: where a class is seen; None: no heat maps.
      flow_settings: of the flow; None: it is not drawn.
    """

    path: str
    rows: VideoRows
    classes: Sequence[str]
    shown: np.ndarray
    short_side: int
    explanation: Explanation | None = None
    flow_settings: flow.TVL1 | None = None

    @property
    def seconds(self) -> float:
        """The time that the predictions cover: the video's length, but for a part of a tick."""
        return float(self.rows.spans[-1, 1])

    @property
    def names(self) -> list[str]:
        """Names of the classes that are drawn."""
        return [str(self.classes[int(each)]) for each in self.shown]


def likeliest(rows: VideoRows, count: int) -> np.ndarray:
    """The classes that are likeliest in a whole video, by the mean of its rows, int [count]."""
    return np.argsort(-rows.logits.mean(0), kind="stable")[:count]


class Probabilities:
    """The probabilities of a video's classes at any time: linear between the rows' centres.

    Args:
      rows: of the video.
      shown: int [k], the classes.

    Attributes:
      centres: f64 [rows], in seconds.
      shares: f32 [rows, k].
      mean: f32 [k], of the mean of all rows' logits.
    """

    def __init__(self, rows: VideoRows, shown: np.ndarray):
        self.centres = rows.spans.mean(1)
        self.shares = report.softmax(rows.logits)[:, shown]
        self.mean = report.softmax(rows.logits.mean(0))[shown]

    def at(self, seconds: float) -> np.ndarray:
        """The probabilities at a time, f64 [k]; beyond the centres those of the row at the end."""
        return np.array([np.interp(seconds, self.centres, each) for each in self.shares.T])


class Painter:
    """Draws the frames of an annotated video.

    Args:
      watched: the video.
      height: of its frames, in any size.
      width: of its frames.
      size: pixels; the size of the text.
    """

    def __init__(self, watched: Watched, height: int, width: int, size: int = text.READABLE):
        explanation = watched.explanation
        self.panels = panels = layout.panels(
            height,
            width,
            with_flow=watched.flow_settings is not None,
            lines=1 + (explanation is not None),
            size=size,
        )
        self._watched, self._size = watched, size
        self._length = max(watched.seconds, video.predicted_length(watched.path, FPS) / FPS)
        shown = watched.shown[: bars.fitting(panels.bars.height, size)]
        self._names = watched.names[: len(shown)]
        self._probabilities = probabilities = Probabilities(watched.rows, shown)
        self._strip = strip.Strip(
            panels.strip.height,
            panels.strip.width,
            probabilities.centres,
            probabilities.shares,
            self._length,
            size,
        )
        self._empty = layout.blank(panels.height, panels.width)
        if explanation is not None:
            name = f"heat map: {watched.classes[explanation.target]}"
            text.draw(self._empty, panels.header[1], name, size=size)
        if panels.flow_caption is not None:
            text.draw(self._empty, panels.flow_caption, "flow", size=size)

    def draw(self, number: int, frame: np.ndarray, moving: np.ndarray | None = None) -> np.ndarray:
        """Draws a frame.

        Args:
          number: of the frame, at 25 per second.
          frame: uint8 [h, w, 3].
          moving: uint8 [h, w, 3], the frame's flow in colours, if it is shown.

        Returns:
          uint8 [height, width, 3].
        """
        picture, panels = self._empty.copy(), self.panels
        seconds = (number + 0.5) / FPS  # The middle of the time for which the frame is shown.
        now, whole = (text.clock(each, self._length, 1) for each in (number / FPS, self._length))
        text.draw(picture, panels.header[0], f"{now} of {whole}", size=self._size)
        layout.place(picture, panels.video, explained(self._watched, "rgb", frame, seconds))
        if panels.flow is not None and moving is not None:
            shown = sheet.scaled(moving, panels.flow.height, panels.flow.width)
            shown = explained(self._watched, "flow", shown, seconds)
            layout.place(picture, panels.flow, layout.framed(shown))
        box = panels.bars
        shares = self._probabilities.at(seconds)
        layout.part(picture, box)[:] = bars.draw(
            box.height, box.width, self._names, shares, size=self._size
        )
        layout.part(picture, panels.strip)[:] = self._strip.at(seconds)
        return picture


def explained(watched: Watched, stream: str, image: np.ndarray, seconds: float) -> np.ndarray:
    """Draws the heat map of a stream over a picture of it, if there is one.

    Args:
      watched: the video.
      stream: "rgb" or "flow". If only flow has a heat map, it is drawn over RGB, too.
      image: uint8 [h, w, 3], a whole frame or its flow.
      seconds: the time.

    Returns:
      uint8 [h, w, 3].
    """
    explanation = watched.explanation
    if explanation is None:
        return image
    found = "flow" if stream == "rgb" and "rgb" not in explanation.heat else stream
    if found not in explanation.heat:
        return image
    info = explanation.infos[found]
    height, width = image.shape[:2]
    square = heat.seen_square(height, width, info.short_side, info.crop)
    drawn = heat.overlay(image, explanation.heat[found].at(seconds), square)
    top, left, side = square
    layout.outline(drawn, layout.Box(top, left, side, side))
    return drawn


def fitting_side(path: str, height: int, width: int) -> int:
    """The short side, in pixels, with which a video's frames fill a box as well as they can.

    Args:
      path: of the video.
      height: of the box.
      width: of the box.

    Raises:
      VideoError: the video cannot be read.
    """
    shape = display_shape(path)
    side = max(1, int(min(height / shape[0], width / shape[1]) * min(shape)))
    while side > 1:
        shape = display_shape(path, side)
        if shape[0] <= height and shape[1] <= width:
            break
        side -= 1
    return side


def display_shape(path: str, short_side: int = 256) -> tuple[int, int]:
    """(height, width) of a video as a player shows it, scaled to a short side."""
    first = next(video.rgb_frames(path, short_side=short_side, frames=1))
    return first.shape[0], first.shape[1]


def flow_pictures(watched: Watched, **part: int) -> Iterator[np.ndarray]:
    """Yields the flow of a video in colours, uint8 [h, w, 3], frame by frame.

    Args:
      watched: the video.
      part: `start` and `frames`, as for `video.decode`.
    """
    grey = video.grey(watched.path, fps=FPS, short_side=watched.short_side, **part)
    batch = {"batch_size": 1} if part.get("frames", 3) < 3 else {}
    for each in flow_of_frames(grey, watched.flow_settings or flow.OPENCV, **batch):
        yield flow_to_rgb(each, FULL_COLOUR)


def frames(watched: Watched) -> Iterator[np.ndarray]:
    """Yields the frames of the annotated video, uint8 [H, W, 3], at 25 per second.

    Args:
      watched: the video.

    Raises:
      VideoError: the video cannot be read.
    """
    painter = Painter(watched, *display_shape(watched.path))
    box = painter.panels.video
    side = fitting_side(watched.path, box.height, box.width)
    plain = video.rgb_frames(watched.path, fps=FPS, short_side=side)
    moving = itertools.repeat(None) if watched.flow_settings is None else flow_pictures(watched)
    items = zip(itertools.count(), plain, moving, strict=False)
    yield from prefetch(lambda item: painter.draw(*item), items, min(MOST_AHEAD, usable_cores()))


def write_video(
    path: pathlib.Path, watched: Watched, advance: Callable[[int], Any] = lambda frames: None
) -> int:
    """Writes the annotated video, atomically.

    Args:
      path: of the MP4 file.
      watched: the video.
      advance: called with the number of frames that have been drawn.

    Returns:
      the number of its frames.

    Raises:
      VideoError: the video cannot be read.
      OSError: the file cannot be written.
    """

    def counted() -> Iterator[np.ndarray]:
        for frame in frames(watched):
            yield frame
            advance(1)

    return h264.write(path, counted(), fps=FPS, comment=COMMENT)
