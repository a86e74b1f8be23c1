"""How a network's predictions lie in time, and how to take a long video in pieces without changing them.

Networks are told of time in ticks: a frame of each stream, or as many as can only be taken together, 16 or one of RGB with
ten of flow. A network gives one prediction per step of so many ticks; prediction number s depends on
the ticks from s * step - before up to, not including, s * step + after, and on nothing else but where the video ends.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Window(NamedTuple):
    """A piece of a video: ticks [start, stop), of whose own predictions [first, last) are the video's."""

    start: int
    stop: int
    first: int
    last: int


class Timing(NamedTuple):
    """The above for one network.

    Attributes:
      rgb, flow: frames in a tick.
      step: ticks from one prediction to the next.
      before, after: ticks that a prediction depends on, from its step's start.
      lost: predictions fewer than there are steps, rounded up, in the input.
      least: ticks of the shortest input.
      quantum: inputs are looped up to a multiple of so many ticks, so that few lengths are compiled.
      carries: each prediction depends on all of the past, which the network takes and returns as its "carry".
    """

    rgb: int = 1
    flow: int = 1
    step: int = 1
    before: int = 0
    after: int = 1
    lost: int = 0
    least: int = 1
    quantum: int = 1
    carries: bool = False

    def frames(self, stream: str) -> int:
        """Of a stream, in a tick."""
        return self.flow if stream == "flow" else self.rgb

    def steps(self, ticks: int) -> int:
        """How many predictions an input of so many ticks gives."""
        return -(-ticks // self.step) - self.lost

    def ticks(self, available: Mapping[str, int], most: Mapping[str, int]) -> int:
        """How long an input a video gives that has `available` frames of each stream, of which `most` may be used.

        Frames beyond the last whole tick are left out; a video is looped up to `least` ticks and a multiple of
        `quantum`.
        """
        limit = min(frames // self.frames(stream) for stream, frames in most.items())
        found = min(
            min(available[stream], frames) // self.frames(stream) for stream, frames in most.items()
        )
        return max(self.least, min(-(-found // self.quantum) * self.quantum, limit))

    @property
    def least_window(self) -> int:
        """Ticks of pieces that are long enough for exact predictions of any video (see `windows`)."""
        return (
            1
            if self.carries
            else -(-self.before // self.step) * self.step + self.after + self.step - 1
        )

    def windows(self, ticks: int, size: int | None = None) -> list[Window]:
        """Cuts an input into pieces of at most `size` ticks whose predictions, together, are the whole input's.

        All pieces are of one size (but the last, if the network carries its past), and padding falls into a piece
        where it does in the whole: a piece starts at a whole step and leaves the remainder that the whole leaves.

        Raises:
          ValueError: pieces of this size would show a prediction less than it depends on.
        """
        if size is None or size >= ticks:
            return [Window(0, ticks, 0, self.steps(ticks))]
        if self.carries:
            starts = range(0, ticks, size)
            return [
                Window(start, min(start + size, ticks), 0, min(size, ticks - start))
                for start in starts
            ]
        size -= (size - ticks) % self.step
        before = -(-self.before // self.step) * self.step
        if size < before + self.after:
            raise ValueError(
                f"pieces of {size} ticks are too short for exact predictions: at least {self.least_window} are needed"
            )
        pieces, done = [], 0
        while done < self.steps(ticks):
            start = min(max(0, done * self.step - before), ticks - size)
            stop, skipped = start + size, start // self.step
            last = self.steps(ticks) if stop == ticks else (stop - self.after) // self.step + 1
            pieces.append(Window(start, stop, done - skipped, last - skipped))
            done = last
        return pieces
