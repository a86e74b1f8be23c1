"""Prepares data sets from your videos, checks these before, and says what there is.

    python -m i3d_jax.datasets doctor kinetics/400 --videos k400 --annotations train.csv validate.csv --out findings.csv
    python -m i3d_jax.datasets prepare kinetics/400 --videos k400 --annotations train.csv validate.csv --out data --workers 32
    python -m i3d_jax.datasets prepare ucf101/1 --videos UCF-101 --annotations ucfTrainTestlist --out data
    python -m i3d_jax.datasets prepare own/videos --videos DIR --out data
    python -m i3d_jax.datasets show kinetics/400 --data-dir data --classes

Kinetics' annotations are the public CSVs, UCF-101's and HMDB-51's the folders of lists as they are shipped; videos of your own, of
any classes, lie in folders train/CLASS, validation/CLASS, test/CLASS. `prepare` makes
every video H.264 at 25 frames per second, short side 256, without sound; it goes on where it was stopped, and its bytes do not
depend on the number of workers. Videos that cannot be used are listed, with the reason, in `rejected.csv` beside the records.
"""

import argparse
import contextlib
import pathlib
import shlex
import sys
from typing import Any

from i3d_jax import cli, compilation, datasets, flow
from i3d_jax.datasets import annotations, clips, doctor, shards
from i3d_jax.stopping import StoppedError

