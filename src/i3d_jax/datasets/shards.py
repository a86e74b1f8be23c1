"""Writing records shard by shard, so that work that was cut off goes on and its bytes do not depend on who did it.

The clips of a split are ordered by a hash of their ids and cut into shards; a job writes one. Finished shards wait in a
folder of parts, each beside a JSON file that says what it was made from, what is in it and which videos could not be used
and why; all move into place at the very end. Jobs run in this process, in a pool of processes, or under Apache Beam.
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

CLIPS = 128  # Per shard, about; 100 MB of Kinetics.


class PrepareError(ValueError):
    """A data set that cannot be prepared; the message says why, and what is kept."""


class Job(NamedTuple):
    """One shard: where it goes, and what it is made from."""

    shard: str
    clips: tuple[Clip, ...]
    settings: Settings


class Split(NamedTuple):
    """What was made of a split: its shards' numbers of records, bytes, and `statistics`."""

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
    """Writes the records of a data set, or what there is to do yet, to `folder`, and the list of videos that could not be used.

    Args:
      clips: all that are annotated, also those that have no file.
      name: of the data set.
      parts: folder for what is done so far. What lies there is used if it was made from the same clips.
      processes, beam: `workers` and `beam` of `ClipBuilder`.

    Returns:
      per split what was made of it.

    Raises:
      PrepareError: a split has no clip that can be used, or the work was cut off; shards that are done are kept.
      StoppedError: SIGINT or SIGTERM came while processes were at work; shards that are done are kept too.
    """
    jobs = {
        split: list(shard_jobs(clips, split, name, parts, settings))
        for split in dict.fromkeys(c.split for c in clips)
    }
    for split in jobs:  # Better now than after hours.
        _check_files([clip for clip in clips if clip.split == split], split)
    parts.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parts)
    left = [job for of_split in jobs.values() for job in of_split if marker(job) is None]
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
                run(left, processes, bar)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise PrepareError(
                f"{parts}: {where}{error.strerror or error}; shards that are done are kept"
            ) from None
    result, rejected = {}, []
    for split, of_split in jobs.items():
        found = [marker(job) for job in of_split]
        missing = [job.shard for job, each in zip(of_split, found, strict=True) if each is None]
        if missing:
            raise PrepareError(
                f"{missing[0]} and {len(missing) - 1} other shards are not there, though their jobs ended"
            )
        annotated, done = (
            [clip for job in of_split for clip in job.clips],
            [each for each in found if each is not None],
        )
        rejected += [(split, *row) for each in done for row in each["rejected"]]
        lengths = [sum(each["used"].values()) for each in done]
        if not sum(lengths):
            reasons = "; ".join(
                f"{path or clip}: {reason}" for _, clip, path, reason, _ in rejected[-3:]
            )
            raise PrepareError(
                f"none of the {len(annotated)} clips of {split} can be used: {reasons}, ..."
            )
        result[split] = Split(
            lengths, sum(each["bytes"] for each in done), statistics(annotated, done)
        )
    for of_split in jobs.values():
        for job in of_split:
            _place(pathlib.Path(job.shard), folder)
    _write_rejected(folder / "rejected.csv", rejected)
    return result


def _check_files(clips: Sequence[Clip], split: str) -> None:
    if not any(clip.has_file for clip in clips):
        broken = [each for clip in clips for each in clip.broken]
        what = f"; {': '.join(broken[0])}, and {len(broken) - 1} more like it" if broken else ""
        raise PrepareError(
            f"none of the clips of {split} has a file among the videos: leave {split}'s list out{what}"
        )


def _write_rejected(path: pathlib.Path, rows: Sequence[tuple]) -> None:
    # Names of files are bytes, and not all are UTF-8.
    with (
        naming_errors(path),
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("split", "id", "file", "reason", "used_instead"))
        writer.writerows(rows)


