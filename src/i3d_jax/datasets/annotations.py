"""Reads the annotations of the data sets: Kinetics' CSVs, UCF-101's and HMDB-51's lists.

Readers return one row for each line that names a clip, also where a clip is named twice.
`video_files` finds the clips' files.
"""

import contextlib
import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
SPLITS = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}


class AnnotationError(ValueError):
    """A list of clips cannot be used; the message says where, what was found and what wanted."""


class Row(NamedTuple):
    """One annotated clip.

    Attributes:
      id: unique in its data set.
      stem: name of its video file, without extension.
      label: its class.
      split: "train", "validation" or "test".
      seconds: duration that the annotation gives; None: the whole file.
      where: file and line of the annotation, "train.csv:12".
    """

    id: str
    stem: str
    label: str
    split: str
    seconds: float | None
    where: str


def kinetics(paths: Sequence[Path], classes: Sequence[str]) -> list[Row]:
    """Reads the public CSVs of Kinetics-400, -600 and -700-2020.

    Args:
      paths: CSVs, and folders of which every CSV is read.
      classes: the class names. The CSVs may write them with underscores for spaces, and with other
        capitals.

    Raises:
      AnnotationError: a list is missing, empty or not UTF-8, or has a line that cannot be used.
    """
    known = {form(name): name for form in (_normalized, str) for name in classes}
    rows: list[Row] = []
    unknown: list[tuple[str, str]] = []
    for path in _find_csvs(paths):
        before = len(rows) + len(unknown)
        for line, row in _kinetics_rows(path, known):
            if row.label in known:
                rows.append(row)
            else:
                unknown.append((f"{path}:{line}", row.label))
        if len(rows) + len(unknown) == before:
            raise AnnotationError(f"{path}: has no clips")
    if unknown:
        (where, label), rest = unknown[0], ""
        if len(unknown) > 1:
            different = len({label for _, label in unknown})
            rest = f"; {len(unknown):,} rows have such labels, {different:,} different ones"
        raise AnnotationError(
            f"{where}: label {_quoted(label)} is none of the {len(classes)} classes{rest}"
        )
    return rows


def _normalized(label: str) -> str:
    """A label without the differences between lists: spaces or underscores, and capitals."""
    return label.replace("_", " ").lower()


def _find_csvs(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            each for each in path.iterdir() if each.suffix.lower() == ".csv" and each.name[0] != "."
        )
        if not inside:
            raise AnnotationError(f"{path}: has no .csv")
        found += inside
    if not found:
        raise AnnotationError("no CSV of annotations is named")
    return found


