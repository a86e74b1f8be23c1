"""Checks a folder of videos against its annotations, before a data set is prepared from them.

Every annotated clip is looked up and, unless that is to be quick, decoded to its end. What is found is a list of rows:

    missing      there is no file
    unreadable   no video, damaged or truncated, with the reason; `prepare` will leave it out
    too short    more than half a second less than the annotation says; `prepare` takes it as it is
    duplicated   several files of one clip, one clip annotated twice, or two clips whose files are the same
    wrong label  the file lies in the folder of another class; `prepare` goes by the annotation
    extra        a file that no annotation wants
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
from i3d_jax.files import replacing

KINDS = ("missing", "unreadable", "too short", "duplicated", "wrong label", "extra")
SHORT = 0.5  # Seconds that a clip may lack.
CHUNK = 4  # Files that a worker gets at a time.


class Finding(NamedTuple):
    """Something that is not as it should be; what does not apply is empty."""

    kind: str
    split: str
    label: str
    id: str
    file: str
    detail: str


class Checked(NamedTuple):
    """What was found out about a file: its length in seconds, or why it cannot be read; a hash of its bytes."""

    seconds: float
    reason: str
    digest: bytes


def examine(
    rows: Sequence[annotations.Row],
    folder: pathlib.Path,
    classes: Sequence[str],
    *,
    processes: int = 1,
    quick: bool = False,
) -> list[Finding]:
    """Checks the videos in a folder; see above.

    Args:
      rows: what the annotations say (`ClipBuilder.rows`).
      classes: all that the data set has (`ClipBuilder.classes`), also those of no row.
      processes: that decode.
      quick: whether to look files up only, and not to open them.
    """
    found = video_files.videos(folder)
    clips = video_files.clips(rows, folder, found=found)
    there = [clip for clip in clips if clip.path is not None]
    findings = [Finding("missing", c.split, c.label, c.id, "", "no file") for c in clips if c.path is None]
    findings += _by_name(rows, clips, folder, set(classes), found)
    if not quick:
        findings += _by_content(there, folder, processes)
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def _by_name(rows, clips, folder, labels, found) -> Iterator[Finding]:
    for first, again in annotations.repeated(rows):
        about = f"annotated twice: as {first.label}, {first.split} at {first.where}, and at {again.where}"
        yield Finding("duplicated", again.split, again.label, again.id, "", about)
    stems = {row.id: row.stem for row in rows}
    for clip in clips:
        if clip.path is None:
            continue
        path = os.path.relpath(clip.path, folder)
        its_label = video_files.label_of(path, labels)
        if its_label not in (None, clip.label):
            detail = f"annotated as {clip.label}, in the folder of {its_label}"
            yield Finding("wrong label", clip.split, clip.label, clip.id, path, detail)
        others = [other for other in video_files.candidates(stems[clip.id], found) if other != path]
        if "/" in clip.id:  # Names are unique within their class only.
            others = [other for other in others if video_files.label_of(other, {clip.label})]
        if others:
            yield Finding("duplicated", clip.split, clip.label, clip.id, path, f"also {', '.join(others)}")
    for path in video_files.others(rows, found):
        yield Finding("extra", "", video_files.label_of(path, labels) or "", "", path, "not annotated")


def _by_content(clips: Sequence[video_files.Clip], folder: pathlib.Path, processes: int) -> Iterator[Finding]:
    same: dict[bytes, Finding] = {}
    for clip, checked in zip(clips, _checked(clips, processes), strict=True):
        about = (clip.split, clip.label, clip.id, os.path.relpath(str(clip.path), folder))
        if checked.reason:
            yield Finding("unreadable", *about, checked.reason)
            continue
        if clip.seconds is not None and clip.seconds - checked.seconds > SHORT:
            yield Finding("too short", *about, f"{checked.seconds:.2f} s of {clip.seconds:g} s")
        here = Finding("duplicated", *about, "")
        first = same.setdefault(checked.digest, here)
        if first is not here:
            yield here._replace(detail=f"the same bytes as {first.file} ({first.label}, {first.split})")


def _checked(clips: Sequence[video_files.Clip], number: int) -> Iterator[Checked]:
    jobs = [(clip.path, clip.seconds) for clip in clips]
    with tqdm.tqdm(total=len(clips), desc="checking", unit="file", smoothing=0.05) as bar:

        def tried() -> list[str]:
            return [str(path) for path, _ in jobs[bar.n : bar.n + CHUNK * number]]

        with workers.pool(number, tried) as pool:
            for each in pool.map(check, jobs, chunksize=CHUNK):
                bar.update()
                yield each


def check(job: tuple[str, float | None]) -> Checked:
    """Reads a video as `prepare` would, without writing it."""
    path, seconds = job
    most = None if seconds is None else video.frames_in(seconds)
    try:
        count = sum(1 for _ in video.shown(path, frames=most, threads=1, strict=True))
    except video.VideoError as error:
        records.check_storage(video_files.Clip("", "", "", None, path))
        return Checked(0.0, error.reason, b"")
    with open(path, "rb") as file:
        return Checked(count / video.FPS, "", hashlib.file_digest(file, "sha256").digest())


def write_csv(path: pathlib.Path, findings: Sequence[Finding]) -> None:
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(Finding._fields)
        rows.writerows(findings)


def summary(rows: Sequence[annotations.Row], findings: Sequence[Finding], classes: bool = False) -> str:
    """What was found: a line per split, the classes that lack most, an example of everything, and perhaps every class."""
    annotated = collections.Counter(row.split for row in annotations.unique(rows))
    lost = [finding for finding in findings if finding.kind in ("missing", "unreadable")]
    lost_of_split = collections.Counter(finding.split for finding in lost)
    lines = [
        f"{split}: {number - lost_of_split[split]} of {number} clips can be used, "
        f"{lost_of_split[split] / number:.1%} cannot"
        for split, number in annotated.items()
    ]
    per_class = collections.Counter(row.label for row in annotations.unique(rows))
    shares = {label: number / per_class[label] for label, number in collections.Counter(f.label for f in lost).items()}
    worst = sorted(shares, key=lambda label: (-shares[label], label))[:5]
    if worst:
        lines.append(f"classes that lack most: {', '.join(f'{label} {shares[label]:.0%}' for label in worst)}")
    for kind in KINDS:
        found = [finding for finding in findings if finding.kind == kind]
        if found:
            example = found[0]
            lines.append(f"{kind}: {len(found)}, such as {example.file or example.id} ({example.detail})")
    if classes:
        counts = collections.Counter((finding.label, finding.kind) for finding in findings)
        for label, number in sorted(per_class.items()):
            found = [f"{counts[label, kind]} {kind}" for kind in KINDS if counts[label, kind]]
            lines.append(f"  {label}: {number} clips" + "".join(f", {each}" for each in found))
    return "\n".join(lines)
