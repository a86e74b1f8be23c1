"""Writes the records of a data set, shard by shard.

Interrupted work resumes with the first unfinished shard. The bytes do not depend on the number of
workers.

The clips of a split are ordered by a hash of their ids and cut into shards; one job writes one
shard. Finished shards wait in a folder of parts. Beside each lies its marker, a JSON file: what the
shard was made from, its contents, and the videos that could not be used, with the reasons. At the
very end all shards move into place. Jobs run in this process, in a pool of processes, or under
Apache Beam.
"""

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import tqdm
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

from i3d_jax import video
from i3d_jax.datasets import workers
from i3d_jax.datasets.records import FORMAT, Settings, check_storage, make_record, record_features
from i3d_jax.datasets.video_files import Clip
from i3d_jax.files import atomic_write, locked, naming_errors, remove_leftovers
from i3d_jax.prefetch import prefetch, usable_cores
from i3d_jax.stopping import StoppedError, catch_stop_signals

CLIPS_PER_SHARD = 128  # At most; about 100 MB of Kinetics.
RESUME_HINT = "finished shards are kept, and the same command resumes"


class PrepareError(ValueError):
    """A data set cannot be prepared; the message says why, and what is kept."""


class Job(NamedTuple):
    """The work for one shard.

    Attributes:
      shard: path of the shard among the parts.
      clips: the clips to write, also those without files.
      settings: of the data set.
    """

    shard: str
    clips: tuple[Clip, ...]
    settings: Settings


class Split(NamedTuple):
    """A split that is written.

    Attributes:
      shard_lengths: number of records of each shard.
      bytes: of all records.
      statistics: see `statistics`.
    """

    shard_lengths: list[int]
    bytes: int
    statistics: dict


def prepare(
    clips: Sequence[Clip],
    *,
    name: str,
    parts: pathlib.Path,
    folder: pathlib.Path,
    settings: Settings,
    processes: int | None = None,
    beam: list[str] | None = None,
) -> dict[str, Split]:
    """Writes the records of a data set that are not written yet, and rejected.csv.

    rejected.csv lists the videos that could not be used.

    Args:
      clips: all annotated clips, also those without files.
      name: of the data set.
      parts: folder for finished shards. Shards that lie there are used if they were made from the
        same clips.
      folder: folder of the data set.
      settings: of the records.
      processes: see `workers` of `ClipBuilder`.
      beam: see `ClipBuilder`.

    Returns:
      the splits by their names.

    Raises:
      PrepareError: a split has no clip that can be used, or the work was interrupted; finished
        shards are kept.
      StoppedError: SIGINT or SIGTERM came while processes were at work; finished shards are kept.
    """
    jobs = {
        split: list(shard_jobs(clips, split, name, parts, settings))
        for split in dict.fromkeys(c.split for c in clips)
    }
    for split in jobs:  # Fail now, not after hours.
        _check_files([clip for clip in clips if clip.split == split], split)
    parts.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parts)
    left = [job for of_split in jobs.values() for job in of_split if read_marker(job) is None]
    clips_left = sum(len(job.clips) for job in left)
    with tqdm.tqdm(
        total=len(clips), initial=len(clips) - clips_left, desc=name, unit="clip", smoothing=0.05
    ) as bar:
        try:
            if beam is not None:
                run_on_beam(left, beam)
            elif processes is None:
                for job in left:
                    write(job, bar.update, threads=usable_cores())
            else:
                run_in_pool(left, processes, bar)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise PrepareError(
                f"{parts}: {where}{error.strerror or error}; finished shards are kept"
            ) from None
    result, rejected = {}, []
    for split, split_jobs in jobs.items():
        result[split], rows = _summarize(split, split_jobs)
        rejected += rows
    for split_jobs in jobs.values():
        for job in split_jobs:
            _link_or_copy(pathlib.Path(job.shard), folder)
    _write_rejected(folder / "rejected.csv", rejected)
    return result


