"""Checks your videos, prepares data sets from them, and describes prepared data sets.

    python -m i3d_jax.datasets doctor kinetics/400 --videos k400 \\
        --annotations train.csv validate.csv --out findings.csv
    python -m i3d_jax.datasets prepare kinetics/400 --videos k400 \\
        --annotations train.csv validate.csv --data-dir data --workers 32
    python -m i3d_jax.datasets prepare own/videos --videos DIR --data-dir data
    python -m i3d_jax.datasets show kinetics/400 --data-dir data --classes
    python -m i3d_jax.datasets show kinetics/400 --data-dir data --clips 8 --config=kinetics:i3d_rgb

Annotations of Kinetics are its public CSVs; those of UCF-101 and HMDB-51 are their published
folders of lists. Your own videos, of any classes, lie in folders train/CLASS, validation/CLASS and
test/CLASS.
"""

import argparse
import contextlib
import itertools
import pathlib
import shlex
import sys
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import tqdm

from i3d_jax import cli, compilation, datasets, flow, models
from i3d_jax.datasets import annotations, clip_sheet, clips, doctor, pipeline, shards
from i3d_jax.stopping import StoppedError

# Keys that choose the clips of a run, and that a config may leave out.
CLIP_KEYS = "seed", "train_split", "test_split", "validation_split", "pretrain"
DEFAULT_PICTURE = pathlib.Path("clips.png")
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
    python -m i3d_jax.datasets show moving_shapes/videos --data-dir data --clips 8 \\
        --config=moving_shapes --out clips.png

With --clips it also draws clips as the network gets them: decoded, resized, cropped, mirrored and
reversed. With --config these are the first training clips of that run, in its order. Any
--config.KEY=VALUE changes a key, as for `python -m i3d_jax.main`. If the config trains another
network first (config.pretrain), the name chooses whose clips are drawn. If --split is the split of
the run's test or validations, whole videos are drawn as these take them. Without --config the clips
are the paper's training clips for I3D.

