"""Computes features of videos: the activations of a network's layer over time.

    python -m i3d_jax.features video.mp4 --out features
    python -m i3d_jax.features videos --out features --stream both --flow-preset fast
    python -m i3d_jax.features @list.txt --out features --preset actionformer
    python -m i3d_jax.features videos --out features --window 64 --stride 32 --shard 1/4

A VIDEO is any file that FFmpeg decodes, a folder of them, or @LIST, a text file with a path per
line. By default a row is one of I3D's average pool in one pass over the whole video: T frames at 25
per second give ceil(T / 8) - 1 rows, and row s covers the frames from 8 s on, 16 of them. Videos
may be of any length. OUT gets NAME.npz for each video, with

    features            float32 [rows, 1024]; both streams [rows, 2048], RGB first
    start, end, centre  of each row in seconds, float64 [rows]
    frames              of each row: its first, and the one after its last, int64 [rows, 2]
    about               JSON: how the features were made

It also gets features.json, the settings. If interrupted, run the same command again: finished
videos are skipped, and damaged files are made again. If a video cannot be read, the others are
still processed, stderr lists it, and the exit status is 1. For presets and other formats see
docs/howto/features.md.
"""

import argparse
import os
import pathlib
import sys
import time
import warnings

import jax
import tqdm

from i3d_jax import cli, compilation, files, flow, video, weights
from i3d_jax.features import grids, networks, outputs, reading
from i3d_jax.features.extraction import extract
from i3d_jax.features.jobs import Job, Shard, list_jobs, shard
from i3d_jax.features.outputs import FORMATS, Features
from i3d_jax.features.presets import PRESETS
from i3d_jax.features.records import Outputs, settings_of
from i3d_jax.features.task import Extraction, reading_for
from i3d_jax.stopping import StoppedError, catch_stop_signals
from i3d_jax.video import listing

SETTINGS_FILE = "features.json"  # In OUT.


def make_parser() -> cli.Parser:
    parser = cli.parser("i3d_jax.features", __doc__)
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="a video, a folder of them, or @LIST")
    add("--out", type=pathlib.Path, required=True, help="folder for the features")
    add("--stream", choices=weights.DEFAULTS, help="(default: as the weights do, or rgb)")
    add(
        "--weights",
        action="append",
        metavar="NAME|FILE",
        help="may be given once per stream (default: by --stream rgb_scratch, flow_imagenet, or "
        "rgb_imagenet and flow_imagenet)",
    )
    add("--layer", default="AvgPool", help="such as Mixed_5c or Logits (default: AvgPool)")
    add(
        "--keep-space",
        action="store_true",
        default=None,
        help="rows of [height, width, channels], not averaged over space",
    )
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--dense", action="store_true", help="rows of one pass over the whole video (the default)"
    )
    grid.add_argument(
        "--window",
        type=cli.positive,
        metavar="N",
        help="independent windows of N frames (I3D: 9 or more), each averaged over its rows",
    )
    add("--stride", type=cli.positive, metavar="M", help="frames between windows (default: N)")
    add(
        "--partial",
        choices=grids.PARTIAL,
        help="a last window that the video's end cuts: leave it out, repeat its last frame, or "
        "repeat all of its frames (default: pad)",
    )
    add("--per-frame", choices=grids.PER_FRAME, help="one row per frame, from the dense rows")
    add(
        "--fps",
        type=_rate,
        help="frames per second, or own (default: those that the weights take, 25)",
    )
    add(
        "--crop",
        choices=reading.CROPS,
        help="ten: corners, centre, and these mirrored; whole: the frame (default: centre)",
    )
    add("--flow-preset", choices=flow.PRESETS, default="opencv", help="TV-L1 (default: opencv)")
    add("--format", choices=FORMATS, help="of files (default: npz)")
    add("--preset", choices=PRESETS, help="grid, streams, crop and files of other projects")
    add(
        "--batch-size",
        type=cli.positive,
        help="clips that a device takes at a time (default: 16; on CPUs always 1)",
    )
    add("--shard", type=shard, default=Shard(1, 1), metavar="I/N", help="only every N-th video")
    return parser


def _rate(text: str) -> str | float:
    """Frames per second, as `type=` of an argument."""
    if text == "own":
        return text
    try:
        if 0.1 <= (rate := float(text)) <= 1000:
            return rate
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is neither own nor a number from 0.1 to 1000")