def _summarize(split: str, jobs: Sequence[Job]) -> tuple[Split, list[tuple]]:
    """Reads the markers of a split's jobs; returns the split and its rows of rejected.csv.

    Raises:
      PrepareError: a marker is missing, or no clip could be used.
    """
    markers = [read_marker(job) for job in jobs]
    missing = [job.shard for job, marker in zip(jobs, markers, strict=True) if marker is None]
    if missing:
        raise PrepareError(
            f"{missing[0]} and {len(missing) - 1} other shards are missing, though their jobs ended"
        )
    done = [marker for marker in markers if marker is not None]
    annotated = [clip for job in jobs for clip in job.clips]
    rejected = [(split, *row) for marker in done for row in marker["rejected"]]
    lengths = [sum(marker["used"].values()) for marker in done]
    if not sum(lengths):
        reasons = "; ".join(
            f"{path or clip}: {reason}" for _, clip, path, reason, _ in rejected[-3:]
        )
        raise PrepareError(
            f"none of the {len(annotated)} clips of {split} can be used: {reasons}, ..."
        )
    size = sum(marker["bytes"] for marker in done)
    return Split(lengths, size, statistics(annotated, done)), rejected


def _check_files(clips: Sequence[Clip], split: str) -> None:
    """Checks that one of a split's clips has a file."""
    if not any(clip.has_file for clip in clips):
        broken = [each for clip in clips for each in clip.broken]
        example = f"; {': '.join(broken[0])}, and {len(broken) - 1} more like it" if broken else ""
        raise PrepareError(
            f"none of the clips of {split} has a file among the videos: "
            f"leave {split}'s list out{example}"
        )


def _write_rejected(path: pathlib.Path, rows: Sequence[tuple]) -> None:
    # File names are bytes, and need not be UTF-8.
    with (
        naming_errors(path),
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("split", "id", "file", "reason", "used_instead"))
        writer.writerows(rows)


def statistics(annotated: Sequence[Clip], markers: Sequence[dict]) -> dict:
    """Counts the clips of a split.

    Args:
      annotated: all its clips.
      markers: of all its shards.

    Returns:
      a dict with these entries.
        "annotated": number of clips that are annotated.
        "used": number of clips that have a record.
        "frames": number of frames in the records.
        "rejected": number of clips left out, by kind of reason.
        "replaced": number of clips made from another than their preferred file.
        "classes": by class, the numbers of clips annotated and used.
    """
    per_class = Counter(clip.label for clip in annotated)
    used = sum((Counter(marker["used"]) for marker in markers), Counter())
    lost: dict[str, str] = {}
    replaced = set()
    for clip, _, reason, used_instead in (row for each in markers for row in each["rejected"]):
        if used_instead is None:
            lost.setdefault(clip, reason.partition(":")[0])  # The reason of the preferred file.
        else:
            replaced.add(clip)
    return {
        "annotated": len(annotated),
        "used": used.total(),
        "frames": sum(marker["frames"] for marker in markers),
        "rejected": dict(Counter(lost.values()).most_common()),
        "replaced": len(replaced),
        "classes": {label: [number, used[label]] for label, number in sorted(per_class.items())},
    }


