"""Checks a folder of videos against its annotations, before a data set is prepared from them.

Every annotated clip is looked up and, unless `quick` is set, decoded to its end. Findings are:

    missing      there is no file, or a dangling link; `prepare` leaves the clip out
    unreadable   not a video, damaged or truncated, with the reason; `prepare` leaves the clip out
    replaced     missing or unreadable, but the clip has another file, which `prepare` uses
    too short    over half a second shorter than annotated; `prepare` takes it as it is
    duplicated   a clip with several files, a clip annotated twice, or two clips with the same bytes
    wrong label  the file lies in the folder of another class; `prepare` follows the annotation
    extra        a file that no annotation refers to
"""

import collections
import csv
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tqdm

from i3d_jax import video
from i3d_jax.datasets import annotations, records, video_files, workers
from i3d_jax.files import atomic_write
from i3d_jax.stopping import StoppedError, catch_stop_signals
from i3d_jax.video import decoding, listing

KINDS = ("missing", "unreadable", "replaced", "too short", "duplicated", "wrong label", "extra")
SHORTFALL = 0.5  # Seconds by which a clip may be shorter than annotated.
CLIPS_PER_TASK = 4  # Clips that a worker gets at a time.


class Finding(NamedTuple):
    """A problem. Values that do not apply are "".

    Attributes:
      kind: one of `KINDS`.
      split: split of the clip.
      label: class of the clip, or of the folder of a file without annotation.
      id: id of the clip.
      file: path of the file, relative to the folder of videos.
      detail: what is wrong.
    """

    kind: str
    split: str
    label: str
    id: str
    file: str
    detail: str


class CheckedClip(NamedTuple):
    """The files of a clip that were tried.

    Attributes:
      used: the file that `prepare` will use; None: there is none.
      failed: the files before it, which cannot be used, each with the reason.
      seconds: duration of the file used.
      digest: hash of its bytes; None: it was not opened.
    """

    used: str | None
    failed: list[tuple[str, str]]
    seconds: float = 0.0
    digest: bytes | None = None


def examine(
    rows: Sequence[annotations.Row],
    folder: pathlib.Path,
    classes: Sequence[str],
    *,
    processes: int = 1,
    quick: bool = False,
) -> list[Finding]:
    """Checks the videos in a folder against their annotations.

    Args:
      rows: the annotations (`ClipBuilder.rows`).
      folder: folder of the videos.
      classes: all classes of the data set (`ClipBuilder.classes`), also those without rows.
      processes: number of processes that decode.
      quick: whether only to look files up, without opening them.

    Returns:
      the findings, in the order of `KINDS`.

    Raises:
      StoppedError: SIGINT or SIGTERM came.
    """
    found = video_files.find(folder)
    clips = video_files.clips(rows, folder, found=found)
    findings = list(_check_names(rows, clips, folder, set(classes), found))
    checked = [_look_up(clip) for clip in clips] if quick else _check_in_pool(clips, processes)
    findings += _check_files(clips, checked, folder)
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def _check_names(
    rows: Sequence[annotations.Row],
    clips: Sequence[video_files.Clip],
    folder: pathlib.Path,
    labels: set[str],
    found: video_files.FolderFiles,
) -> Iterator[Finding]:
    """Yields the findings that annotations and file names show, without opening files."""
    for first, again in annotations.repeated(rows):
        detail = (
            f"annotated twice: as {first.label}, {first.split} at {first.where}, "
            f"and at {again.where}"
        )
        yield Finding("duplicated", again.split, again.label, again.id, "", detail)
    for clip in clips:
        paths = [os.path.relpath(path, folder) for path in clip.paths]
        if not paths:
            continue
        about = (clip.split, clip.label, clip.id, paths[0])
        folder_label = video_files.label_of(paths[0], labels)
        if folder_label not in (None, clip.label):
            detail = f"annotated as {clip.label}, in the folder of {folder_label}"
            yield Finding("wrong label", *about, detail)
        if paths[1:]:
            yield Finding("duplicated", *about, f"also {', '.join(paths[1:])}")
    for path in video_files.unused_files(rows, found.files):
        detail = "not annotated" + (f"; {found.broken[path]}" if path in found.broken else "")
        yield Finding("extra", "", video_files.label_of(path, labels) or "", "", path, detail)


def _check_files(
    clips: Sequence[video_files.Clip], checked: Sequence[CheckedClip], folder: pathlib.Path
) -> Iterator[Finding]:
    """Yields missing files, and the findings that the files' contents show."""
    first_of_digest: dict[bytes, Finding] = {}
    for clip, (used, failed, seconds, digest) in zip(clips, checked, strict=True):
        about = (clip.split, clip.label, clip.id)
        if not clip.paths:
            yield Finding("missing", *about, "", "no file")
        for path, reason in failed:
            kind = "missing" if reason.startswith(listing.MISSING) else "unreadable"
            if used is not None:
                kind, reason = "replaced", f"{reason}; {os.path.relpath(used, folder)} is used"
            yield Finding(kind, *about, os.path.relpath(path, folder), reason)
        if used is None or digest is None:
            continue
        file = os.path.relpath(used, folder)
        if clip.seconds is not None and clip.seconds - seconds > SHORTFALL:
            yield Finding("too short", *about, file, f"{seconds:.2f} s of {clip.seconds:g} s")
        finding = Finding("duplicated", *about, file, "")
        first = first_of_digest.setdefault(digest, finding)
        if first is not finding:
            detail = f"the same bytes as {first.file} ({first.label}, {first.split})"
            yield finding._replace(detail=detail)


