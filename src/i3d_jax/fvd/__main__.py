"""Computes the Fréchet Video Distance (FVD) of generated videos from real ones.

    python -m i3d_jax.fvd real generated
    python -m i3d_jax.fvd real.npy generated.npy --convention all --json
    python -m i3d_jax.fvd real --save real.npz --convention stylegan-v
    python -m i3d_jax.fvd real.npz generated --convention stylegan-v

A set is a folder of videos, or of folders of frames; a .npy or .npz file with uint8
[N, T, H, W, 3]; the split of a prepared data set, "ucf101/1:test"; or a file that --save wrote.
Sets of any size are read with bounded memory.

Papers' numbers differ because the resize, the batch norm's epsilon, the covariance and the choice
of clips do. A convention is the way of one implementation; "all" computes five in one pass. The
result is a line with the number, its standard error, and every setting. The error says how much
the number varies with the choice of videos, by a bootstrap; not how far few videos bias it.

With --save the sets, one or several, become one file: real videos are measured once, and parts are
merged that --shard measured on several machines. If a video cannot be used, stderr names it, the
others are still measured, and the exit status is 1. See docs/howto/fvd.md.
"""

import argparse
import json
import pathlib
import sys
import warnings
from importlib import metadata
from typing import Any

import jax
import tqdm

from i3d_jax import cli, compilation, video, weights
from i3d_jax.features.jobs import Shard, shard
from i3d_jax.fvd import intervals, measuring, report, saved, videos
from i3d_jax.fvd.clips import Selection
from i3d_jax.fvd.conventions import CONVENTIONS, SAMPLINGS, VARIANTS, Convention
from i3d_jax.fvd.measuring import Input, Measured, Network, Request
from i3d_jax.stopping import StoppedError, catch_stop_signals
from i3d_jax.weights import published

ROLES = "real", "generated"


def make_parser() -> cli.Parser:
    parser = cli.parser("i3d_jax.fvd", __doc__)
    add = parser.add_argument
    add("sets", nargs="+", metavar="SET", help="the real and the generated videos, in this order")
    add(
        "--convention",
        choices=[*CONVENTIONS, "all", *VARIANTS],
        default="reference",
        help="whose way to compute it (default: reference; vfid is another distance)",
    )
    add("--frames", type=cli.positive, help="of a clip (default: 16; vfid: 10)")
    add("--stride", type=cli.positive, default=1, help="take every N-th frame (default: 1)")
    add("--clips", choices=SAMPLINGS, help="of each video (default: the convention's)")
    add("--seed", type=int, default=0, help="of random clips (default: 0)")
    add("--number", type=_number, help='of clips at most, or "all" (default: the convention\'s)')
    add("--fps", type=float, help="frames per second of video files (default: each file's own)")
    add("--resolution", type=cli.positive, help="of cd-fvd's loader (default: 256)")
    add("--weights", default="rgb_scratch", metavar="NAME|FILE", help="(default: rgb_scratch)")
    add("--layer", help="such as AvgPool, 1,024 features (default: Logits, 400)")
    add("--data-dir", help="folder of prepared data sets")
    add(
        "--bootstrap",
        type=int,
        default=intervals.REPLICATES,
        metavar="N",
        help=f"draws for the error; 0 for none (default: {intervals.REPLICATES})",
    )
    add(
        "--extrapolate",
        action="store_true",
        help="print the number for infinitely many clips, too, from a line over 1 / N",
    )
    add(
        "--statistics-only",
        action="store_true",
        help="keep no features: no error and no KVD, but memory of the same size for any number",
    )
    add("--save", type=pathlib.Path, metavar="FILE.npz", help="measure sets, and save them as one")
    add("--shard", type=shard, default=Shard(1, 1), metavar="I/N", help="only every N-th video")
    add("--strict", action="store_true", help="stop at the first video that cannot be used")
    add(
        "--allow-different",
        action="store_true",
        help="compare sets that were measured in different ways",
    )
    add("--json", action="store_true", help="print one JSON object for each convention")
    add(
        "--batch-size",
        type=cli.positive,
        default=16,
        help="clips that a device takes at a time (default: 16; on CPUs always 1)",
    )
    return parser


def _number(text: str) -> int | str:
    """A positive number, or "all", as `type=` of an argument."""
    return text if text == "all" else cli.positive(text)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(arguments)
    _check(parser, flags)
    compilation.enable_persistent_cache()
    try:
        rows = conventions(flags)
        with catch_stop_signals() as stopped, warnings.catch_warnings():
            warnings.simplefilter("default", video.DamageWarning)
            warnings.showwarning = lambda message, *_: _say(str(message))
            run = _Run(flags, rows, stopped)
            roles = _roles(flags)
            # All are opened before the first is measured, which can take hours.
            opened = [run.open(*each) for each in zip(flags.sets, roles, strict=True)]
            found = [run.measure(*each) for each in zip(flags.sets, opened, roles, strict=True)]
        if flags.save:
            _save(flags, found)
        else:
            _report(flags, rows, found)
        return int(run.unusable > 0)
    except StoppedError as error:
        return error.status
    except (OSError, ValueError) as error:
        cli.print_error(error)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cli.print_error(f"{cli.one_line(error)}; use a smaller --batch-size")
        return 2