"RGB 3 x 10" at a clip says that the network gets 3 RGB frames, each 10 after the last, at 25 per
second. At most six of them are drawn.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: of the command line; None: `sys.argv[1:]`.

    Returns:
      the exit status.
    """
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = [each for each in arguments if each.startswith(("--config.", "--noconfig."))]
    flags = parser.parse_args([each for each in arguments if each not in options])
    if options and getattr(flags, "config", None) is None:
        parser.error(f"{options[0]}: is for `show --clips --config`")
    flags.config_options = options
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
    show.add_argument("--clips", type=cli.positive, metavar="N", help="also draw N clips")
    show.add_argument(
        "--config", metavar="NAME|FILE[:ARGUMENT]", help="the run whose clips are drawn"
    )
    show.add_argument("--split", help="split of these clips (default: that of the training)")
    show.add_argument(
        "--out", type=pathlib.Path, metavar="PNG", help="file for the picture (default: clips.png)"
    )
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
    run, data_dir = _check_clip_flags(flags), flags.data_dir
    if run is not None and data_dir is None:
        data_dir = run.config["dataset"].get("data_dir")
    builder = datasets.available(flags.name, data_dir)
    if not builder.final.exists():
        raise ValueError(f"{flags.name} is not prepared in {builder.final.parents[2]}")
    if flags.clips is None:
        _warn(builder)
        print(f"{builder.final}\n{describe(builder, flags.classes)}")
        return 0
    builder = datasets.prepared(flags.name, data_dir)  # It has the records of a remote data set.
    jax.config.update("jax_platforms", "cpu")  # A run may be using the accelerator.
    wanted = _paper_clips(flags, builder) if run is None else _clips_of_run(flags, run, builder)
    with contextlib.closing(wanted.clips) as found:
        bar = tqdm.tqdm(found, total=flags.clips, unit="clip", disable=None)
        drawn = list(itertools.islice(bar, flags.clips))
    title = f"{flags.name}, {wanted.split}: the first {len(drawn)} {wanted.what}"
    out = flags.out or DEFAULT_PICTURE
    clip_sheet.write(out, clip_sheet.draw(drawn, builder.class_names, wanted.streams, title))
    print(f"{builder.final}\n{describe(builder, flags.classes)}\n{out}: {title}")
    if run is not None and (first := run.config["pretrain"]) is not None:
        name = first["dataset"]["name"]
        print(f"  {run.name} trains on {name} first: `show {name}` draws these clips")
    return 0


class RunConfig(NamedTuple):
    """The config of the run whose clips are drawn.

    Attributes:
      name: as the user gave it, and whether it is that config's `pretrain`.
      config: the arguments of `loop.train`, with the defaults of `CLIP_KEYS`.
    """

    name: str
    config: dict[str, Any]


class WantedClips(NamedTuple):
    """Clips to draw.

    Attributes:
      clips: yields them, and perhaps more.
      streams: the frames of a clip and the step between them.
      split: that they are from.
      what: says which they are.
    """

    clips: Generator[clip_sheet.Clip, None, None]
    streams: pipeline.Streams
    split: str
    what: str


def _check_clip_flags(flags: argparse.Namespace) -> RunConfig | None:
    """Checks the flags of `show` that are for clips.

    Returns:
      the run that is shown; None: no --config.

    Raises:
      ValueError: a flag does not apply, or cannot be used.
    """
    if flags.clips is None:
        for name in ("config", "split", "out"):
            if getattr(flags, name) is not None:
                raise ValueError(f"--{name}: is for --clips")
        return None
    if flags.clips > clip_sheet.MOST_CLIPS:
        raise ValueError(f"--clips: {flags.clips}, wanted at most {clip_sheet.MOST_CLIPS}")
    clip_sheet.check_target(flags.out or DEFAULT_PICTURE)
    return None if flags.config is None else _load_config(flags)


def _load_config(flags: argparse.Namespace) -> RunConfig:
    """Loads the config of --config or, if only this is of the data set, takes its `pretrain`.

    Raises:
      ValueError: it cannot be loaded, or is of another data set.
    """
    # Imported here, since nothing else needs what training needs.
    from i3d_jax.training import config_files, loop
    from i3d_jax.training.config import check_arguments

    config = config_files.override(config_files.load(flags.config), flags.config_options)
    where, others = "config", []
    while config is not None:
        check_arguments(where, loop.train, config, workdir="")
        if (name := config["dataset"].get("name")) == flags.name:
            known = config_files.keys({})
            config = {key: known[key].default for key in CLIP_KEYS} | config
            inner = "" if where == "config" else f" ({where})"
            return RunConfig(f"{flags.config}{inner}", config)
        others.append(f"{where}.dataset.name is {name}")
        config, where = config.get("pretrain"), f"{where}.pretrain"
    raise ValueError(f"{flags.name}: is not what {flags.config} trains on: {', '.join(others)}")


def _clips_of_run(
    flags: argparse.Namespace, run: RunConfig, builder: datasets.ClipBuilder
) -> WantedClips:
    """The first clips of a run's training, or of its test or validations."""
    from i3d_jax.training import loop
    from i3d_jax.training.config import validate_clips

    config = run.config
    validate_clips(config, builder, loop.train)
    training, split = config["train_split"], flags.split or config["train_split"]
    splits = [training, config["test_split"], config["validation_split"] or config["test_split"]]
    if split not in splits:
        there = ", ".join(dict.fromkeys(splits))
        raise ValueError(f"--split: {split!r} is none of {run.name}; there are {there}")
    section = config["train_clips" if split == training else "eval_clips"]
    streams = pipeline.streams(section.get("rgb"), section.get("flow"))
    records = builder.records(split)
    if split != training:
        timing = models.build(num_classes=1, **config["model"]).timing
        shown = clip_sheet.test_clips(itertools.islice(records, flags.clips), timing, **section)
        return WantedClips(shown, streams, split, f"test clips of {run.name}")
    # The order of the clips does not depend on the batch size; one by one they come soon.
    config = config | {"batch_size": 1, "train_clips": section | {"workers": 0}}
    numbered = clip_sheet.Numbered(records)
    shown = clip_sheet.training_clips(loop.training_batches(config, numbered), numbered)
    what = f"training clips of {run.name}, seed {config['seed']}"
    return WantedClips(shown, streams, split, what)


def _paper_clips(flags: argparse.Namespace, builder: datasets.ClipBuilder) -> WantedClips:
    """The paper's training clips for I3D, of the streams that a data set has."""
    split = flags.split or "train"
    if split.partition("[")[0] not in builder.splits():
        there = ", ".join(builder.splits())
        raise ValueError(f"--split: {flags.name} has no split {split!r}; there are {there}")
    arguments = clip_sheet.paper_clips(builder)
    numbered = clip_sheet.Numbered(builder.records(split))
    batches = pipeline.train_batches(numbered, batch_size=1, seed=0, **arguments)
    streams = pipeline.streams(arguments.get("rgb"), arguments.get("flow"))
    what = f"of the paper's training clips for I3D, crop {arguments['crop']}"
    return WantedClips(clip_sheet.training_clips(batches, numbered), streams, split, what)


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
