"""Checks a folder of videos against its annotations, before a data set is prepared from them.

Every annotated clip is looked up and, unless that is to be quick, decoded to its end. What is found is a list of rows:

    missing      there is no file, or a link that leads to none; `prepare` will leave the clip out
    unreadable   no video, damaged or truncated, with the reason; `prepare` will leave the clip out
    replaced     one of these two, but another file of the clip can be used, which is named; `prepare` will use it
    too short    more than half a second less than the annotation says; `prepare` takes it as it is
    duplicated   several files of one clip, the preferred one first; one clip annotated twice; or two clips whose files are the
                 same
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
from i3d_jax.files import atomic_write
from i3d_jax.stopping import StoppedError, catch_stop_signals
from i3d_jax.video import decoding, listing

KINDS = ("missing", "unreadable", "replaced", "too short", "duplicated", "wrong label", "extra")
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
    """What was found out about a clip.

    Attributes:
      used: the file that `prepare` will use; None: there is none.
      failed: the files before it, which cannot be used, each with the reason.
      seconds: how long it lasts.
      digest: a hash of its bytes; None: it was not opened.
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
    """Checks the videos in a folder; see above.

    Args:
      rows: what the annotations say (`ClipBuilder.rows`).
      classes: all that the data set has (`ClipBuilder.classes`), also those of no row.
      processes: that decode.
      quick: whether to look files up only, and not to open them.

    Raises:
      StoppedError: SIGINT or SIGTERM came.
    """
    found = video_files.find(folder)
    clips = video_files.clips(rows, folder, found=found)
    findings = list(_by_name(rows, clips, folder, set(classes), found))
    checked = [_look_up(clip) for clip in clips] if quick else _checked(clips, processes)
    findings += _of_files(clips, checked, folder)
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def _by_name(rows, clips, folder, labels, found) -> Iterator[Finding]:
    for first, again in annotations.repeated(rows):
        about = f"annotated twice: as {first.label}, {first.split} at {first.where}, and at {again.where}"
        yield Finding("duplicated", again.split, again.label, again.id, "", about)
    for clip in clips:
        paths = [os.path.relpath(path, folder) for path in clip.paths]
        if not paths:
            continue
        its_label = video_files.label_of(paths[0], labels)
        if its_label not in (None, clip.label):
            detail = f"annotated as {clip.label}, in the folder of {its_label}"
            yield Finding("wrong label", clip.split, clip.label, clip.id, paths[0], detail)
        if paths[1:]:
            yield Finding(
                "duplicated",
                clip.split,
                clip.label,
                clip.id,
                paths[0],
                f"also {', '.join(paths[1:])}",
            )
    for path in video_files.unused_files(rows, found.files):
        detail = "not annotated" + (f"; {found.broken[path]}" if path in found.broken else "")
        yield Finding("extra", "", video_files.label_of(path, labels) or "", "", path, detail)


def _of_files(
    clips: Sequence[video_files.Clip], checked: Sequence[Checked], folder: pathlib.Path
) -> Iterator[Finding]:
    same: dict[bytes, Finding] = {}
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
        if clip.seconds is not None and clip.seconds - seconds > SHORT:
            yield Finding(
                "too short",
                *about,
                os.path.relpath(used, folder),
                f"{seconds:.2f} s of {clip.seconds:g} s",
            )
        here = Finding("duplicated", *about, os.path.relpath(used, folder), "")
        first = same.setdefault(digest, here)
        if first is not here:
            yield here._replace(
                detail=f"the same bytes as {first.file} ({first.label}, {first.split})"
            )


def _checked(clips: Sequence[video_files.Clip], number: int) -> list[Checked]:
    """Checks clips in so many processes."""
    parts = [clips[start : start + CHUNK] for start in range(0, len(clips), CHUNK)]
    found: dict[int, list[Checked]] = {}
    with (
        tqdm.tqdm(total=len(clips), desc="checking", unit="clip", smoothing=0.05) as bar,
        catch_stop_signals() as stopped,
    ):

        def done(index: int, checked: list[Checked]) -> None:
            found[index] = checked
            bar.update(len(checked))

        def tick() -> None:
            if stopped:
                raise StoppedError(
                    stopped, "stopped; not all files were checked, and nothing was written"
                )

        def tried(indices: list[int]) -> list[str]:
            return [path for index in indices for clip in parts[index] for path in clip.paths]

        workers.run(_check_all, parts, number, suspects=tried, done=done, tick=tick)
    return [each for index in range(len(parts)) for each in found[index]]


def _check_all(clips: Sequence[video_files.Clip]) -> list[Checked]:
    checked = []
    for clip in clips:
        if workers.leaving():
            break
        checked.append(check(clip))
    return checked


def check(clip: video_files.Clip) -> Checked:
    """Reads the videos of a clip as `prepare` would, to the first that can be used, without writing it."""
    broken, failed = dict(clip.broken), []
    most = None if clip.seconds is None else decoding.frame_count(clip.seconds)
    for path in clip.paths:
        if path in broken:
            failed.append((path, broken[path]))
            continue
        try:
            count = sum(1 for _ in video.iter_frames(path, frames=most, threads=1, strict=True))
        except video.VideoError as error:
            records.check_storage(path)
            failed.append((path, error.reason))
            continue
        with open(path, "rb") as file:
            return Checked(
                path, failed, count / video.FPS, hashlib.file_digest(file, "sha256").digest()
            )
    return Checked(None, failed)


def _look_up(clip: video_files.Clip) -> Checked:
    """What the list of files says of a clip."""
    broken = dict(clip.broken)
    used = next((path for path in clip.paths if path not in broken), None)
    before = clip.paths if used is None else clip.paths[: clip.paths.index(used)]
    return Checked(used, [(path, broken[path]) for path in before])


def write_csv(path: pathlib.Path, findings: Sequence[Finding]) -> None:
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
    """What was found: a line per split, the classes that lack most, an example of everything, and perhaps every class."""
    annotated = collections.Counter(row.split for row in annotations.unique(rows))
    # One of each clip, which may have several files.
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
        lines.append(
            f"classes that lack most: {', '.join(f'{label} {shares[label]:.0%}' for label in worst)}"
        )
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
