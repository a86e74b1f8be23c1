"""Classify what a webcam, a network stream or a file shows, as it comes.

    python -m i3d_jax.live webcam
    python -m i3d_jax.live --json udp://127.0.0.1:1234 > predictions.jsonl
    python -m i3d_jax.live --weights runs/i3d/weights.safetensors rtsp://camera.local/live
    python -m i3d_jax.live video.mp4

SOURCE is "webcam" ("webcam:1" for the second one), a device such as /dev/video0, a URL that FFmpeg
opens (udp, rtsp, http, ...), or a file, which is played at its speed. Frames are taken at 25 per
second, with a short side of 256 and a centre crop of 224. The network computes every frame once,
and only sees RGB.

A class comes late, since the network looks at what follows: I3D at 56 frames (2.24 s), and at a
chunk of frames at a time. stderr says so at the start. Every prediction has its measured delay: how
long ago the middle of the newest frames that it is about was captured. A network that is too slow
for the source loses frames, which are counted, so that the delay stays as it is.

Predictions go to stdout: in a terminal in place, else one line each. Logits are averaged over the
last 2.56 s, which is as long as the clips that I3D was trained on.
"""

import argparse
import collections
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from i3d_jax import cli, compilation, weights
from i3d_jax.models import streaming
from i3d_jax.stopping import catch_stop_signals
from i3d_jax.timeline import report, rows
from i3d_jax.video import VideoError
from i3d_jax.video.capture import TIMEOUT, Capture, LiveFrame, check_exists, find_source

# Seconds: 64 frames, the length of the paper's training clips. Their logits are averaged in
# training, so a mean over more is surer than the network was trained to be, and slower to change.
AVERAGE = 2.56
MAX_CHUNK = 256  # Frames. Longer chunks are no faster, and late.
POLL = 0.1  # Seconds between looks at whether a signal has come.


class Prediction(NamedTuple):
    """What a source shows at a time.

    Attributes:
      logits: f32 [K], the mean over the last rows.
      start: seconds of the source where the first of these rows begins.
      end: seconds where the last one ends.
      centre: the middle of the last one.
      delay: seconds from when the frame at `centre` was captured until now.
      frames: frames of the source that were computed so far.
      dropped: frames that were dropped so far.
    """

    logits: np.ndarray
    start: float
    end: float
    centre: float
    delay: float
    frames: int
    dropped: int


