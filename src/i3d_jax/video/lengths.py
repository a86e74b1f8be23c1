"""Predicts how many frames a video gives, from the timestamps in the file, without decoding.

The prediction can be wrong: for a damaged file, or for one whose decoder leaves out frames, such
as those that refer to frames before a cut.
"""

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av.error

from i3d_jax.video import playback
from i3d_jax.video.playback import FPS, VideoError


class _Packet(NamedTuple):
    """The times of a packet, which are those of the frame in it."""

    pts: int | None
    dts: int | None
    duration: int
    time_base: Fraction


def frame_rate(video: str | os.PathLike | bytes) -> Fraction:
    """The stored frames per second of a video, by its timestamps.

    Read at this rate, a video of constant rate shows each stored frame once. Of a varying rate it
    is the average. The rate that the file states is taken where it agrees: many files state
    another, or one that is rounded.

    Args:
      video: a path, or the bytes of a whole file.

    Raises:
      VideoError: the file cannot be opened, or has no video stream.
    """
    with playback.opened(video) as (container, track):
        packets = list(_in_order_of_display(container, track))
        stated = [Fraction(rate) for rate in (track.average_rate, track.guessed_rate) if rate]
        tick = Fraction(track.time_base)
    rounding = max(tick, Fraction(1, 1000))
    times = [each.dts if each.pts is None else each.pts for each in packets]
    # The first recording, where several are concatenated.
    ends = [at for at, (a, b) in enumerate(itertools.pairwise(times), 1) if not _follows(a, b)]
    times = [time * tick for time in times[: ends[0] if ends else None] if time is not None]
    if len(times) < 2 or times[-1] == times[0]:
        return next(iter(stated), Fraction(FPS))
    average = (len(times) - 1) / (times[-1] - times[0])
    whole, ntsc = max(1, round(average)), max(1, round(average * 1.001))
    usual = [Fraction(whole), Fraction(ntsc * 1000, 1001)]
    for rate in [*stated, *usual, average]:
        # Times are rounded or truncated to ticks, or to the milliseconds of an earlier container.
        if all(abs(t - times[0] - at / rate) <= rounding for at, t in enumerate(times)):
            return rate
    return average.limit_denominator(100_000)


def _follows(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and before < after


def predicted_length(video: str | os.PathLike | bytes, fps: float = FPS) -> int:
    """The number of frames that `decode` will give, from timestamps only.

    Args:
      video: a path, or the bytes of a whole file.
      fps: frames per second of the result.

    Raises:
      VideoError: the file cannot be opened, or has no video stream with a packet in it.
    """
    with playback.opened(video) as (container, track):
        in_order = cast(Any, _in_order_of_display(container, track))
        packets = playback.with_timestamps(in_order, [0, 0])
        first = next(packets, None)
        if first is None:
            raise VideoError(playback.name_of(video), "has no frame")
        whole = itertools.chain([first], packets)
        shown = playback.resample(whole, track, first[1] or 0, fps, 0, playback.MAX_GAP)
        return sum(1 for _ in shown)


def _in_order_of_display(container: Any, track: Any) -> Iterator[_Packet]:
    """Yields the times of a track's packets, as a decoder would give their frames."""
    recording: list[_Packet] = []
    for packet in _intact(container.demux(track)):
        # A packet without data ends the stream. Others lie before the start of an edit list.
        if not packet.size or packet.is_discard:
            continue
        each = _Packet(packet.pts, packet.dts, packet.duration or 0, track.time_base)
        if recording and _another_begins(recording[-1], each):
            yield from _sorted(recording)
            recording = []
        recording.append(each)
    yield from _sorted(recording)


def _intact(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Yields packets up to the first that cannot be read."""
    try:
        yield from packets
    except (IndexError, av.error.FFmpegError):  # See `playback`.
        return


def _another_begins(before: _Packet, after: _Packet) -> bool:
    """Whether decoding times go back by more than a second, or far ahead."""
    if before.dts is None or after.dts is None:
        return False
    return not -1 <= (after.dts - before.dts) * before.time_base <= playback.MAX_GAP


def _sorted(recording: list[_Packet]) -> list[_Packet]:
    """Packets by their presentation times; as they are if these are missing."""
    if any(each.pts is None for each in recording):
        return recording
    return sorted(recording, key=lambda each: each.pts or 0)