def _check(parser: cli.Parser, flags: argparse.Namespace) -> None:
    """Ends the command if flags do not go together."""
    if not flags.save and len(flags.sets) != 2:
        parser.error(f"{len(flags.sets)} sets, wanted two, real and generated, or --save FILE.npz")
    if flags.save and flags.save.suffix != ".npz":
        parser.error(f"--save {flags.save}: wanted a name that ends with .npz")
    if flags.shard.total > 1 and not flags.save:
        parser.error("--shard is for --save: the parts of all machines are merged afterwards")
    if flags.bootstrap < 0 or flags.bootstrap == 1:
        parser.error(f"--bootstrap {flags.bootstrap}: wanted 0, or 2 at least")
    if flags.fps is not None and not 0.1 <= flags.fps <= 1000:
        parser.error(f"--fps {flags.fps}: wanted a number from 0.1 to 1000")


def conventions(flags: argparse.Namespace) -> dict[str, Convention]:
    """The conventions that are asked for, with what flags say otherwise."""
    known = CONVENTIONS | VARIANTS
    found = {}
    for name in CONVENTIONS if flags.convention == "all" else [flags.convention]:
        row = known[name]
        changes: dict[str, Any] = {}
        if flags.clips:
            changes |= {"clips": flags.clips, "generated_clips": flags.clips}
        if flags.number:
            number = None if flags.number == "all" else flags.number
            changes |= {"number": number, "generated_number": number}
        if flags.resolution and row.resolution:
            changes["resolution"] = flags.resolution
        for each in "frames", "layer":
            if getattr(flags, each):
                changes[each] = getattr(flags, each)
        found[name] = row._replace(**changes)
        if flags.shard.total > 1 and found[name].number is not None:
            raise ValueError(
                f"--shard: {name} takes {found[name].number} clips at most, of all shards "
                "together: give --number all"
            )
    return found


def _roles(flags: argparse.Namespace) -> tuple[str, ...]:
    """What the sets are: those that are saved are taken as real ones."""
    return (ROLES[0],) * len(flags.sets) if flags.save else ROLES


Sets = dict[str, tuple[dict[str, Any], Measured]]


