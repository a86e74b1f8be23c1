"""The largest batch whose program fits into a chip's memory."""

from collections.abc import Callable

# A compiler that gives up says that a program does not fit, and not always how much it needs.
Need = Callable[[int], float | None]


def largest(need: Need, capacity: float, step: int) -> int:
    """The most clips that fit, a multiple of `step`; 0: not even `step` do.

    A program takes minutes to compile, and its memory grows with its clips, evenly as long as there
    is enough: after two batches that fit, the next one is where the line through them meets the
    capacity. Where memory is short the compiler has parts computed again, and more fits.

    Args:
      need: the bytes that a number of clips needs; None: too many for the compiler.
      capacity: the bytes that there are.
      step: clips are multiples of it.
    """
    fitting, low, high = [], 0, None
    clips = step
    while True:
        found = need(clips)
        if found is not None and found <= capacity:
            fitting, low = [*fitting, (clips, found)], clips
        else:
            high = clips
        if high is not None and high - low <= step:
            return low
        if len(fitting) > 1:
            (first, less), (second, more) = fitting[-2:]
            each = max(more - less, 1) / (second - first)
            clips = low + max(1, int((capacity - more) / each / step)) * step
        else:
            clips *= 2
        if high is not None:
            clips = min(clips, high - step)
