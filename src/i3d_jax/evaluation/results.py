"""The folder of an evaluation: its settings, predictions and scores; and the fusion of several."""

import contextlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from i3d_jax import files
from i3d_jax.evaluation import metrics
from i3d_jax.models.network import CHANNELS

STREAMS = tuple(CHANNELS)
# Numbers of clips in a split: as annotated, and as used.
COVERAGE = ("annotated", "used")
# What identifies an evaluation.
SETTINGS = ("weights", "dataset", "split", "footprint", "limit")


class EvaluationError(ValueError):
    """An evaluation that is not possible; the message says why."""


def prediction_line(prediction: dict, classes: Sequence[str]) -> dict:
    """Returns the line of predictions.jsonl about a clip.

    Logits have 9 digits, which reproduce a float32 exactly.

    Args:
      prediction: of `protocol.predictions`.
      classes: names of the classes.
    """
    logits = {
        name: [float(f"{x:.9g}") for x in each] for name, each in prediction["logits"].items()
    }
    own = prediction["logits"][""]
    best = np.argsort(-own, kind="stable")[:5]
    return {
        "id": prediction["id"],
        "label": int(prediction["label"]),
        "class": classes[prediction["label"]],
        "frames": int(prediction["frames"]),
        "ticks": prediction["ticks"],
        "top": [[classes[i], logits[""][i]] for i in best],
        "logits": logits.pop(""),
        **logits,
    }


