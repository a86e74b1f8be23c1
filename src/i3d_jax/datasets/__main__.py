"""Checks your videos, prepares data sets from them, and describes prepared data sets.

    python -m i3d_jax.datasets doctor kinetics/400 --videos k400 \\
        --annotations train.csv validate.csv --out findings.csv
    python -m i3d_jax.datasets prepare kinetics/400 --videos k400 \\
        --annotations train.csv validate.csv --data-dir data --workers 32
    python -m i3d_jax.datasets prepare own/videos --videos DIR --data-dir data
    python -m i3d_jax.datasets show kinetics/400 --data-dir data --classes

Annotations of Kinetics are its public CSVs; those of UCF-101 and HMDB-51 are their published
folders of lists. Your own videos, of any classes, lie in folders train/CLASS, validation/CLASS and
test/CLASS.
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

COMPUTE_FLOW: Any = object()  # The value of --flow without a folder.

PREPARE = """Writes a data set's records, from your videos.

Every video becomes H.264 at 25 frames per second, short side 256, without sound. Videos that cannot
be used are listed, with the reasons, in rejected.csv beside the records.

If interrupted, run the same command again: only unfinished shards are redone. The output does not
depend on the number of workers.

    python -m i3d_jax.datasets prepare kinetics/400 --videos k400 \\
        --annotations train.csv validate.csv --data-dir data --workers 32
    python -m i3d_jax.datasets prepare ucf101/1 --videos UCF-101 \\
        --annotations ucfTrainTestlist --data-dir data
    python -m i3d_jax.datasets prepare own/videos --videos DIR --data-dir data
"""

DOCTOR = """Checks a folder of videos against its annotations, before it is prepared.

The exit status is 1 if there are findings.

    python -m i3d_jax.datasets doctor kinetics/400 --videos k400 \\
        --annotations train.csv validate.csv --out findings.csv