class _Run:
    """Measures sets, or reads them.

    Attributes:
      unusable: number of videos that could not be used.
    """

    def __init__(self, flags: argparse.Namespace, rows: dict[str, Convention], stopped: Any):
        self.flags, self.rows, self.stopped = flags, rows, stopped
        self.unusable = 0
        self._network: tuple[Network, dict[str, Any]] | None = None

    def open(self, name: str, role: str) -> Sets | videos.VideoSet:
        """The measured set of a file, by convention, or the videos of that name.

        Raises:
          ValueError: there are no videos, or the set was measured otherwise than is asked for.
          OSError: it cannot be read.
        """
        if saved.is_saved(path := pathlib.Path(name)):
            return self._read(path, role)
        return videos.open_set(name, self.flags.fps, self.flags.data_dir)

    def measure(self, name: str, given: Sets | videos.VideoSet, role: str) -> Sets:
        """The measured set, by convention, of what `open` gave.

        Raises:
          ValueError: none of the videos can be used.
          StoppedError: a signal came.
        """
        if isinstance(given, dict):
            return given
        network, about = self._load()
        first = next(iter(self.rows.values()))
        measuring.check_frames(network, first.frames)
        requests = {each: self._request(row, role) for each, row in self.rows.items()}
        if given.kind == "array":  # cd-fvd's loader is for files.
            requests = {
                each: request._replace(input=request.input._replace(resolution=None))
                for each, request in requests.items()
            }
        numbers = range(len(given.names))[self.flags.shard.number - 1 :: self.flags.shard.total]
        errors: list[video.VideoError] = []

        def on_error(error: video.VideoError) -> None:
            if self.flags.strict:
                raise error
            errors.append(error)
            _say(cli.one_line(error))

        with tqdm.tqdm(desc=f"{role} {name}", unit="clip", disable=None) as bar:

            def advance(number: int) -> None:
                if self.stopped:
                    raise StoppedError(self.stopped)
                bar.update(number)

            found = measuring.measure(
                given,
                network,
                [*requests.values()],
                frames=first.frames,
                stride=self.flags.stride,
                keep=not self.flags.statistics_only,
                numbers=numbers,
                on_error=on_error,
                advance=advance,
            )
        self.unusable += len(errors)
        if errors:
            _say(f"{name}: {len(errors)} of {len(numbers)} videos cannot be used")
        if None in found:
            raise ValueError(f"{name}: none of {len(numbers)} videos can be used")
        return {
            each: (
                about
                | self._settings(self.rows[each], role)
                | {"resolution": request.input.resolution},
                measured,
            )
            for (each, request), measured in zip(requests.items(), found, strict=True)
            if measured is not None
        }

    def _load(self) -> tuple[Network, dict[str, Any]]:
        """The network, and the settings that it adds to those of flags."""
        if self._network is None:
            layer = next(iter(self.rows.values())).layer
            network = measuring.load(self.flags.weights, layer, self.flags.batch_size)
            fingerprint = weights.fingerprint(network.source.variables)
            name = published.name_of(fingerprint) or pathlib.Path(self.flags.weights).name
            about = {"weights": name, "fingerprint": fingerprint, "side": network.side}
            self._network = network, about
        return self._network

    def _read(self, path: pathlib.Path, role: str) -> Sets:
        found = saved.read(path)
        if self.flags.save:  # It is only merged with others.
            return found
        for each, row in self.rows.items():
            if each not in found:
                raise ValueError(f"{path}: has no {each}; it has {', '.join(found)}")
            own = found[each][0]
            wanted = self._settings(row, role)
            if own.get("resolution") is not None:  # Of an array there is none.
                wanted["resolution"] = row.resolution
            for name, value in wanted.items():
                if own.get(name) != value and not self.flags.allow_different:
                    raise ValueError(
                        f"{path}: {each} was measured with {name} {own.get(name)!r}, and "
                        f"{value!r} is asked for; --allow-different compares them still"
                    )
        return {each: found[each] for each in self.rows}

    def _request(self, row: Convention, role: str) -> Request:
        selection = Selection(*_selected(row, role), self.flags.seed)
        return Request(selection, Input(row.resize, row.resolution, row.norm_epsilon))

    def _settings(self, row: Convention, role: str) -> dict[str, Any]:
        """How a set is measured, as its file has it, but for the network."""
        clips, number = _selected(row, role)
        return {
            "layer": row.layer,
            "resize": row.resize,
            "norm_epsilon": row.norm_epsilon,
            "frames": row.frames,
            "stride": self.flags.stride,
            "fps": self.flags.fps,
            "clips": clips,
            "number": number,
            "seed": self.flags.seed,
        }


def _selected(row: Convention, role: str) -> tuple[str, int | None]:
    """Which clips of a set are taken, and how many at most."""
    if role == "real":
        return row.clips, row.number
    return row.generated_clips, row.generated_number


def _save(flags: argparse.Namespace, found: list[Sets]) -> None:
    """Writes one file of all sets."""
    merged = found[0]
    for other, name in zip(found[1:], flags.sets[1:], strict=True):
        if set(other) != set(merged):
            raise ValueError(
                f"{name}: has {', '.join(other)}, and {flags.sets[0]} has {', '.join(merged)}"
            )
        for each, (settings, measured) in other.items():
            own, before = merged[each]
            apart = [key for key in own if own[key] != settings.get(key) and key != "weights"]
            if apart and not flags.allow_different:
                raise ValueError(
                    f"{name}: {each} was measured with {apart[0]} {settings.get(apart[0])!r}, "
                    f"{flags.sets[0]} with {own[apart[0]]!r}"
                )
            merged[each] = own, saved.merge(before, measured)
    flags.save.parent.mkdir(parents=True, exist_ok=True)
    saved.write(flags.save, merged)
    for each, (_, measured) in merged.items():
        print(f"{flags.save}: {each}, {measured.statistics.number} clips")


def _report(flags: argparse.Namespace, rows: dict[str, Convention], found: list[Sets]) -> None:
    """Prints the distances, and what is to be said of them."""
    results, version = [], metadata.version("i3d-jax-zoo")
    for name, row in rows.items():
        real, generated = found[0][name], found[1][name]
        apart = report.differences(real[0], generated[0])
        if apart and not flags.allow_different:
            raise ValueError(
                f"{flags.sets[0]} and {flags.sets[1]} were measured in different ways: {apart[0]}; "
                "--allow-different compares them still"
            )
        results.append(
            report.compare(name, row, real, generated, flags.bootstrap, flags.extrapolate, version)
        )
    by_text: dict[str, list[str]] = {}
    for result in results:
        for text in result.warnings:
            by_text.setdefault(text, []).append(result.name)
    for text, names in by_text.items():
        _say(text if len(names) == len(results) else f"{', '.join(names)}: {text}")
    for result in results:
        if flags.json:
            print(json.dumps(result.record))
        else:
            print(result.text)


def _say(text: str) -> None:
    tqdm.tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