def locked_folder(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Locks a folder, so that no other evaluation writes to it.

    Raises:
      EvaluationError: another evaluation holds the lock.
    """
    locked_error = EvaluationError(
        f"{folder}: another process is evaluating into it; use another --out"
    )
    return files.locked_folder(folder, locked_error)


def write_settings(folder: pathlib.Path, settings: dict) -> None:
    """Records an evaluation's settings in its folder.

    Raises:
      EvaluationError: the folder has another evaluation's.
    """
    try:
        files.write_once(folder / "settings.json", settings)
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def read_predictions(
    folder: pathlib.Path, classes: Sequence[str], truncate: bool = True
) -> dict[str, dict]:
    """Returns the predictions in a folder, by clip.

    Args:
      folder: of the evaluation.
      classes: names of the classes.
      truncate: whether to remove an incomplete last line, left by a kill, from the file. Only the
        process that writes the file may do so.

    Raises:
      EvaluationError: a line is damaged or has other classes; the message names line and clip.
    """
    path = folder / "predictions.jsonl"
    found: dict[str, dict] = {}
    streams: set[str] | None = None
    try:
        lines = files.complete_lines(path, truncate)
    except UnicodeDecodeError:
        raise EvaluationError(f"{path}: damaged") from None
    for number, text in enumerate(lines, 1):
        try:
            clip = _parse_prediction(text, classes)
            own = clip.keys() & set(STREAMS)
            streams = own if streams is None else streams
            if own != streams:
                raise ValueError(
                    f"clip {clip['id']!r}: has logits of streams {sorted(own)}, "
                    f"wanted {sorted(streams)}"
                )
        except ValueError as error:
            raise EvaluationError(f"{path}: line {number}: {error}") from None
        found[clip["id"]] = clip
    return found


def _parse_prediction(text: str, classes: Sequence[str]) -> dict:
    """Parses and checks a line of predictions.jsonl; its logits are f32 [K].

    Raises:
      ValueError: the line is damaged or has other classes.
    """
    try:
        clip = json.loads(text)
        name, label, its_class, numbers = (
            clip["id"],
            clip["label"],
            clip["class"],
            (clip["frames"], clip["ticks"]),
        )
        arrays = {
            each: np.array(clip[each], np.float32)
            for each in ("logits", *STREAMS)
            if each in ("logits", *clip)
        }
    except (ValueError, KeyError, TypeError):
        raise ValueError("damaged") from None
    if type(name) is not str:
        raise ValueError(f"id {name!r}, wanted text")
    if type(label) is not int or not 0 <= label < len(classes):
        raise ValueError(f"clip {name!r}: label {label!r}, wanted 0 to {len(classes) - 1}")
    if its_class != classes[label]:
        raise ValueError(
            f"clip {name!r}: class {its_class!r}, wanted {classes[label]!r}, "
            f"which has label {label}"
        )
    if any(type(number) is not int for number in numbers):
        raise ValueError(f"clip {name!r}: frames and ticks {numbers}, wanted whole numbers")
    for each, values in arrays.items():
        if values.shape != (len(classes),):
            raise ValueError(
                f"clip {name!r}: {each} of shape {values.shape}, wanted ({len(classes)},)"
            )
    return clip | arrays


def write_results(folder: pathlib.Path, classes: Sequence[str], about: dict) -> dict:
    """Writes scores.json and the confusion matrix, from the predictions in a folder.

    Args:
      folder: of the evaluation.
      classes: names of the classes.
      about: the settings, to be included.

    Returns:
      the contents of scores.json.
    """
    found = list(read_predictions(folder, classes).values())
    if not found:
        raise EvaluationError(f"{folder}: no clips to evaluate")
    labels = np.array([each["label"] for each in found])
    logits = np.stack([each["logits"] for each in found])
    result = metrics.scores(logits, labels)
    for stream in STREAMS:
        if stream in found[0]:
            own = metrics.scores(np.stack([each[stream] for each in found]), labels)
            result |= {f"{stream}_{name}": own[name] for name in ("top1", "top5", "mean_class")}
    result |= {"about": about, "classes": list(classes)}
    files.write_json(folder / "scores.json", result)
    metrics.write_confusion_matrix(folder, metrics.confusion_matrix(logits, labels), classes)
    return result


def fuse(folders: Sequence[pathlib.Path], out: pathlib.Path) -> dict:
    """Adds the logits of several evaluations of the same clips, and writes the results.

    Args:
      folders: of the evaluations.
      out: folder for the results.

    Returns:
      the contents of scores.json.

    Raises:
      EvaluationError: the evaluations differ in data set, split, classes or clips.
    """
    runs = []
    for folder in folders:
        about = _read_about(folder)
        runs.append((folder, about, read_predictions(folder, about["classes"], truncate=False)))
    first, about, its_first = runs[0]
    for folder, other, its_clips in runs[1:]:
        for what in "classes", "dataset", "split":
            if other.get(what) != about.get(what):
                raise EvaluationError(
                    f"{folder}: another {what.removesuffix('es')} than in {first}: "
                    f"{other.get(what)!r}, wanted {about.get(what)!r}"[:500]
                )
        apart = {
            name
            for name in {**its_first, **its_clips}
            if its_first.get(name, {}).get("label") != its_clips.get(name, {}).get("label")
        }
        if apart:
            raise EvaluationError(
                f"{folder}: {len(apart)} clips are not those of {first}, {min(apart)} for one"
            )
    share = {name: about[name] for name in COVERAGE if name in about}
    fused = [
        {k: value for k, value in other.items() if k not in ("classes", *COVERAGE)}
        for _, other, _ in runs
    ]
    settings = {"dataset": about["dataset"], "split": about["split"], "fused": fused}
    lines = []
    for name, clip in its_first.items():
        total = np.sum([its_clips[name]["logits"] for *_, its_clips in runs], 0)
        lines.append(prediction_line(clip | {"logits": {"": total}}, about["classes"]))
    with locked_folder(out):
        write_settings(out, settings)
        with files.atomic_write(out / "predictions.jsonl") as written:
            written.write_text("".join(json.dumps(each) + "\n" for each in lines))
        return write_results(out, about["classes"], settings | share)


def _read_about(folder: pathlib.Path) -> dict:
    """Returns the classes and settings of a finished evaluation, from its scores.json."""
    path = folder / "scores.json"
    if not path.exists():
        raise EvaluationError(f"{folder}: no finished evaluation (it has no scores.json)")
    try:
        scores = files.read_json(path)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    classes, about = scores.get("classes"), scores.get("about")
    if not isinstance(about, dict) or not {"dataset", "split"} <= set(about):
        raise EvaluationError(f"{path}: not of an evaluation")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise EvaluationError(f"{path}: not of an evaluation: classes are {classes!r:.100}")
    return {"classes": classes} | {
        name: about[name] for name in {"fused", *SETTINGS, *COVERAGE} & set(about)
    }
