"""The folder that an evaluation leaves: its settings, every clip's prediction, scores; and the fusion of several."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from i3d_jax import files, metrics
from i3d_jax.files import read_json, replacing, write_json
from i3d_jax.models.body import CHANNELS

STREAMS = tuple(CHANNELS)
SHARE = ("annotated", "used")  # Of a split's clips: how many there should be, and are.
ABOUT = ("weights", "dataset", "split", "footprint", "limit")  # What makes an evaluation the one it is.


class EvaluationError(ValueError):
    """An evaluation that cannot be made; the message says why."""


def line(prediction: dict, classes: Sequence[str]) -> dict:
    """What predictions.jsonl says of a clip; floats of 9 digits, which give back every bit of a float32."""
    logits = {name: [float(f"{x:.9g}") for x in each] for name, each in prediction["logits"].items()}
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


def note_settings(folder: pathlib.Path, settings: dict) -> None:
    """Notes what an evaluation is of or, if the folder has one, makes sure that it is the same."""
    path = folder / "settings.json"
    try:
        files.note(path, settings)
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def read_predictions(folder: pathlib.Path) -> dict[str, dict]:
    """The predictions in a folder by the clips' ids; a last line that was cut off by a kill is removed from the file."""
    path = folder / "predictions.jsonl"
    try:
        found = {}
        for each in map(json.loads, files.whole_lines(path)):
            arrays = {name: np.array(each[name], np.float32) for name in ("logits", *STREAMS) if name in each}
            found[each["id"]] = each | arrays
        return found
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(f"{path}: damaged") from None


def write_results(folder: pathlib.Path, classes: Sequence[str], about: dict) -> dict:
    """Writes scores.json and the confusion matrix from the predictions in the folder."""
    found = list(read_predictions(folder).values())
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
    write_json(folder / "scores.json", result)
    metrics.write_confusion(folder, metrics.confusion(logits, labels), classes)
    return result


def fuse(folders: Sequence[pathlib.Path], out: pathlib.Path) -> dict:
    """Adds the logits of several evaluations of the same clips and writes the results to `out`, as `run` does."""
    runs = []
    for folder in folders:
        if not (folder / "scores.json").exists():
            raise EvaluationError(f"{folder}: no finished evaluation (it has no scores.json)")
        try:
            scores = read_json(folder / "scores.json")
        except ValueError as error:
            raise EvaluationError(str(error)) from None
        if not {"about", "classes"} <= set(scores):
            raise EvaluationError(f"{folder / 'scores.json'}: not of an evaluation")
        about = {name: value for name, value in scores["about"].items() if name in {"fused", *ABOUT, *SHARE}}
        runs.append((folder, {"classes": scores["classes"]} | about, read_predictions(folder)))
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
            raise EvaluationError(f"{folder}: {len(apart)} clips are not those of {first}, {min(apart)} for one")
    share = {name: about[name] for name in SHARE if name in about}
    fused = [{k: value for k, value in other.items() if k not in ("classes", *SHARE)} for _, other, _ in runs]
    settings = {"dataset": about["dataset"], "split": about["split"], "fused": fused}
    note_settings(out, settings)
    lines = []
    for name, clip in its_first.items():
        total = np.sum([its_clips[name]["logits"] for *_, its_clips in runs], 0)
        lines.append(line(clip | {"logits": {"": total}}, about["classes"]))
    with replacing(out / "predictions.jsonl") as written:
        written.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return write_results(out, about["classes"], settings | share)