COMPUTED: Any = object()  # What --flow is without a folder.


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("i3d_jax.datasets", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write a data set's records")
    check = commands.add_parser(
        "doctor",
        help="check a folder of videos against its annotations; exit status 1 if anything is found",
    )
    show = commands.add_parser("show", help="what a prepared data set has")
    for command in (prepare, check):
        command.add_argument("name", help="data set and config: kinetics/400, ucf101/1, ...")
        command.add_argument("--videos", type=pathlib.Path, help="folder of the videos")
        command.add_argument(
            "--annotations", type=pathlib.Path, nargs="+", metavar="FILE", help="lists of clips"
        )
    prepare.add_argument("--workers", type=int, help="processes (default: this one, with threads)")
    check.add_argument("--workers", type=int, help="processes (default: 1)")
    prepare.add_argument("--out", required=True, help="folder for prepared data sets")
    prepare.add_argument(
        "--flow",
        nargs="?",
        type=pathlib.Path,
        const=COMPUTED,
        metavar="DIR",
        help="folder of the videos' flow, laid out as they are, from `python -m i3d_jax.flow`; without DIR: compute it",
    )
    prepare.add_argument(
        "--flow-preset", choices=flow.PRESETS, help="how --flow computes it (default: opencv)"
    )
    prepare.add_argument(
        "--beam-runner", help="run under Apache Beam: DirectRunner, FlinkRunner, ..."
    )
    prepare.add_argument(
        "--beam-options", help='more of Beam\'s, written --beam-options="--parallelism=64 ..."'
    )
    check.add_argument("--out", type=pathlib.Path, metavar="CSV", help="file for all that is found")
    check.add_argument("--classes", action="store_true", help="also count what was found per class")
    check.add_argument("--quick", action="store_true", help="look files up, do not open them")
    show.add_argument("name", help="data set and config")
    show.add_argument("--data-dir", help="where it is (default: TFDS's own)")
    show.add_argument("--classes", action="store_true", help="also per class")
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    if getattr(flags, "workers", None) is not None and flags.workers < 1:
        parser.error(f"--workers: {flags.workers} is not a positive number")
    try:
        return {"prepare": _prepare, "doctor": _doctor, "show": _show}[flags.command](flags)
    except (annotations.AnnotationError, shards.PrepareError, OSError, ValueError) as error:
        print(f"python -m i3d_jax.datasets: {cli.one_line(error)}", file=sys.stderr)
        return 2
    except StoppedError as error:
        print(f"python -m i3d_jax.datasets: {error}", file=sys.stderr)
        return error.status


def _source(flags: argparse.Namespace, annotated: bool) -> clips.Source | None:
    videos, lists, folder, preset = flags.videos, flags.annotations, None, None
    if flags.command == "prepare":
        if flags.flow is COMPUTED:
            preset = flags.flow_preset or "opencv"
        else:
            folder = flags.flow
            if flags.flow_preset is not None:
                raise ValueError(
                    "--flow-preset: is for --flow without a folder, which computes flow"
                )
    if videos is None and lists is None and folder is None and preset is None:
        return None
    if lists is not None and not annotated:
        raise ValueError(f"{flags.name} has no annotations: leave --annotations out")
    required = {"--videos": videos} | ({"--annotations": lists} if annotated else {})
    if missing := [flag for flag, given in required.items() if given is None]:
        raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    assert videos is not None, "it is required"
    for flag, given in (("videos", videos), ("flow", folder)):
        if given is not None and not given.is_dir():
            raise ValueError(f"--{flag}: {given}: no such folder")
    return clips.Source(videos.absolute(), tuple(lists or ()), folder and folder.absolute(), preset)


def _prepare(flags: argparse.Namespace) -> int:
    beam = None
    if flags.beam_runner is not None:
        beam = [f"--runner={flags.beam_runner}", *shlex.split(flags.beam_options or "")]
        if flags.workers is not None:
            raise ValueError("--workers: Beam's options say how many there are")
    elif flags.beam_options is not None:
        raise ValueError("--beam-runner is missing")
    given = any(each is not None for each in (flags.videos, flags.annotations, flags.flow))
    kind = type(datasets.builder(flags.name))
    if given and kind.SELF_MADE:
        raise ValueError(
            f"{flags.name} makes its videos itself; leave --videos, --annotations and --flow out"
        )
    source = _source(flags, kind.ANNOTATED)
    if datasets.is_remote(flags.out):
        raise ValueError(
            f"--out: {flags.out} is not a folder here; prepare to one, and copy it there"
        )
    out = str(pathlib.Path(flags.out).absolute())  # Beam's workers may be somewhere else.
    builder = datasets.builder(flags.name, out, source=source, workers=flags.workers, beam=beam)
    if source is None and not kind.SELF_MADE:
        missing = "--videos and --annotations are" if kind.ANNOTATED else "--videos is"
        raise ValueError(f"{flags.name} is prepared from your files: {missing} missing")
    if builder.final.exists():
        print(f"{builder.final} is there already; remove it to prepare it anew", file=sys.stderr)
        shards.remove_parts(
            builder.final
        )  # Its parts, if the process that prepared it was killed at the very end.
    else:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS reports there; stdout is for results.
            builder.prepare()
    _warn(builder)
    print(f"{builder.final}\n{described(builder)}")
    return 0


def _warn(builder: datasets.ClipBuilder) -> None:
    if builder.fault:
        print(f"python -m i3d_jax.datasets: {builder.fault}", file=sys.stderr)


def _doctor(flags: argparse.Namespace) -> int:
    builder = datasets.builder(flags.name)
    if not builder.ANNOTATED:
        raise ValueError(
            f"{flags.name} has no annotations to check; prepare lists the videos that cannot be used"
        )
    source = _source(flags, builder.ANNOTATED)
    if source is None:
        raise ValueError("--videos and --annotations are missing")
    rows = builder.rows(source.annotations)
    classes, processes = builder.classes(), flags.workers or 1
    if flags.out is not None and not flags.out.absolute().parent.is_dir():
        raise ValueError(f"--out: {flags.out.absolute().parent}: no such folder")
    findings = doctor.examine(rows, source.videos, classes, processes=processes, quick=flags.quick)
    print(doctor.summary(rows, findings, flags.classes))
    if flags.out is not None:
        doctor.write_csv(flags.out, findings)
    return 1 if findings else 0


def _show(flags: argparse.Namespace) -> int:
    builder = datasets.available(flags.name, flags.data_dir)
    if not builder.final.exists():
        raise ValueError(f"{flags.name} is not prepared in {builder.final.parents[2]}")
    _warn(builder)
    print(f"{builder.final}\n{described(builder, flags.classes)}")
    return 0


def described(builder: datasets.ClipBuilder, classes: bool = False) -> str:
    """What a prepared data set has, as text."""
    lines = [f"records: format {builder.format}"]
    if builder.flow_recipe is not None:
        lines.append(
            "flow: {method}, preset {preset}, version {version}".format_map(builder.flow_recipe)
        )
    for split, found in builder.statistics.items():
        seconds, size = found["frames"] / 25, builder.info.splits[split].num_bytes
        lines.append(
            f"{split}: {datasets.coverage(found)}, {seconds / 3600:,.3g} h, {size / 1e6:,.4g} MB, {', '.join(builder.streams)}"
        )
        lines += [f"  left out: {count} {kind}" for kind, count in found["rejected"].items()]
        if replaced := found.get(
            "replaced"
        ):  # Data sets that were prepared earlier do not have it.
            lines.append(f"  of another than its preferred file: {replaced}")
        if classes:
            lines += [
                f"  {label}: {used} of {number}"
                for label, (number, used) in found["classes"].items()
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
