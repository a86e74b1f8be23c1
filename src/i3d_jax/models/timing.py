"""Maps a network's predictions to time, and cuts long videos without changing the predictions.

Time is counted in ticks. A tick is the smallest unit that a network takes: one frame of each
stream, or 16 frames, or one RGB frame with ten flow frames. A network makes one prediction per
step of several ticks. Prediction s depends only on the ticks from s * step - before up to, but
not including, s * step + after, and on where the video ends.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Window(NamedTuple):
    """A piece of a video, and which of its predictions to keep.

    Attributes:
      start: the piece's first tick.
      stop: the tick after its last one.
      first: the first of the piece's predictions that belongs to the whole video.
      last: the prediction after the last such one.
    """

    start: int
    stop: int
    first: int
    last: int


class Timing(NamedTuple):
    """How the predictions of one network lie in time (see this module's docstring).

    Attributes:
      rgb: RGB frames in a tick.
      flow: flow frames in a tick.
      step: ticks from one prediction to the next.
      before: ticks before its step's start that a prediction depends on.
      after: ticks from its step's start on that a prediction depends on.
      lost: how many predictions are missing, compared with the steps in the input (rounded up).
      least: ticks of the shortest input.
      quantum: inputs are looped up to a multiple of this many ticks, so that XLA compiles few
        input shapes.
      carries: whether predictions depend on all of the past. The network then takes and returns
        its state as "carry".
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
        """Frames of a stream in a tick."""
        return self.flow if stream == "flow" else self.rgb

    def steps(self, ticks: int) -> int:
        """Number of predictions for an input of this many ticks."""
        return -(-ticks // self.step) - self.lost

    def ticks(self, available: Mapping[str, int], most: Mapping[str, int]) -> int:
        """Number of ticks to take from a video.

        Frames beyond the last whole tick are left out. A short video is looped to `least` ticks,
        and any video to a multiple of `quantum`, as far as `most` allows.

        Args:
          available: frames that the video has, by stream.
          most: frames that may be used, by stream.
        """
        limit = min(frames // self.frames(stream) for stream, frames in most.items())
        found = min(
            min(available[stream], frames) // self.frames(stream) for stream, frames in most.items()
        )
        return max(self.least, min(-(-found // self.quantum) * self.quantum, limit))

    @property
    def least_window(self) -> int:
        """Ticks of the shortest pieces that give exact predictions for any video."""
        return (
            1
            if self.carries
            else -(-self.before // self.step) * self.step + self.after + self.step - 1
        )

    def windows(self, ticks: int, size: int | None = None) -> list[Window]:
        """Cuts an input into pieces that together give the predictions of the whole input.

        All pieces have the same size; only the last may differ, if the network carries a state.
        A piece starts at a whole step and leaves the same remainder as the whole input, so that
        SAME padding falls on the same frames.

        Args:
          ticks: length of the input.
          size: most ticks of a piece; None is the whole input.

        Raises:
          ValueError: pieces of this size are too short for exact predictions.
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
                f"pieces of {size} ticks are too short for exact predictions: "
                f"at least {self.least_window} are needed"
            )
        pieces, done = [], 0
        while done < self.steps(ticks):
            start = min(max(0, done * self.step - before), ticks - size)
            stop, skipped = start + size, start // self.step
            last = self.steps(ticks) if stop == ticks else (stop - self.after) // self.step + 1
            pieces.append(Window(start, stop, done - skipped, last - skipped))
            done = last
        return pieces