class _Source:
    """Where the rows of a source lie in time, and the mean of the last ones.

    Args:
      capturing: the source.
      logits: the network.
      average: seconds of rows that are averaged.
    """

    def __init__(self, capturing: Capture, logits: rows.LogitStream, average: float):
        self._capturing, self._logits, self._average = capturing, logits, average
        self._kept: collections.deque[LiveFrame] = collections.deque()
        self._first = 0  # Place of the first frame that is kept.
        self._rows: collections.deque[tuple[float, float, np.ndarray]] = collections.deque()
        self.frames = 0

    def add(self, frames: list[LiveFrame]) -> None:
        """Takes note of the frames of a chunk."""
        empty = np.empty(0)  # Images are large.
        self._kept += [each._replace(image=empty) for each in frames]
        self.frames += len(frames)

    def predict(self, found: np.ndarray) -> Prediction | None:
        """The prediction after a chunk, from the rows that it gave; None if there are none."""
        timing = self._logits.network.timing
        step = timing.step * timing.frames("rgb")
        end = captured = None
        for row, logits in enumerate(found, self._logits.rows - len(found)):
            # Rows at the end may show nothing but the last frame, repeated.
            if row * step < self.frames:
                start, end, captured = self._span(row * step, (row + 1 + timing.lost) * step)
                self._rows.append(((start + end) / 2, start, logits))
        if end is None or captured is None:
            return None
        centre = self._rows[-1][0]
        while len(self._rows) > 1 and self._rows[0][0] <= centre - self._average + 1e-6:
            self._rows.popleft()
        return Prediction(
            logits=np.mean([logits for *_, logits in self._rows], 0),
            start=self._rows[0][1],
            end=end,
            centre=centre,
            delay=time.monotonic() - captured,
            frames=self.frames,
            dropped=self._capturing.dropped,
        )

    def _span(self, start: int, stop: int) -> tuple[float, float, float]:
        """Seconds where some frames begin and end, and when the middle one was captured.

        Args:
          start: place of the first one. Those before are forgotten.
          stop: the place after the last one.
        """
        while self._first < start:
            self._kept.popleft()
            self._first += 1
        size = min(stop, self.frames) - start
        first, middle, last = (self._kept[place] for place in (0, size // 2, size - 1))
        fps, stride = self._capturing.fps, self._capturing.stride
        return first.number / fps, (last.number + stride) / fps, middle.captured


def predictions(
    capturing: Capture,
    logits: rows.LogitStream,
    average: float = AVERAGE,
    seconds: float = np.inf,
    stopped: Callable[[], Any] = lambda: False,
) -> Iterator[Prediction]:
    """Yields predictions of a live source until it ends, one per chunk that has any.

    At the end of the source the last frame is repeated, up to a multiple of 16 frames.

    Args:
      capturing: the source, opened.
      logits: the network.
      average: seconds over which rows of logits are averaged; 0 takes the last row only.
      seconds: length of the source after which to end.
      stopped: whether to end; called about ten times per second.

    Raises:
      VideoError: as `Capture.take`.
    """
    timing = logits.network.timing
    size = logits.ticks * timing.frames("rgb")
    source, images = _Source(capturing, logits, average), []
    logits.start()
    while not stopped():
        taken = capturing.take(size, POLL)
        if taken is None:
            continue
        source.add(taken)
        images = [each.image for each in taken] or images[-1:]
        if len(taken) < size:
            break
        if found := source.predict(logits.feed({"rgb": np.stack(images)})):
            yield found
        if (taken[-1].number + capturing.stride) / capturing.fps >= seconds:
            return
    # The length is known at last.
    ticks = -(-source.frames // (16 * timing.frames("rgb"))) * 16
    logits.end(ticks)
    while images and logits.rows < timing.steps(ticks) and not stopped():
        if found := source.predict(logits.feed({"rgb": np.stack(images)})):
            yield found
        images = images[-1:]
    if not stopped():
        capturing.take(1, POLL)  # Raises what ended the source.


class Speed(NamedTuple):
    """What a network needs.

    Attributes:
      behind: frames, at the network's rate, from the middle of the newest row to the newest frame.
      seconds: seconds per chunk.
    """

    behind: int
    seconds: float


def warm_up(logits: rows.LogitStream) -> Speed:
    """Compiles a network and measures it."""
    timing, took = logits.network.timing, np.inf
    blank = logits.blank()
    logits.start()
    while not logits.rows:
        logits.feed(blank)
    for _ in range(3):
        start = time.monotonic()
        logits.feed(blank)
        took = min(took, time.monotonic() - start)
    middle = (logits.rows - 1) * timing.step + (1 + timing.lost) * timing.step / 2
    return Speed(round((logits.fed - middle) * timing.frames("rgb")), took)


def _parse(arguments: list[str] | None) -> tuple[cli.Parser, argparse.Namespace]:
    parser = cli.parser("i3d_jax.live", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="webcam, device, URL or file, see above")
    parser.add_argument(
        "--weights",
        default="rgb_scratch",
        metavar="NAME|FILE",
        help="see `python -m i3d_jax.weights list` (default: rgb_scratch)",
    )
    parser.add_argument(
        "--top-k", type=cli.positive, default=5, help="classes to print (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per prediction")
    parser.add_argument(
        "--average",
        type=_seconds,
        default=AVERAGE,
        metavar="SECONDS",
        help=f"length of the moving average of logits; 0 is none (default: {AVERAGE})",
    )
    parser.add_argument(
        "--chunk",
        type=cli.positive,
        metavar="FRAMES",
        help="frames to compute at a time: a prediction comes after each (default: 0.64 s of them)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=np.inf, help="length of the source to take"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"a stream that is silent for so long has ended (default: {TIMEOUT:g})",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for FFmpeg, such as video_size=1280x720 or rtsp_transport=tcp",
    )
    flags = parser.parse_args(arguments)
    for each in flags.option:
        if "=" not in each:
            parser.error(f"--option: {each!r}, wanted NAME=VALUE")
    return parser, flags


def _seconds(text: str) -> float:
    """A number of seconds, as `type=` of an argument."""
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not 0 <= number < np.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def main(arguments: list[str] | None = None) -> int:
    parser, flags = _parse(arguments)
    compilation.enable_persistent_cache()
    try:
        source = find_source(flags.source)
        check_exists(source)  # To compile takes long.
        network, variables, info = weights.network(flags.weights)
    except (OSError, ValueError) as error:
        cli.print_error(error)
        return 2
    if "flow" in info.footprint:
        cli.print_error(f"{flags.weights}: these weights take flow; live has RGB only")
        return 2
    stride = info.footprint["rgb"][1]
    rate = info.fps / stride
    logits = rows.LogitStream(
        network, variables, info, flags.chunk or max(1, round(streaming.CHUNK / stride))
    )
    chunk = logits.ticks * network.timing.frames("rgb")
    if flags.chunk not in (None, chunk):
        unit = network.timing.step * network.timing.frames("rgb")
        parser.error(f"--chunk: {flags.chunk} frames, wanted a multiple of {unit}")
    if flags.chunk and flags.chunk > MAX_CHUNK:
        parser.error(f"--chunk: {flags.chunk} is too large, wanted {MAX_CHUNK} or less")
    _print(f"{source.name}: compiling {info.model}")
    try:
        speed = warm_up(logits)
    except ValueError as error:  # A network that takes whole clips.
        cli.print_error(f"{flags.weights}: {error}")
        return 2
    _print(
        f"{source.name}: a class is {speed.behind / rate:.2f} s late, for the network looks "
        f"{speed.behind} frames ahead; a chunk of {chunk} frames comes every {chunk / rate:.2f} s, "
        f"and takes {speed.seconds:.2f} s here"
    )
    if speed.seconds > chunk / rate:
        _print(f"{source.name}: this is too slow for every frame; some will be dropped")
    capturing = Capture(
        source,
        fps=info.fps,
        short_side=info.short_side,
        crop=info.crop,
        stride=stride,
        capacity=2 * chunk,
        timeout=flags.timeout,
        options=dict(each.split("=", 1) for each in flags.option),
    )
    return _run(capturing, logits, info, flags)


def _run(
    capturing: Capture, logits: rows.LogitStream, info: weights.Info, flags: argparse.Namespace
) -> int:
    """Prints predictions until the source ends or a signal comes; returns the exit status."""
    status, warned = 0, False
    name, start = capturing.source.name, time.monotonic()
    in_place = sys.stdout.isatty() and not flags.json
    printed = 0  # Lines of the last prediction, in a terminal.
    with catch_stop_signals() as stopped, capturing:
        found = predictions(capturing, logits, flags.average, flags.seconds, lambda: stopped)
        try:
            for each in found:
                if each.dropped and not warned and not in_place:
                    _print(f"{name}: falls behind; frames are dropped")
                    warned = True
                text = _describe(each, info, flags, in_place)
                if in_place:
                    text, printed = _over(text, printed), text.count("\n") + 1
                print(text, flush=True)
        except VideoError as error:
            cli.print_error(error)
            status = 1 if capturing.captured else 2
    if capturing.captured or stopped:
        took = max(1e-9, time.monotonic() - start)
        damaged = f", {capturing.damaged} packets damaged" if capturing.damaged else ""
        _print(
            f"{name}: {'stopped; ' if stopped else ''}{capturing.taken} frames computed, "
            f"{capturing.taken / took:.1f} per second; {capturing.dropped} dropped{damaged}"
        )
    return 128 + stopped[0] if stopped else status


def _print(line: str) -> None:
    print(cli.escape_unprintable(line), file=sys.stderr)


def _describe(
    found: Prediction, info: weights.Info, flags: argparse.Namespace, in_place: bool
) -> str:
    """A prediction as text: one line, or several for a terminal."""
    top = report.top_classes(found.logits, info.classes, flags.top_k)
    if flags.json:
        times = {
            "time": round(found.centre, 3),
            "start": round(found.start, 3),
            "end": round(found.end, 3),
            "delay": round(found.delay, 3),
        }
        return json.dumps(times | {"frames": found.frames, "dropped": found.dropped, "top": top})
    named = [(cli.escape_unprintable(each["class"]), each["probability"]) for each in top]
    late = f"{found.centre:8.2f} s, {found.delay:.2f} s ago"
    dropped = f", {found.dropped} dropped" if found.dropped else ""
    if not in_place:
        return f"{late}{dropped}: " + ", ".join(f"{name} {share:.1%}" for name, share in named)
    width = max(len(name) for name, _ in named)
    lines = [f"  {name:{width}}  {share:7.2%}" for name, share in named]
    return "\n".join([f"{late}{dropped}", *lines])


def _over(text: str, lines: int) -> str:
    """A text for a terminal in the place of the last lines: moves up, and clears what was there."""
    columns = shutil.get_terminal_size().columns
    up = f"\x1b[{lines}A" if lines else ""
    # A line that the terminal would wrap would be several.
    return up + "\n".join(f"\x1b[2K{line[: columns - 1]}" for line in text.split("\n"))


if __name__ == "__main__":
    cli.run(main)