def _kinetics_rows(path: Path, known: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
    """Yields line numbers and rows. Labels that are not `known` stay as they are."""
    with _open(path) as file:
        # Strict: a quote that is never closed is an error, not one long value.
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if missing := [name for name in COLUMNS if name not in header]:
                message = (
                    f"no column {', '.join(missing)}; found {', '.join(header)[:200] or 'none'}"
                )
                if missing == ["label"]:
                    message += " (as in test lists whose labels are held out: "
                    message += "name the other files one by one)"
                raise AnnotationError(message)
            columns = [header.index(name) for name in COLUMNS]
            for values in reader:
                if any(values):
                    if len(values) <= max(columns):
                        raise AnnotationError(f"{len(values)} values; wanted {len(header)}")
                    where = f"{path.name}:{reader.line_num}"
                    yield (
                        reader.line_num,
                        _kinetics_row([values[column] for column in columns], known, where),
                    )
        except (AnnotationError, csv.Error) as error:
            raise AnnotationError(f"{path}:{reader.line_num or 1}: {error}") from error


def _kinetics_row(values: list[str], known: Mapping[str, str], where: str) -> Row:
    label, youtube_id, time_start, time_end, split = values
    if not youtube_id or "/" in youtube_id:
        raise AnnotationError(
            f"youtube_id {_quoted(youtube_id)}; wanted the start of a file's name"
        )
    start, end = _parse_seconds(time_start), _parse_seconds(time_end)
    if not 0 <= start < end < math.inf:
        found = f"from {_quoted(time_start)} to {_quoted(time_end)}"
        raise AnnotationError(f"{found}; wanted two times in seconds, the end after the start")
    if split not in SPLITS:
        raise AnnotationError(f"split {_quoted(split)}; wanted one of {', '.join(SPLITS)}")
    stem = _kinetics_stem(youtube_id, start, end)
    label = known.get(label) or known.get(_normalized(label), label)
    return Row(stem, stem, label, SPLITS[split], end - start, where)


def _parse_seconds(text: str) -> float:
    """A time in seconds; NaN if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _kinetics_stem(youtube_id: str, start: float, end: float) -> str:
    return f"{youtube_id}_{int(start):06d}_{int(end):06d}"


def file_name(youtube_id: str, start: float, end: float) -> str:
    """The file name that download tools give a Kinetics clip.

    Args:
      youtube_id: id of the video.
      start: seconds.
      end: seconds.
    """
    return f"{_kinetics_stem(youtube_id, start, end)}.mp4"


def write_kinetics(path: Path, rows: list[dict]) -> None:
    """Writes a CSV like the public ones.

    Args:
      path: the file to write.
      rows: dicts with the keys `COLUMNS`.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def ucf101(folder: Path, number: int, classes: Sequence[str]) -> list[Row]:
    """Reads the train and test list of one of UCF-101's splits.

    Args:
      folder: has the lists, or has ucfTrainTestlist with them.
      number: of the split, 1 to 3.
      classes: the class names, in the order of their numbers.

    Raises:
      AnnotationError: a list is missing, empty or not UTF-8, or has a line that cannot be used.
    """
    lists = {"train": f"trainlist{number:02}.txt", "test": f"testlist{number:02}.txt"}
    folder = _find_lists(folder, number, tuple(lists.values()), ("ucfTrainTestlist",))
    _check_class_numbers(folder / "classInd.txt", classes)
    numbers = {name: str(number) for number, name in enumerate(classes, 1)}
    rows: list[Row] = []
    for split, name in lists.items():
        before = len(rows)
        for line, text in _lines(folder / name):
            video, found = _split_last_word(text)
            if not found.isdecimal():  # Test lists have no class numbers.
                video, found = text, ""
            label, _, file = video.partition("/")
            label = _official_spelling(label)
            where = f"{folder / name}:{line}"
            if label not in numbers or not file:
                raise AnnotationError(
                    f"{where}: {_quoted(video)}; wanted <one of {len(classes)} classes>/<video>"
                )
            if (found or split == "train") and found != numbers[label]:
                raise AnnotationError(
                    f"{where}: class number {found or 'missing'}; {label} is {numbers[label]}"
                )
            stem = os.path.splitext(file)[0]
            rows.append(Row(f"{label}/{stem}", stem, label, split, None, f"{name}:{line}"))
        if len(rows) == before:
            raise AnnotationError(f"{folder / name}: has no clips")
    return rows


def _check_class_numbers(path: Path, classes: Sequence[str]) -> None:
    """Checks UCF-101's list of classes, if there is one."""
    if not path.is_file():
        return
    wanted = [f"{number} {name}" for number, name in enumerate(classes, 1)]
    found = [(line, _official_spelling(" ".join(text.split()))) for line, text in _lines(path)]
    for (line, text), each in zip(found, wanted):
        if text != each:
            raise AnnotationError(f"{path}:{line}: class {_quoted(text)}; wanted {each!r}")
    if len(found) != len(wanted):
        raise AnnotationError(f"{path}: {len(found)} classes; wanted {len(wanted)}")


# UCF-101's class is HandstandPushups, but its files are v_HandStandPushups_*. Some copies spell
# both alike.
_SPELLINGS = ("HandstandPushups", "HandStandPushups")


def _official_spelling(label: str) -> str:
    return label.replace(_SPELLINGS[1], _SPELLINGS[0])


def other_spelling(stem: str) -> str:
    """A file's name as other copies of UCF-101 spell it; unchanged if all spell it alike."""
    ours, other = _SPELLINGS if _SPELLINGS[0] in stem else _SPELLINGS[::-1]
    return stem.replace(f"v_{ours}_", f"v_{other}_")


def hmdb51(folder: Path, number: int, classes: Sequence[str]) -> list[Row]:
    """Reads the lists of one of HMDB-51's splits, one per class.

    Args:
      folder: has the lists, or has testTrainMulti_7030_splits or test_train_splits with them.
      number: of the split, 1 to 3.
      classes: the class names.

    Raises:
      AnnotationError: a list is missing, empty or not UTF-8, or has a line that cannot be used.
    """
    names = [f"{label}_test_split{number}.txt" for label in classes]
    official, archive = "testTrainMulti_7030_splits", "test_train_splits"
    folder = _find_lists(folder, number, names, (official, archive, f"{archive}/{official}"))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise AnnotationError(
            f"{folder}: {len(missing)} of {len(names)} lists are missing: {', '.join(missing[:5])}"
        )
    splits = {"0": None, "1": "train", "2": "test"}
    rows: list[Row] = []
    for label, name in zip(classes, names):
        before = len(rows)
        for line, text in _lines(folder / name):
            video, found = _split_last_word(text)
            if found not in splits or not video:
                raise AnnotationError(
                    f"{folder / name}:{line}: {_quoted(text)}; wanted <video> and 0, 1 or 2"
                )
            if split := splits[found]:
                stem = os.path.splitext(video)[0]
                rows.append(Row(f"{label}/{stem}", stem, label, split, None, f"{name}:{line}"))
        if len(rows) == before:
            raise AnnotationError(f"{folder / name}: has no clips")
    return rows


def _find_lists(folder: Path, number: int, names: Sequence[str], below: Sequence[str]) -> Path:
    """Finds the folder of a split's lists.

    Args:
      folder: where to look.
      number: of the split, for messages.
      names: of the lists; one must be there.
      below: folders below `folder` where to look next.
    """
    if number not in (1, 2, 3):
        raise AnnotationError(f"{folder}: split {number}; wanted 1, 2 or 3")
    for candidate in (folder, *(folder / name for name in below)):
        if any((candidate / name).is_file() for name in names):
            return candidate
    raise AnnotationError(f"{folder}: has no {names[0]}, nor has {' or '.join(below)} in it")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        lines = enumerate(path.read_bytes().split(b"\n"), 1)
        number = next(
            number for number, line in lines if line.decode(errors="ignore").encode() != line
        )
        raise AnnotationError(f"{path}:{number}: is not UTF-8") from error
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the numbers and texts of the lines that are not blank."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                yield number, text


def _split_last_word(text: str) -> tuple[str, str]:
    """Splits the last word off a line; names before it may have spaces."""
    *before, last = text.rsplit(None, 1)
    return "".join(before), last


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def unique(rows: Iterable[Row]) -> list[Row]:
    """The first row of each id, in the order of the rows."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.id, row)
    return list(first.values())


def repeated(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Pairs each row whose id has come before with the first row of that id.

    The label and split of a pair may differ.
    """
    first: dict[str, Row] = {}
    return [(first[row.id], row) for row in rows if first.setdefault(row.id, row) is not row]