def shard_jobs(
    clips: Sequence[Clip], split: str, name: str, parts: pathlib.Path, settings: Settings
) -> Iterator[Job]:
    """Yields the jobs of a split.

    Args:
      clips: see `prepare`.
      split: name of the split.
      name: of the data set.
      parts: see `prepare`.
      settings: of the records.
    """
    chosen = [clip for clip in clips if clip.split == split]
    # This order depends on the clips alone. It spreads clips of one video or class over shards.
    chosen.sort(key=lambda clip: hashlib.sha256(clip.id.encode()).digest())
    number = math.ceil(len(chosen) / CLIPS_PER_SHARD)
    for index in range(number):
        part = chosen[index * len(chosen) // number : (index + 1) * len(chosen) // number]
        shard = parts / f"{name}-{split}.array_record-{index:05d}-of-{number:05d}"
        yield Job(str(shard), tuple(part), settings)


def write(job: Job, advance: Callable[[], Any] = lambda: None, threads: int = 1) -> None:
    """Writes the shard of a job, and then its marker.

    Args:
      job: the job.
      advance: called after every clip.
      threads: that transcode.
    """
    features = record_features(job.settings.classes, job.settings.flow)
    specs: Any = features.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    shard, in_work = pathlib.Path(job.shard), _in_work_path(job)

    def make(clip: Clip) -> tuple[dict | None, list[tuple]]:
        # In several threads, one file could not say which video is in work.
        return _first_usable(clip, job.settings, in_work if threads == 1 else None)

    used, rejected, sizes, frames, size = Counter(), [], {}, 0, 0
    with atomic_write(shard) as temporary:
        # Videos cannot be compressed further; TFDS reads groups of 1.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        results = prefetch(make, job.clips, threads)
        for clip, (record, problems) in zip(job.clips, results, strict=True):
            if problems:
                rejected += problems
                sizes |= {path: _size(path) for path in (*clip.paths, *clip.flows)}
            if record is not None:
                # Not `serialize_example`: its order of features differs from process to process.
                message = serializer.get_tf_example(features.encode_example(record))
                data = message.SerializeToString(deterministic=True)
                with _writer_errors(shard):
                    writer.write(data)
                used[clip.label] += 1
                frames, size = frames + record["frames"], size + len(data)
            advance()
        with _writer_errors(shard):
            writer.close()
    state = {"made_from": fingerprint(job), "file": shard.stat().st_size, "sizes": sizes}
    content = {"bytes": size, "frames": frames, "used": dict(used), "rejected": rejected}
    with atomic_write(marker_path(job)) as temporary:
        temporary.write_text(json.dumps(state | content))
    in_work.unlink(missing_ok=True)


def _first_usable(
    clip: Clip, settings: Settings, in_work: pathlib.Path | None
) -> tuple[dict | None, list[tuple]]:
    """Makes a clip's record from the first of its files that can be used.

    Args:
      clip: the clip.
      settings: of the records.
      in_work: file to write the path of each video to, before it is read. If the video crashes the
        process, this names it.

    Returns:
      the record, or None, and the rows of the marker's "rejected": (id, file, reason, file used
      instead).
    """
    rejected, broken = [], dict(clip.broken)
    for path in clip.paths:
        if path in broken:
            rejected.append((path, broken[path]))
            continue
        if in_work is not None:
            with naming_errors(in_work):
                in_work.write_bytes(os.fsencode(path))
        try:
            record = make_record(clip, path, settings)
            return record, [(clip.id, *each, path) for each in rejected]
        except video.VideoError as error:
            check_storage(path, *clip.flows)
            rejected.append((path, error.reason))
    return None, [(clip.id, *each, None) for each in rejected or [(None, "is missing")]]


@contextlib.contextmanager
def _writer_errors(shard: pathlib.Path) -> Iterator[None]:
    """Turns the record writer's errors, for example of a full disk, into OSErrors."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error), str(shard)) from None


def fingerprint(job: Job) -> str:
    """A hash of all that the bytes of a job's shard depend on, but the videos' contents."""
    # Videos are known by their names, so that their folder may move.
    clips = [
        [
            *clip[:4],
            *([os.path.basename(path) for path in paths] for paths in (clip.paths, clip.flows)),
        ]
        for clip in job.clips
    ]
    text = json.dumps([FORMAT, clips, job.settings])
    return hashlib.sha256(text.encode()).hexdigest()


def marker_path(job: Job) -> pathlib.Path:
    """The file that says that a job is done."""
    return pathlib.Path(f"{job.shard}.json")


def _in_work_path(job: Job) -> pathlib.Path:
    """The file that names the video that a job is reading."""
    return pathlib.Path(f"{job.shard}.trying")


def read_marker(job: Job) -> dict | None:
    """Reads the marker of a job; None if the job must be done.

    It must be done if its shard is missing, incomplete or made from other clips, or if a file of a
    rejected clip has been replaced.
    """
    try:
        marker = json.loads(marker_path(job).read_text())
        unchanged = (
            marker["made_from"] == fingerprint(job)
            and marker["file"] == os.stat(job.shard).st_size
            and all(_size(path) == size for path, size in marker["sizes"].items())
        )
        return marker if unchanged else None
    except (OSError, ValueError, KeyError):
        return None


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None


def run_in_pool(jobs: Sequence[Job], number: int, bar: tqdm.tqdm) -> None:
    """Runs jobs in a pool of processes.

    Args:
      jobs: the jobs.
      number: number of processes.
      bar: progress bar, in clips.

    Raises:
      PrepareError: a process died.
      StoppedError: SIGINT or SIGTERM came.
    """
    in_work = [_in_work_path(job) for job in jobs]
    for path in in_work:
        path.unlink(missing_ok=True)  # A killed run leaves it.

    def videos_in_work(_: list[int]) -> list[str]:
        return sorted({os.fsdecode(path.read_bytes()) for path in in_work if path.exists()} - {""})

    counter, before = workers.CONTEXT.Value("q", 0), bar.n

    try:
        with catch_stop_signals() as stopped:

            def tick() -> None:
                if stopped:
                    raise StoppedError(stopped, f"stopped; {RESUME_HINT}")
                bar.update(before + counter.get_obj().value - bar.n)

            workers.run(
                _write_in_pool, jobs, number, suspects=videos_in_work, tick=tick, shared=counter
            )
    except workers.DeadWorkerError as error:
        raise PrepareError(f"{error}; {RESUME_HINT}") from None


def _write_in_pool(job: Job) -> None:
    counter = workers.shared()
    _use_cpu_only(job.settings)

    def advance() -> None:
        if workers.stop_requested():
            raise PrepareError("stopped")
        with counter.get_lock():
            counter.value += 1

    write(job, advance)


def _use_cpu_only(settings: Settings) -> None:
    """Makes a worker compute flow on the CPU: many processes cannot share an accelerator."""
    if settings.flow_preset is not None:
        jax.config.update("jax_platforms", "cpu")


def run_on_beam(jobs: Sequence[Job], options: list[str]) -> None:
    """Runs jobs under Apache Beam, whose workers must see the same folders.

    Args:
      jobs: the jobs.
      options: command-line options of the Beam pipeline.
    """
    try:
        import apache_beam  # pyright: ignore - an extra
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore
    except ImportError:
        raise PrepareError(
            "Apache Beam is not installed: pip install 'i3d-jax-zoo[beam]'"
        ) from None
    with apache_beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        # As JSON: Beam would turn named tuples into rows of its own.
        texts = pipeline | apache_beam.Create([json.dumps(job) for job in jobs])
        _ = texts | apache_beam.Reshuffle() | apache_beam.Map(_write_json)


def _write_json(text: str) -> None:
    """Writes the shard of a job that is given as JSON."""
    shard, clips, settings = json.loads(text)
    classes, *others = settings
    job = Job(shard, tuple(Clip(*clip) for clip in clips), Settings(tuple(classes), *others))
    _use_cpu_only(job.settings)
    write(job)


@contextlib.contextmanager
def lock_data_set(final: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from preparing the same data set.

    Args:
      final: folder of the data set.
      wait: whether to wait for another process that prepares it.

    Raises:
      PrepareError: another process is preparing it.
    """
    busy = PrepareError(f"{final}: another process is preparing it")
    with locked(final.with_name(f"{final.name}.lock"), busy, -1 if wait else 0):
        # TFDS leaves this if it is killed while it puts the data set together.
        for leftover in final.parent.glob(f"incomplete.*_{final.name}"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def remove_parts(final: pathlib.Path) -> None:
    """Removes the parts of a data set that is complete.

    Args:
      final: folder of the data set.
    """
    shutil.rmtree(final.with_name(f"{final.name}.parts"), ignore_errors=True)


def _link_or_copy(shard: pathlib.Path, folder: pathlib.Path) -> None:
    # Not a move: the part must stay until every shard is in place.
    try:
        os.link(shard, folder / shard.name)
    except OSError:
        with naming_errors(folder / shard.name):
            shutil.copyfile(shard, folder / shard.name)