"""

SHOW = """Describes a prepared data set: its splits, sizes, and the clips that were left out.

    python -m i3d_jax.datasets show kinetics/400 --data-dir data --classes
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: of the command line; None: `sys.argv[1:]`.

    Returns:
      the exit status.
    """
    parser = _parser()
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    try:
        return {"prepare": _prepare, "doctor": _doctor, "show": _show}[flags.command](flags)
    except (annotations.AnnotationError, shards.PrepareError, OSError, ValueError) as error:
        cli.print_error(error)
        return 2
    except StoppedError as error:
        cli.print_error(str(error))
        return error.status


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("i3d_jax.datasets", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add_command(name: str, description: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("name", help="data set and config: kinetics/400, ucf101/1, ...")
        return command

    prepare = add_command("prepare", PREPARE, "write a data set's records")
    check = add_command("doctor", DOCTOR, "check a folder of videos against its annotations")
    show = add_command("show", SHOW, "describe a prepared data set")
    for command in (prepare, check):
        command.add_argument("--videos", type=pathlib.Path, metavar="DIR", help="folder of videos")
        command.add_argument(
            "--annotations", type=pathlib.Path, nargs="+", metavar="FILE", help="lists of clips"
        )
    prepare.add_argument("--data-dir", required=True, help="folder of prepared data sets")
    prepare.add_argument(
        "--workers", type=cli.positive, help="processes (default: this one, with threads)"
    )
    prepare.add_argument(
        "--flow",
        nargs="?",
        type=pathlib.Path,
        const=COMPUTE_FLOW,
        metavar="DIR",
        help="folder of flow files that `python -m i3d_jax.flow` wrote, laid out as the videos "
        "are; without DIR: compute the flow",
    )
    prepare.add_argument(
        "--flow-preset", choices=flow.PRESETS, help="preset of --flow without DIR (default: opencv)"
    )
    prepare.add_argument(
        "--beam-runner", help="run under Apache Beam: DirectRunner, FlinkRunner, ..."
    )
    prepare.add_argument(
        "--beam-options", help='more options for Beam: --beam-options="--parallelism=64 ..."'
    )
    check.add_argument("--workers", type=cli.positive, help="processes (default: 1)")
    check.add_argument("--out", type=pathlib.Path, metavar="CSV", help="file for all findings")
    check.add_argument("--classes", action="store_true", help="also count findings per class")
    check.add_argument("--quick", action="store_true", help="look files up, do not open them")
    show.add_argument("--data-dir", help="folder of prepared data sets (default: TFDS's own)")
    show.add_argument("--classes", action="store_true", help="also count clips per class")
    return parser


def _source(flags: argparse.Namespace, annotated: bool) -> clips.Source | None:
    """The files that the flags name; None if they name none.

    Args:
      flags: of `prepare` or `doctor`.
      annotated: whether the data set has annotations.

    Raises:
      ValueError: a flag is missing, does not apply, or names no folder.
    """
    videos, lists, flow_folder, preset = flags.videos, flags.annotations, None, None
    if flags.command == "prepare":
        if flags.flow is COMPUTE_FLOW:
            preset = flags.flow_preset or "opencv"
        else:
            flow_folder = flags.flow
            if flags.flow_preset is not None:
                raise ValueError("--flow-preset: is for --flow without a folder")
    if videos is None and lists is None and flow_folder is None and preset is None:
        return None
    if lists is not None and not annotated:
        raise ValueError(f"{flags.name} has no annotations: leave --annotations out")
    required = {"--videos": videos} | ({"--annotations": lists} if annotated else {})
    if missing := [flag for flag, given in required.items() if given is None]:
        raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    assert videos is not None, "it is required"
    for flag, given in (("videos", videos), ("flow", flow_folder)):
        if given is not None and not given.is_dir():
            raise ValueError(f"--{flag}: {given}: no such folder")
    flow_folder = flow_folder and flow_folder.absolute()
    return clips.Source(videos.absolute(), tuple(lists or ()), flow_folder, preset)


def _beam_options(flags: argparse.Namespace) -> list[str] | None:
    """The options of the Beam pipeline; None: no Beam."""
    if flags.beam_runner is None:
        if flags.beam_options is not None:
            raise ValueError("--beam-runner is missing")
        return None
    if flags.workers is not None:
        raise ValueError("--workers: set the number of workers in --beam-options")
    return [f"--runner={flags.beam_runner}", *shlex.split(flags.beam_options or "")]


def _prepare(flags: argparse.Namespace) -> int:
    beam = _beam_options(flags)
    given = any(each is not None for each in (flags.videos, flags.annotations, flags.flow))
    kind = type(datasets.builder(flags.name))
    if given and kind.GENERATED:
        raise ValueError(
            f"{flags.name} generates its own videos: leave --videos, --annotations and --flow out"
        )
    source = _source(flags, kind.ANNOTATED)
    if datasets.is_remote(flags.data_dir):
        raise ValueError(
            f"--data-dir: {flags.data_dir} is not a local folder; prepare to one, and copy it there"
        )
    data_dir = str(pathlib.Path(flags.data_dir).absolute())  # For Beam's workers.
    builder = datasets.builder(
        flags.name, data_dir, source=source, workers=flags.workers, beam=beam
    )
    if source is None and not kind.GENERATED:
        missing = "--videos and --annotations are" if kind.ANNOTATED else "--videos is"
        raise ValueError(f"{flags.name} is prepared from your files: {missing} missing")
    if builder.final.exists():
        print(f"{builder.final} exists; remove it to prepare it again", file=sys.stderr)
        # A process that was killed at the very end leaves the parts.
        shards.remove_parts(builder.final)
    else:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS reports there; stdout is for results.
            builder.prepare()
    _warn(builder)
    print(f"{builder.final}\n{describe(builder)}")
    return 0


def _warn(builder: datasets.ClipBuilder) -> None:
    if builder.known_problem:
        cli.print_error(builder.known_problem)


def _doctor(flags: argparse.Namespace) -> int:
    builder = datasets.builder(flags.name)
    if not builder.ANNOTATED:
        raise ValueError(
            f"{flags.name} has no annotations to check; `prepare` lists the videos that cannot be "
            "used"
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
    print(f"{builder.final}\n{describe(builder, flags.classes)}")
    return 0


def describe(builder: datasets.ClipBuilder, classes: bool = False) -> str:
    """Describes a prepared data set.

    Args:
      builder: of the data set.
      classes: whether to add a line for each class.
    """
    lines = [f"records: format {builder.format}"]
    if builder.flow_recipe is not None:
        recipe = "flow: {method}, preset {preset}, version {version}"
        lines.append(recipe.format_map(builder.flow_recipe))
    for split, found in builder.statistics.items():
        hours = found["frames"] / 25 / 3600
        megabytes = builder.info.splits[split].num_bytes / 1e6
        lines.append(
            f"{split}: {datasets.coverage(found)}, {hours:,.3g} h, {megabytes:,.4g} MB, "
            f"{', '.join(builder.streams)}"
        )
        lines += [f"  left out: {count} {kind}" for kind, count in found["rejected"].items()]
        if replaced := found.get("replaced"):  # Data sets of earlier versions do not have it.
            lines.append(f"  made from another than the preferred file: {replaced}")
        if classes:
            lines += [
                f"  {label}: {used} of {number}"
                for label, (number, used) in found["classes"].items()
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
