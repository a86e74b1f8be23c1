"""Computes the optical flow of videos: TV-L1, as the paper's networks see it.

    python -m i3d_jax.flow video.mp4 --out flow
    python -m i3d_jax.flow k400 --out k400_flow --preset fast
    python -m i3d_jax.flow video.mp4 --out pictures --format colours

Videos are taken in grey at 25 frames per second, short side 256. Flow is from every frame to the next, in pixels,
truncated to [-20, 20] and divided by 20; the last frame, which has no next one, gets the flow of the one before. Of a folder all
videos are taken, and their flow is laid out as they are. OUT gets, per video NAME,

    h264     NAME.mp4, as records hold flow: for `python -m i3d_jax.datasets prepare --flow OUT`
    npz      NAME.npz, "flow": float32 [T, H, W, 2], u to the right and v down, in [-1, 1]
    colours  NAME.colours.mp4, a video to look at: the hue is the direction, the saturation the length
    png      NAME.frames/00000.png, ...: the same as pictures

and flow.json, how it was made, and done.jsonl, of which videos. What is done is not done again: the same command goes on where it
was stopped. A video that cannot be read is named on stderr, the others go on, and the exit status is then 1.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import av.error
import jax
import numpy as np
import tqdm

from i3d_jax import cli, compilation, files, video
from i3d_jax.flow import NOTE, PRESETS, recipe
from i3d_jax.flow.formats import FORMATS, PICTURES, Flow
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.prefetch import prefetch
from i3d_jax.stopping import StoppedError, catch_stop_signals
from i3d_jax.video import listing

MAX_PAIRS = 1024  # At a time; more are of no use and take all memory.


class Job(NamedTuple):
    """A video and where its flow goes."""

    source: pathlib.Path
    target: pathlib.Path


def flow_jobs(names: list[pathlib.Path], out: pathlib.Path, suffix: str) -> list[Job]:
    """The videos that are named, or lie in folders that are, and where in `out` their flow goes.

    Raises:
      ValueError: two would go to one place, a file would replace a video, or a folder has no videos.
    """
    jobs = []
    for name in names:
        if name.is_dir():
            inside = [(name / path, path) for path in listing.find_videos(name, exclude=out)]
        else:
            inside = [(name, pathlib.PurePath(name.name))]
        jobs += [Job(source, out / relative.parent / (relative.stem + suffix)) for source, relative in inside]
    sources = {os.path.realpath(job.source) for job in jobs}
    places: dict[str, pathlib.Path] = {}
    for job in jobs:
        if (place := os.path.realpath(job.target)) in sources:
            raise ValueError(f"{job.target}: is a video itself; use another --out")
        if os.path.realpath(other := places.setdefault(place, job.source)) != os.path.realpath(job.source):
            raise ValueError(f"{job.target}: the flow of both {other} and {job.source} would go there")
    return [
        job for job in jobs if places.pop(os.path.realpath(job.target), None)
    ]  # Each once, though it be named twice.


class Done:
    """Which videos the flow in a folder is of, also on disk, a line each in done.jsonl."""

    def __init__(self, out: pathlib.Path):
        self.out, self.path = out, out / "done.jsonl"
        self.videos: dict[str, list] = {}
        for line in files.complete_lines(self.path):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # Else it is not there.
                noted = json.loads(line)
                self.videos[noted["flow"]] = noted["of"]

    def __contains__(self, job: Job) -> bool:
        """Whether its flow is there.

        Raises:
          ValueError: what is there is another video's.
        """
        noted = self.videos.get(self._name(job))
        if noted is None or not job.target.exists() or not job.source.exists():
            return False
        if noted != self._video(job):
            raise ValueError(f"{job.target}: is the flow of another {noted[0]}, of {noted[1]} bytes; use another --out")
        return True

    def add(self, job: Job) -> None:
        line = json.dumps({"flow": self._name(job), "of": self._video(job)}) + "\n"
        with files.naming_errors(self.path), self.path.open("a") as file:
            file.write(line)

    def _name(self, job: Job) -> str:
        return str(job.target.relative_to(self.out))

    def _video(self, job: Job) -> list:
        return [job.source.name, job.source.stat().st_size]


def run(job: Job, done: Done, flags: argparse.Namespace, advance: Callable[[], Any]) -> str | video.VideoError:
    """Computes and writes the flow of one video; returns what is to be said of it.

    Whatever goes wrong in reading it or in computing its flow is a VideoError, so that no other video is lost by it.

    Args:
      advance: is called for every frame; may raise.

    Raises:
      OSError: its flow cannot be written.
      ValueError: its flow would replace another video's.
    """
    if job in done:
        return f"{job.source} -> {job.target}: was there"
    count, total, size = 0, 0.0, (0, 0)

    def counted() -> Flow:
        nonlocal count, total, size
        for frame in _flow(job.source, flags):
            advance()
            count, total, size = count + 1, total + float(np.hypot(*np.moveaxis(frame, -1, 0)).mean()), frame.shape[:2]
            yield frame

    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(job.target) as temporary:
            FORMATS[flags.format].write(temporary, counted(), flags.full)
            if job.target.is_dir():  # Of a run that was killed before it was noted; a file is replaced as it is.
                shutil.rmtree(job.target)
    except video.VideoError as error:
        return error
    except (av.error.FFmpegError, MemoryError) as error:  # Of frames larger than H.264 has, for one.
        reason = error.strerror if isinstance(error, av.error.FFmpegError) else cli.one_line(error)
        return video.VideoError(str(job.source), f"its flow cannot be encoded: {reason}")
    done.add(job)
    height, width = size
    about = f"{count} frames of {height}x{width}, mean motion {total / count:.2f} pixels per frame"
    return f"{job.source} -> {job.target}: {about}"


def _flow(path: pathlib.Path, flags: argparse.Namespace) -> Flow:
    """The flow of a video; raises nothing but VideoErrors."""
    try:
        frames = video.grey(path, short_side=flags.short_side, frames=flags.frames, strict=True)
        yield from flow_of_frames(frames, PRESETS[flags.preset], batch_size=flags.batch_size)
    except video.VideoError:
        raise
    except Exception as error:
        raise video.VideoError(str(path), f"its flow cannot be computed: {cli.one_line(error)}") from error


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("i3d_jax.flow", __doc__)
    parser.add_argument("videos", nargs="+", type=pathlib.Path, metavar="VIDEO", help="a file, or a folder of files")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the flow")
    parser.add_argument("--format", choices=FORMATS, default="h264", help="see above (default: h264)")
    parser.add_argument(
        "--preset", choices=PRESETS, default="opencv", help="OpenCV's parameters, or faster ones (default: opencv)"
    )
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--frames", type=int, help="of a video to take at most (default: all)")
    parser.add_argument("--full", type=float, default=5.0, help="pixels that have full colour (default: 5)")
    parser.add_argument("--batch-size", type=int, help="pairs of frames at a time (default: 8, on accelerators 64)")
    parser.add_argument("--parallel", type=int, help="videos at a time (default: 1, on accelerators 4)")
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    for flag in ("short_side", "frames", "full", "batch_size", "parallel"):
        if getattr(flags, flag) is not None and not getattr(flags, flag) > 0:
            parser.error(f"--{flag.replace('_', '-')}: {getattr(flags, flag)} is not a positive number")
    if flags.short_side < 2:
        parser.error("--short-side: 1 is too small, wanted 2 or more")
    if (flags.batch_size or 1) > MAX_PAIRS:
        parser.error(f"--batch-size: {flags.batch_size} is too large, wanted {MAX_PAIRS} or less")
    try:
        jobs = flow_jobs(flags.videos, flags.out, FORMATS[flags.format].suffix)
        new = not (flags.out / NOTE).exists()
        strangers = [job.target for job in jobs if new and job.target.exists()]
        if strangers:
            raise ValueError(f"{strangers[0]}: is there already, and not from this command; use another --out")
        busy = ValueError(f"{flags.out}: another process writes flow to it; use another --out")
        with files.locked_folder(flags.out, busy):
            about = recipe(flags.preset) | {name: getattr(flags, name) for name in ("format", "short_side", "frames")}
            files.write_once(flags.out / NOTE, about | ({"full": flags.full} if flags.format in PICTURES else {}))
            for folder in {job.target.parent for job in jobs}:
                files.remove_leftovers(folder)
            return _run_all(jobs, flags)
    except (OSError, ValueError) as error:
        cli.print_error(error)
        return 2


def _run_all(jobs: list[Job], flags: argparse.Namespace) -> int:
    done, status, failures, ended = Done(flags.out), 0, [], threading.Event()
    parallel = flags.parallel or (1 if jax.default_backend() == "cpu" else 4)
    with catch_stop_signals() as stopped, tqdm.tqdm(unit="frame", disable=None) as bar:

        def advance() -> None:
            if stopped or ended.is_set():
                raise StoppedError(stopped)
            bar.update()

        def attempt(job: Job) -> str | video.VideoError:
            try:
                return run(job, done, flags, advance)
            except (OSError, ValueError) as error:  # A disk that is full: the others at work need not finish.
                failures.append(error)
                ended.set()
                raise

        try:
            for number, found in enumerate(prefetch(attempt, jobs, parallel)):
                bar.set_description(f"{number + 1}/{len(jobs)} videos")
                if isinstance(found, video.VideoError):
                    tqdm.tqdm.write(str(found), file=sys.stderr)
                    status = 1
                else:
                    tqdm.tqdm.write(found)
        except StoppedError as error:
            if failures:
                raise failures[0] from None
            tqdm.tqdm.write("stopped; what is done is kept, and the same command goes on", file=sys.stderr)
            return error.status
        finally:
            ended.set()
    return status


if __name__ == "__main__":
    cli.run(main)