def _check_in_pool(clips: Sequence[video_files.Clip], processes: int) -> list[CheckedClip]:
    tasks = [
        clips[start : start + CLIPS_PER_TASK] for start in range(0, len(clips), CLIPS_PER_TASK)
    ]
    results: dict[int, list[CheckedClip]] = {}
    with (
        tqdm.tqdm(total=len(clips), desc="checking", unit="clip", smoothing=0.05) as bar,
        catch_stop_signals() as stopped,
    ):

        def done(index: int, checked: list[CheckedClip]) -> None:
            results[index] = checked
            bar.update(len(checked))

        def tick() -> None:
            if stopped:
                raise StoppedError(
                    stopped, "stopped; not all files were checked, and nothing was written"
                )

        def videos_in_work(indices: list[int]) -> list[str]:
            return [path for index in indices for clip in tasks[index] for path in clip.paths]

        workers.run(_check_all, tasks, processes, suspects=videos_in_work, done=done, tick=tick)
    return [each for index in range(len(tasks)) for each in results[index]]


def _check_all(clips: Sequence[video_files.Clip]) -> list[CheckedClip]:
    checked = []
    for clip in clips:
        if workers.stop_requested():
            break
        checked.append(check(clip))
    return checked


def check(clip: video_files.Clip) -> CheckedClip:
    """Decodes the files of a clip, up to the first that can be used, as `prepare` would."""
    broken, failed = dict(clip.broken), []
    frames = None if clip.seconds is None else decoding.frame_count(clip.seconds)
    for path in clip.paths:
        if path in broken:
            failed.append((path, broken[path]))
            continue
        try:
            count = sum(1 for _ in video.iter_frames(path, frames=frames, threads=1, strict=True))
        except video.VideoError as error:
            records.check_storage(path)
            failed.append((path, error.reason))
            continue
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        return CheckedClip(path, failed, count / video.FPS, digest)
    return CheckedClip(None, failed)


def _look_up(clip: video_files.Clip) -> CheckedClip:
    """Checks a clip without opening its files."""
    broken = dict(clip.broken)
    used = next((path for path in clip.paths if path not in broken), None)
    before = clip.paths if used is None else clip.paths[: clip.paths.index(used)]
    return CheckedClip(used, [(path, broken[path]) for path in before])


def write_csv(path: pathlib.Path, findings: Sequence[Finding]) -> None:
    """Writes findings to a CSV, one per line.

    Args:
      path: the file to write.
      findings: the rows.
    """
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(Finding._fields)
        rows.writerows(findings)


def summary(
    rows: Sequence[annotations.Row], findings: Sequence[Finding], classes: bool = False
) -> str:
    """Summarises findings as text.

    There is a line for each split, one for the classes that lack most, and one for each kind of
    finding, with an example.

    Args:
      rows: the annotations.
      findings: see `examine`.
      classes: whether to add a line for each class.
    """
    annotated = collections.Counter(row.split for row in annotations.unique(rows))
    # One finding for each clip, which may have several files.
    lost = {
        finding.id: finding for finding in findings if finding.kind in ("missing", "unreadable")
    }.values()
    lost_of_split = collections.Counter(finding.split for finding in lost)
    lines = [
        f"{split}: {number - lost_of_split[split]} of {number} clips can be used, "
        f"{lost_of_split[split] / number:.1%} cannot"
        for split, number in annotated.items()
    ]
    per_class = collections.Counter(row.label for row in annotations.unique(rows))
    shares = {
        label: number / per_class[label]
        for label, number in collections.Counter(f.label for f in lost).items()
    }
    worst = sorted(shares, key=lambda label: (-shares[label], label))[:5]
    if worst:
        shares_of_worst = ", ".join(f"{label} {shares[label]:.0%}" for label in worst)
        lines.append(f"classes that lack most: {shares_of_worst}")
    for kind in KINDS:
        found = [finding for finding in findings if finding.kind == kind]
        if found:
            example = found[0]
            lines.append(
                f"{kind}: {len(found)}, such as {example.file or example.id} ({example.detail})"
            )
    if classes:
        counts = collections.Counter((finding.label, finding.kind) for finding in findings)
        for label, number in sorted(per_class.items()):
            found = [f"{counts[label, kind]} {kind}" for kind in KINDS if counts[label, kind]]
            lines.append(f"  {label}: {number} clips" + "".join(f", {each}" for each in found))
    return "\n".join(lines)