def statistics(annotated: Sequence[Clip], done: Sequence[dict]) -> dict:
    """What there is of a split, from what its shards' markers say.

    Returns:
      "annotated" and "used" clips, "frames" in these, "rejected": how many clips are left out by kind of reason, "replaced":
      how many are of another than their preferred file, and "classes": per class the clips annotated and used.
    """
    per_class = Counter(clip.label for clip in annotated)
    used = sum((Counter(each["used"]) for each in done), Counter())
    lost: dict[str, str] = {}
    replaced = set()
    for clip, _, reason, instead in (row for each in done for row in each["rejected"]):
        if instead is None:
            lost.setdefault(clip, reason.partition(":")[0])  # Of its preferred file.
        else:
            replaced.add(clip)
    return {
        "annotated": len(annotated),
        "used": used.total(),
        "frames": sum(each["frames"] for each in done),
        "rejected": dict(Counter(lost.values()).most_common()),
        "replaced": len(replaced),
        "classes": {label: [number, used[label]] for label, number in sorted(per_class.items())},
    }


def shard_jobs(
    clips: Sequence[Clip], split: str, name: str, parts: pathlib.Path, settings: Settings
) -> Iterator[Job]:
    chosen = [clip for clip in clips if clip.split == split]
    # An order that depends on the clips alone; neighbours of one video or class end in different shards.
    chosen.sort(key=lambda clip: hashlib.sha256(clip.id.encode()).digest())
    number = math.ceil(len(chosen) / CLIPS)
    for index in range(number):
        part = chosen[index * len(chosen) // number : (index + 1) * len(chosen) // number]
        shard = parts / f"{name}-{split}.array_record-{index:05d}-of-{number:05d}"
        yield Job(str(shard), tuple(part), settings)


def write(job: Job, advance: Callable[[], Any] = lambda: None, threads: int = 1) -> None:
    """Writes the shard of a job, and then its marker; calls `advance` after every clip."""
    form = record_features(job.settings.classes, job.settings.flow)
    specs: Any = form.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    shard, trying = pathlib.Path(job.shard), pathlib.Path(f"{job.shard}.trying")

    def example(clip: Clip) -> tuple[dict | None, list]:
        """What the record holds, if any of the clip's files can be used, and what is wrong with those before it."""
        rejected, broken = [], dict(clip.broken)
        for path in clip.paths:
            if path in broken:
                rejected.append((path, broken[path]))
                continue
            if threads == 1:
                with naming_errors(trying):  # Names the video, should it bring the process down.
                    trying.write_bytes(os.fsencode(path))
            try:
                found = make_record(clip, path, job.settings)
                return found, [(clip.id, *each, path) for each in rejected]
            except video.VideoError as error:
                check_storage(path, *clip.flows)
                rejected.append((path, error.reason))
        return None, [(clip.id, *each, None) for each in rejected or [(None, "is missing")]]

    used, rejected, sizes, frames, size = Counter(), [], {}, 0, 0
    with atomic_write(shard) as temporary:
        # Videos cannot be compressed further; TFDS reads groups of 1.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for clip, (found, problems) in zip(
            job.clips, prefetch(example, job.clips, threads), strict=True
        ):
            if problems:
                rejected += problems
                sizes |= {path: _size(path) for path in (*clip.paths, *clip.flows)}
            if found is not None:
                # Not `serialize_example`: its order of the features is another one in every process.
                message = serializer.get_tf_example(form.encode_example(found))
                data = message.SerializeToString(deterministic=True)
                _written(shard, writer.write, data)
                used[clip.label] += 1
                frames, size = frames + found["frames"], size + len(data)
            advance()
        _written(shard, writer.close)
    state = {"made_from": fingerprint(job), "file": shard.stat().st_size, "sizes": sizes}
    content = {"bytes": size, "frames": frames, "used": dict(used), "rejected": rejected}
    with atomic_write(marker_path(job)) as temporary:
        temporary.write_text(json.dumps(state | content))
    trying.unlink(missing_ok=True)


def _written(shard: pathlib.Path, call: Callable[..., Any], *data: bytes) -> None:
    try:
        call(*data)
    except RuntimeError as error:  # A disk that is full, for one.
        raise OSError(errno.EIO, str(error), str(shard)) from None


def fingerprint(job: Job) -> str:
    # The folder may be another: videos are known by their names.
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
    return pathlib.Path(f"{job.shard}.json")