def resolve(flags: argparse.Namespace) -> None:
    """Sets what the preset, or else the default, says where flags say nothing.

    Raises:
      ValueError: flags exclude each other.
    """
    preset = PRESETS[flags.preset].options() if flags.preset else {}
    windows: grids.Windows | None = preset.get("windows")
    if flags.dense:
        windows = None
    elif flags.window is not None:
        windows = grids.Windows(flags.window, flags.stride or flags.window)
    elif windows is not None and flags.stride is not None:
        windows = windows._replace(stride=flags.stride)
    if windows is not None and flags.partial is not None:
        windows = windows._replace(partial=flags.partial, following=0)
    for name in "stride", "partial":
        if windows is None and getattr(flags, name) is not None:
            raise ValueError(f"--{name} is for windows: give --window, too")
    flags.windows, flags.prefix = windows, preset.get("prefix", "")
    if flags.weights is None:
        flags.weights = weights.DEFAULTS[flags.stream or preset.get("stream", "rgb")]
    for name, default in {
        "fps": None,
        "crop": "centre",
        "format": "npz",
        "per_frame": None,
        "keep_space": False,
    }.items():
        if getattr(flags, name) is None:
            setattr(flags, name, preset.get(name, default))
    if windows is not None and flags.per_frame is not None:
        raise ValueError("--per-frame takes the dense rows: leave out --window")


def make_extraction(flags: argparse.Namespace) -> Extraction:
    """What the flags say is to be computed.

    Raises:
      ValueError: flags or weights do not fit together.
    """
    names = flags.weights
    sources = networks.load(names, flags.layer, flags.stream)
    if flags.format == "npy" and len({each.stream for each in sources}) < len(sources):
        raise ValueError(f"{', '.join(names)}: of one stream; --format npy has a file per stream")
    how = reading_for(sources, crop=flags.crop, tv_l1=flow.PRESETS[flags.flow_preset])
    if flags.fps is not None:
        how = how._replace(fps=None if flags.fps == "own" else flags.fps)
    what = Extraction(
        sources, how, flags.windows, flags.per_frame, flags.keep_space, flags.batch_size
    )
    what.check()
    return what


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    try:
        resolve(flags)
        jobs = list_jobs(flags.videos, flags.out, flags.prefix)
        what = make_extraction(flags)
        form = flags.format
        settings = settings_of(what, flags.layer, flags.flow_preset, form)
        new = not (flags.out / SETTINGS_FILE).exists()
        foreign = [job.target for job in jobs if new and outputs.exists(job.target, form)]
        if foreign:
            path = outputs.with_ending(foreign[0], FORMATS[form].main)
            raise ValueError(
                f"{path}: is there already, and not from this command; use another --out"
            )
        with files.shared_folder(flags.out):
            files.write_once(flags.out / SETTINGS_FILE, settings)
            return _run_all(
                flags.shard.of(jobs),
                what,
                Outputs(form, settings, [each.name for each in what.sources]),
            )
    except (OSError, listing.FolderError, ValueError) as error:
        cli.print_error(error)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cli.print_error(f"{cli.one_line(error)}; use a smaller --batch-size")
        return 2


def _run_all(jobs: list[Job], what: Extraction, target: Outputs) -> int:
    """Computes and writes the features of all videos; returns the exit status."""
    left = [job for job in jobs if not target.is_done(job)]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} videos: already done")
    by_path: dict[str, list[Job]] = {}
    for job in left:  # A video may have two targets, if it was named in two ways.
        by_path.setdefault(os.fspath(job.source), []).append(job)
    failed: list[video.VideoError] = []
    frames, began = 0, time.monotonic()
    with (
        catch_stop_signals() as stopped,
        tqdm.tqdm(total=len(by_path), unit="video", disable=None) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default", video.DamageWarning)
        warnings.showwarning = lambda message, *_: tqdm.tqdm.write(str(message), file=sys.stderr)

        def advance(more: int) -> None:
            nonlocal frames
            if stopped:
                raise StoppedError(stopped)
            frames += more
            bar.set_postfix_str(f"{frames / (time.monotonic() - began):.1f} frames/s")

        try:
            for path, found in extract(by_path, what, advance):
                bar.update()
                if isinstance(found, video.VideoError):
                    failed.append(found)
                    tqdm.tqdm.write(cli.one_line(found), file=sys.stderr)
                    continue
                for job in by_path[path]:
                    target.write(job, found)
                    tqdm.tqdm.write(_line(job, found, target.form))
        except StoppedError as error:
            tqdm.tqdm.write(
                "stopped; finished videos are kept, and the same command resumes", file=sys.stderr
            )
            return error.status
    if failed:
        print(f"{len(failed)} of {len(by_path)} videos failed:", file=sys.stderr)
        for error in failed:
            print(f"  {cli.one_line(error)}", file=sys.stderr)
    return int(bool(failed))


def _line(job: Job, found: Features, form: str) -> str:
    """What is said of a video that is done."""
    rows, *shape = found.features.shape
    width = "x".join(map(str, shape))
    path = outputs.with_ending(job.target, FORMATS[form].shown)
    return f"{job.source} -> {path}: {rows} rows of {width}, {found.length} frames"


if __name__ == "__main__":
    cli.run(main)
