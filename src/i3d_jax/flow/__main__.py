"""Computes the optical flow of videos: TV-L1, as the paper's networks see it.

    python -m i3d_jax.flow video.mp4 --out flow
    python -m i3d_jax.flow k400 --out k400_flow --flow-preset fast
    python -m i3d_jax.flow video.mp4 --out pictures --format colours

Videos are read in grey at 25 frames per second, with a short side of 256 pixels. Flow goes from
each frame to the next. It is truncated to [-20, 20] pixels and divided by 20. The last frame gets
the flow of the one before it. In a folder all videos are read, and OUT has the same structure.
OUT gets, for each video NAME,

    h264     NAME.mp4, as records hold flow: for `python -m i3d_jax.datasets prepare --flow OUT`
    npz      NAME.npz, "flow": float32 [T, H, W, 2], u to the right and v down, in [-1, 1]
    colours  NAME.colours.mp4, to look at: the hue is the direction, the saturation the length
    png      NAME.frames/00000.png, ...: the same as pictures

It also gets flow.json, the settings, and done.jsonl, the finished videos. If interrupted, run the
same command again: finished videos are skipped. If a video cannot be read, stderr names it, the
others are still processed, and the exit status is 1.
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
from i3d_jax.flow import PRESETS, RECIPE_FILE, recipe
from i3d_jax.flow.formats import FORMATS, PICTURE_FORMATS, Flow
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.prefetch import prefetch
from i3d_jax.stopping import StoppedError, catch_stop_signals
from i3d_jax.video import listing

MAX_PAIRS = 1024  # Per batch; larger ones are no faster and may need all memory.


class Job(NamedTuple):
    """A video and the file or folder for its flow.

    Attributes:
      source: the video.
      target: where its flow goes.
    """

    source: pathlib.Path
    target: pathlib.Path


def flow_jobs(names: list[pathlib.Path], out: pathlib.Path, suffix: str) -> list[Job]:
    """Lists the videos to process and where their flow goes.

    Args:
      names: videos, or folders of them.
      out: folder for the flow.
      suffix: of the targets.

    Raises:
      ValueError: two videos have the same target, a target is itself a video, or a folder has no
        videos.
    """
    jobs = []
    for name in names:
        if name.is_dir():
            inside = [(name / path, path) for path in listing.find_videos(name, exclude=out)]
        else:
            inside = [(name, pathlib.PurePath(name.name))]
        jobs += [
            Job(source, out / relative.parent / (relative.stem + suffix))
            for source, relative in inside
        ]
    sources = {os.path.realpath(job.source) for job in jobs}
    places: dict[str, pathlib.Path] = {}
    for job in jobs:
        if (place := os.path.realpath(job.target)) in sources:
            raise ValueError(f"{job.target}: is a video itself; use another --out")
        if os.path.realpath(other := places.setdefault(place, job.source)) != os.path.realpath(
            job.source
        ):
            raise ValueError(
                f"{job.target}: the flow of both {other} and {job.source} would go there"
            )
    # Each target once, even if its video was named twice.
    return [job for job in jobs if places.pop(os.path.realpath(job.target), None)]


class CompletedVideos:
    """The videos whose flow a folder has, recorded as lines of its done.jsonl."""

    def __init__(self, out: pathlib.Path):
        self.out, self.path = out, out / "done.jsonl"
        self.videos: dict[str, list] = {}
        for line in files.complete_lines(self.path):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # Damaged lines are skipped.
                recorded = json.loads(line)
                self.videos[recorded["flow"]] = recorded["of"]

    def __contains__(self, job: Job) -> bool:
        """Whether the flow of a video is there.

        Raises:
          ValueError: the target has the flow of another video.
        """
        recorded = self.videos.get(self._relative_target(job))
        if recorded is None or not job.target.exists() or not job.source.exists():
            return False
        if recorded != self._source_identity(job):
            raise ValueError(
                f"{job.target}: is the flow of another {recorded[0]}, of {recorded[1]} bytes; "
                "use another --out"
            )
        return True

    def add(self, job: Job) -> None:
        """Records that the flow of a video is written."""
        line = (
            json.dumps({"flow": self._relative_target(job), "of": self._source_identity(job)})
            + "\n"
        )
        with files.naming_errors(self.path), self.path.open("a") as file:
            file.write(line)

    def _relative_target(self, job: Job) -> str:
        return str(job.target.relative_to(self.out))

    def _source_identity(self, job: Job) -> list:
        """What tells a video from others of its name: its name and size."""
        return [job.source.name, job.source.stat().st_size]


def write_flow(
    job: Job, completed: CompletedVideos, flags: argparse.Namespace, advance: Callable[[], Any]
) -> str | video.VideoError:
    """Computes and writes the flow of one video.

    An error of reading or computing is returned as a VideoError, so that the other videos go on.

    Args:
      job: the video and its target.
      completed: the videos that are done.
      flags: of the command.
      advance: called for every frame; may raise.

    Returns:
      a line about the result, or the error.

    Raises:
      OSError: the flow cannot be written.
      ValueError: the flow would replace that of another video.
    """
    if job in completed:
        return f"{job.source} -> {job.target}: already done"
    count, total, size = 0, 0.0, (0, 0)

    def counted() -> Flow:
        nonlocal count, total, size
        for frame in _compute_flow(job.source, flags):
            advance()
            count, total, size = (
                count + 1,
                total + float(np.hypot(*np.moveaxis(frame, -1, 0)).mean()),
                frame.shape[:2],
            )
            yield frame

    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(job.target) as temporary:
            FORMATS[flags.format].write(temporary, counted(), flags.full_colour)
            # A folder here is from a run that was killed before it recorded the video. A file
            # is replaced without more ado.
            if job.target.is_dir():
                shutil.rmtree(job.target)
    except video.VideoError as error:
        return error
    except (av.error.FFmpegError, MemoryError) as error:  # Such as frames too large for H.264.
        reason = error.strerror if isinstance(error, av.error.FFmpegError) else cli.one_line(error)
        return video.VideoError(str(job.source), f"its flow cannot be encoded: {reason}")
    completed.add(job)
    height, width = size
    about = f"{count} frames of {height}x{width}, mean motion {total / count:.2f} pixels per frame"
    return f"{job.source} -> {job.target}: {about}"


def _compute_flow(path: pathlib.Path, flags: argparse.Namespace) -> Flow:
    """Yields the flow of a video; raises nothing but VideoErrors."""
    try:
        frames = video.grey(path, short_side=flags.short_side, frames=flags.frames, strict=True)
        yield from flow_of_frames(frames, PRESETS[flags.flow_preset], batch_size=flags.batch_size)
    except video.VideoError:
        raise
    except Exception as error:
        raise video.VideoError(
            str(path), f"its flow cannot be computed: {cli.one_line(error)}"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("i3d_jax.flow", __doc__)
    parser.add_argument(
        "videos", nargs="+", type=pathlib.Path, metavar="VIDEO", help="a video, or a folder of them"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the flow")
    parser.add_argument(
        "--format", choices=FORMATS, default="h264", help="what to write, see above (default: h264)"
    )
    parser.add_argument(
        "--flow-preset",
        choices=PRESETS,
        default="opencv",
        help="TV-L1 parameters: OpenCV's, or some that are three times as fast (default: opencv)",
    )
    parser.add_argument(
        "--short-side",
        type=cli.positive,
        default=256,
        help="of the frames, in pixels (default: 256)",
    )
    parser.add_argument(
        "--frames", type=cli.positive, help="most frames to use of a video (default: all)"
    )
    parser.add_argument(
        "--full-colour",
        type=float,
        default=5.0,
        help="motion in pixels that is shown in full colour (default: 5)",
    )
    parser.add_argument(
        "--batch-size",
        type=cli.positive,
        help="pairs of frames per batch (default: 8 on CPUs, 64 elsewhere)",
    )
    parser.add_argument(
        "--parallel",
        type=cli.positive,
        help="videos to process at a time (default: 1 on CPUs, 4 elsewhere)",
    )
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    if not flags.full_colour > 0:
        parser.error(f"--full-colour: {flags.full_colour} is not a positive number")
    if flags.short_side < 2:
        parser.error("--short-side: 1 is too small, wanted 2 or more")
    if (flags.batch_size or 1) > MAX_PAIRS:
        parser.error(f"--batch-size: {flags.batch_size} is too large, wanted {MAX_PAIRS} or less")
    try:
        jobs = flow_jobs(flags.videos, flags.out, FORMATS[flags.format].suffix)
        new = not (flags.out / RECIPE_FILE).exists()
        foreign = [job.target for job in jobs if new and job.target.exists()]
        if foreign:
            raise ValueError(
                f"{foreign[0]}: is there already, and not from this command; use another --out"
            )
        locked_error = ValueError(
            f"{flags.out}: another process writes flow to it; use another --out"
        )
        with files.locked_folder(flags.out, locked_error):
            about = recipe(flags.flow_preset) | {
                name: getattr(flags, name) for name in ("format", "short_side", "frames")
            }
            files.write_once(
                flags.out / RECIPE_FILE,
                about | ({"full": flags.full_colour} if flags.format in PICTURE_FORMATS else {}),
            )
            for folder in {job.target.parent for job in jobs}:
                files.remove_leftovers(folder)
            return _run_all(jobs, flags)
    except (OSError, ValueError) as error:
        cli.print_error(error)
        return 2


def _run_all(jobs: list[Job], flags: argparse.Namespace) -> int:
    completed, status, failures, ended = CompletedVideos(flags.out), 0, [], threading.Event()
    parallel = flags.parallel or (1 if jax.default_backend() == "cpu" else 4)
    with catch_stop_signals() as stopped, tqdm.tqdm(unit="frame", disable=None) as bar:

        def advance() -> None:
            if stopped or ended.is_set():
                raise StoppedError(stopped)
            bar.update()

        def attempt(job: Job) -> str | video.VideoError:
            try:
                return write_flow(job, completed, flags, advance)
            except (OSError, ValueError) as error:  # Such as a full disk: all others stop, too.
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
            tqdm.tqdm.write(
                "stopped; finished videos are kept, and the same command resumes",
                file=sys.stderr,
            )
            return error.status
        finally:
            ended.set()
    return status


if __name__ == "__main__":
    cli.run(main)
