"""What is computed of each video, and the features that its rows become."""

from typing import Any, NamedTuple

import numpy as np

from i3d_jax import video
from i3d_jax.features import grids, reading
from i3d_jax.features.networks import Source
from i3d_jax.features.outputs import Features

# A video, and its features or what is wrong with it.
Found = tuple[str, Features | video.VideoError]


class Extraction(NamedTuple):
    """What is computed of each video.

    Attributes:
      sources: the networks; their features are joined in this order.
      how: how videos are read.
      windows: the windows; None is the dense grid.
      per_frame: one of `grids.PER_FRAME` for one row per frame; None keeps the grid's rows.
      keep_space: whether rows are not averaged over space.
      batch_size: clips that a device takes at a time, each crop of a video one; None is 16. On a
        CPU it is always 1.
    """

    sources: list[Source]
    how: reading.Reading
    windows: grids.Windows | None = None
    per_frame: str | None = None
    keep_space: bool = False
    batch_size: int | None = None

    @property
    def ticks(self) -> int:
        """Frames that the networks take at a time; dense rows leave out what is less at the end."""
        return self.sources[0].ticks

    @property
    def least(self) -> int:
        """Frames of the shortest video, or window, that the networks take."""
        return max(each.network.timing.least * each.ticks for each in self.sources)

    def check(self) -> None:
        """Raises a ValueError if windows do not suit the networks."""
        if self.windows is None:
            return
        if self.windows.size < self.least or self.windows.size % self.ticks:
            multiple = f", a multiple of {self.ticks}" if self.ticks > 1 else ""
            raise ValueError(
                f"windows of {self.windows.size} frames, wanted {self.least} at least{multiple}"
            )


def reading_for(sources: list[Source], **options: Any) -> reading.Reading:
    """How networks take videos: their streams, rate, size and crop.

    Args:
      sources: the networks.
      **options: attributes of `Reading` that are to be others.
    """
    info = sources[0].info
    taken = {stream for each in sources for stream in each.info.footprint}
    own = reading.Reading(
        streams=tuple(stream for stream in ("rgb", "flow") if stream in taken),
        fps=float(sources[0].fps),
        short_side=info.short_side,
        size=info.crop,
    )
    return own._replace(**options)


def finished(
    rows: list[np.ndarray], opened: reading.Opened, length: int, what: Extraction
) -> Features | video.VideoError:
    """The features of a video from the rows of all networks, [crops, rows, ...]."""
    if what.windows is not None:
        spans = what.windows.spans(length)
    else:
        spans = what.sources[0].grid.spans(length // what.ticks * what.ticks)
    streams = []
    for source, values in zip(what.sources, rows, strict=True):
        values = np.moveaxis(values, 0, 1)
        if values.shape[1] == 1:
            values = values[:, 0]
        if what.per_frame is not None:
            values = grids.per_frame(values, spans, length, what.per_frame)
        streams.append((source.stream, np.ascontiguousarray(values)))
    if what.per_frame is not None:
        spans = grids.each_frame(length)
    return Features(streams, spans, length, opened.fps)