def marker(job: Job) -> dict | None:
    """What the job left when it was done, or None if it is to be done.

    That is when its shard is not here or not whole, was made from other clips, or a file of a clip that it rejected was replaced.
    """
    try:
        found = json.loads(marker_path(job).read_text())
        whole = (
            found["made_from"] == fingerprint(job) and found["file"] == os.stat(job.shard).st_size
        )
        return (
            found
            if whole and all(_size(path) == size for path, size in found["sizes"].items())
            else None
        )
    except (OSError, ValueError, KeyError):
        return None


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None


def run(jobs: Sequence[Job], number: int, bar: tqdm.tqdm) -> None:
    """Runs jobs in a pool of processes.

    Raises:
      PrepareError: a process died.
      StoppedError: SIGINT or SIGTERM came.
    """
    trying = [pathlib.Path(f"{job.shard}.trying") for job in jobs]
    for path in trying:
        path.unlink(missing_ok=True)  # Of a run that was killed.

    def tried(_: list[int]) -> list[str]:
        return sorted({os.fsdecode(path.read_bytes()) for path in trying if path.exists()} - {""})

    counter, before = workers.CONTEXT.Value("q", 0), bar.n

    try:
        with catch_stop_signals() as stopped:

            def tick() -> None:
                if stopped:
                    raise StoppedError(
                        stopped,
                        "stopped; shards that are done are kept, and the same command goes on",
                    )
                bar.update(before + counter.get_obj().value - bar.n)

            workers.run(_write, jobs, number, suspects=tried, tick=tick, shared=counter)
    except workers.DeadWorkerError as error:
        raise PrepareError(
            f"{error}; shards that are done are kept, and the same command goes on"
        ) from None


def _write(job: Job) -> None:
    counter = workers.shared()
    _leave_accelerators(job.settings)

    def advance() -> None:
        if workers.leaving():
            raise PrepareError("stopped")
        with counter.get_lock():
            counter.value += 1

    write(job, advance)


def _leave_accelerators(settings: Settings) -> None:
    """For one of many processes: they cannot share an accelerator, and compute flow on the CPU."""
    if settings.tv_l1 is not None:
        jax.config.update("jax_platforms", "cpu")


def run_on_beam(jobs: Sequence[Job], options: list[str]) -> None:
    """Runs jobs under Apache Beam; its workers must see the same folders."""
    try:
        import apache_beam  # pyright: ignore - an extra
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore
    except ImportError:
        raise PrepareError(
            "Apache Beam is not installed: pip install 'i3d-jax-zoo[beam]'"
        ) from None
    with apache_beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        # As text: Beam has ideas of its own about named tuples.
        texts = pipeline | apache_beam.Create([json.dumps(job) for job in jobs])
        _ = texts | apache_beam.Reshuffle() | apache_beam.Map(_write_text)


def _write_text(text: str) -> None:
    shard, clips, settings = json.loads(text)
    classes, *others = settings
    job = Job(shard, tuple(Clip(*clip) for clip in clips), Settings(tuple(classes), *others))
    _leave_accelerators(job.settings)
    write(job)


@contextlib.contextmanager
def lock_data_set(final: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Makes sure that no other process prepares the same data set, or waits until it does not."""
    busy = PrepareError(f"{final}: another process is preparing it")
    with locked(final.with_name(f"{final.name}.lock"), busy, -1 if wait else 0):
        # A process that was killed while TFDS put a data set together left this.
        for leftover in final.parent.glob(f"incomplete.*_{final.name}"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def remove_parts(final: pathlib.Path) -> None:
    """Removes the parts of a data set that is in place."""
    shutil.rmtree(final.with_name(f"{final.name}.parts"), ignore_errors=True)


def _place(shard: pathlib.Path, folder: pathlib.Path) -> None:
    # A link, or a copy where there are none: whatever happens, the part stays until everything is in place.
    try:
        os.link(shard, folder / shard.name)
    except OSError:
        with naming_errors(folder / shard.name):
            shutil.copyfile(shard, folder / shard.name)
