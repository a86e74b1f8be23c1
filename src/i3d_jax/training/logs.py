"""A run's log: JSON lines, the durable record, and TensorBoard; its speed; its profile."""

import contextlib
import json
import math
import os
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from i3d_jax.files import atomic_write, naming_errors, unused_path


class Log:
    """Writes scalars to `log.jsonl`, a line per step, and for TensorBoard. No step is in it twice.

    A run that was killed may have logged steps after its last checkpoint, `start`, and half a line.
    These are removed, since the run makes the steps again. Damaged lines are named on stderr and
    left out; the log with them is kept in the folder "set_aside". Nothing is written by a thread: a
    full disk would end that without a word.

    Args:
      folder: the run's.
      start: the step that the run is at.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        # It imports PyTorch, if there is one: mistakes in a config need not wait for that.
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2

        self.path = folder / "log.jsonl"
        lines = _lines(self.path)
        if damaged := [number for number, line in enumerate(lines, 1) if line is None]:
            copy = unused_path(folder / "set_aside" / self.path.name)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(self.path, copy)
            many = f" and {len(damaged) - 1} more" if damaged[1:] else ""
            print(
                f"{self.path}: line {damaged[0]}{many} left out, since damaged; "
                f"as it was, the log is {copy}",
                file=sys.stderr,
            )
        kept = [line for line in lines if line is not None and line["step"] <= start]
        with atomic_write(self.path) as rewritten:
            rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a")
        self.board = event_file_writer.EventsWriter(str(folder / "events"))
        self.event: Any = event_pb2.Event  # pyright: ignore - a generated module
        # TensorBoard forgets what an earlier start has from this step on.
        self.board.write_event(
            self.event(wall_time=time.time(), step=start + 1, session_log={"status": "START"})
        )
        self.flushed = 0.0
        self.logged = {tuple(sorted(line)): line["step"] for line in kept}

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Raises OSError: it cannot be written, as on a disk that is full."""
        names = tuple(sorted({"step", *scalars}))
        if self.logged.get(names, -1) >= step:
            return
        self.logged[names] = step
        finite = {
            name: value if math.isfinite(value) else None for name, value in scalars.items()
        }  # JSON has no NaN.
        values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
        with naming_errors(self.path):
            self.file.write(json.dumps({"step": step, **finite}) + "\n")
            self.file.flush()
            self.board.write_event(
                self.event(wall_time=time.time(), step=step, summary={"value": values})
            )
            if time.monotonic() > self.flushed + 10:  # It waits for the disk.
                self.board.flush()
                self.flushed = time.monotonic()

    def sync(self) -> None:
        """Makes the lines so far outlive the machine."""
        with naming_errors(self.path):
            os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        # What could not be written cannot be now.
        with contextlib.suppress(OSError) if failed else naming_errors(self.path), self.file:
            self.board.close()


def _lines(path: pathlib.Path) -> list[dict | None]:
    """The whole lines of a log, None in place of one that is damaged; none if there is no log."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            scalars = json.loads(line)
        except (ValueError, RecursionError):
            scalars = None
        found.append(
            scalars if isinstance(scalars, dict) and type(scalars.get("step")) is int else None
        )
    return found


class Clock:
    """How fast the steps since its start are, and how long they waited for clips."""

    def __init__(self, step: int):
        self.step, self.began, self.waited = step, time.perf_counter(), 0.0

    def next(self, batches: Iterator[Any], running: Any) -> Any:
        """The next batch.

        Args:
          batches: where it comes from.
          running: an array that a step computes. If it is ready before the batch is, the step did
            not cover the wait, and the time counts as waited for. None: no step runs.
        """
        began = time.perf_counter()
        batch = next(batches)
        if running is None or running.is_ready():
            self.waited += time.perf_counter() - began
        return batch

    def scalars(self, step: int, batch_size: int) -> dict[str, float]:
        """Clips per second, the share of time that was waited for clips, and the peak of memory.

        Args:
          step: that the run is at.
          batch_size: clips per step.
        """
        seconds = time.perf_counter() - self.began
        speed = (step - self.step) * batch_size / seconds
        return {
            "clips_per_second": speed,
            "input_wait": self.waited / seconds,
            "memory_mb": memory_mb(),
        }


def memory_mb() -> float:
    """The peak of memory in MB: of the fullest local device or, on CPUs, of the process."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats())
    ]
    return max(peaks) / 1e6 if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextlib.contextmanager
def profiling(folder: pathlib.Path, steps: tuple[int, ...]) -> Iterator[Callable[[int, Any], None]]:
    """Profiles some steps; TensorBoard's profile plugin and xprof read the result.

    Args:
      folder: for the profile.
      steps: (first, number), or () for none.

    Yields:
      a function to call with (steps made, state) before every step.
    """
    running = False

    def at(step: int, state: Any) -> None:
        nonlocal running
        if steps and step + 1 == steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(folder))
            running = True
        elif running and step + 1 == sum(steps):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            running = False

    try:
        yield at
    finally:
        if running:
            jax.profiler.stop_trace()
