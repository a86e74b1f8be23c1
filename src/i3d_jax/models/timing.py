"""How a network's predictions lie in time.

Time is counted in ticks. A tick is the smallest unit that a network takes: one frame of each
stream, or 16 frames, or one RGB frame with ten flow frames. A network makes one prediction per
step of several ticks. `streaming` makes them chunk by chunk.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """How the predictions of one network lie in time (see this module's docstring).

    Attributes:
      rgb: RGB frames in a tick.
      flow: flow frames in a tick.
      step: ticks from one prediction to the next.
      lost: how many predictions are missing, compared with the steps in the input (rounded up).
      least: ticks of the shortest input.
      quantum: inputs are looped up to a multiple of this many ticks, so that XLA compiles few
        input shapes.
      last_only: whether a video's logits are those of its last step, not the mean over all.
    """

    rgb: int = 1
    flow: int = 1
    step: int = 1
    lost: int = 0
    least: int = 1
    quantum: int = 1
    last_only: bool = False

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
