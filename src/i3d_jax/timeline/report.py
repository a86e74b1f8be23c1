"""A video's classes over time as JSON and as a picture."""

import json
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from i3d_jax import cli, files
from i3d_jax.video import listing

FORMAT = "i3d_jax timeline"  # Tells our JSON files from others.


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits [..., K]."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def top_classes(logits: np.ndarray, classes: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """The likeliest classes with their logits and probabilities; of equal ones the first.

    Args:
      logits: f32 [K].
      classes: names of the classes.
      top_k: how many.
    """
    shares = softmax(logits)
    return [
        {"class": classes[i], "logit": float(logits[i]), "probability": float(shares[i])}
        for i in np.argsort(-logits, kind="stable")[:top_k]
    ]


def describe(
    path: str,
    about: dict[str, Any],
    spans: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    top_k: int,
) -> dict[str, Any]:
    """The content of a timeline's JSON file.

    Args:
      path: of the video.
      about: settings.
      spans: f64 [rows, 2], the start and end of each row in seconds.
      logits: f32 [rows, K].
      classes: names of the classes.
      top_k: classes per row.
    """
    return {
        "video": path,
        "about": {"format": FORMAT} | about,
        "mean": {"top": top_classes(logits.mean(0), classes, top_k)},
        "rows": [
            {
                "start": float(start),
                "end": float(end),
                "centre": float(start + end) / 2,
                "top": top_classes(row, classes, top_k),
            }
            for (start, end), row in zip(spans, logits, strict=True)
        ],
    }


def write_picture(
    path: pathlib.Path,
    title: str,
    spans: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    top_k: int,
) -> None:
    """Draws the probabilities of some classes over time: those that are likeliest on average.

    Args:
      path: of the PNG file.
      title: of the picture.
      spans: as in `describe`.
      logits: as in `describe`.
      classes: names of the classes.
      top_k: how many classes to draw.
    """
    from matplotlib import figure  # Imported here, since it takes half a second.

    shares, centres = softmax(logits), spans.mean(1)
    picture = figure.Figure(figsize=(10, 4), layout="constrained")
    axes = picture.subplots()
    for i in np.argsort(-shares.mean(0), kind="stable")[:top_k]:
        # A single row has no line.
        marker = "o" if len(centres) == 1 else None
        axes.plot(centres, shares[:, i], label=_drawn(str(classes[i])), marker=marker)
    axes.set(xlim=(spans[0, 0], spans[-1, 1]), ylim=(0, 1.02))
    axes.set_xlabel("time in seconds")
    axes.set_ylabel("probability")
    axes.set_title(_drawn(title), fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize="small")
    with files.atomic_write(path) as written, warnings.catch_warnings():
        # Fonts have not every letter.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        picture.savefig(written, format="png", dpi=120, metadata={"Software": None})


def _drawn(text: str) -> str:
    """A text for matplotlib, which takes "$" for formulas and leaves out labels that begin "_"."""
    text = cli.escape_unprintable(text).replace("$", r"\$")
    text = f" {text}" if text.startswith("_") else text
    return text if len(text) <= 80 else f"{text[:39]} ... {text[-36:]}"


def targets(names: Sequence[str], out: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """The videos of names, and for each the path of its timeline without extension.

    Args:
      names: as in `listing.expand_names`, which also says where files go.
      out: folder for the timelines.

    Raises:
      ValueError: two videos have the same path, or a file there is no timeline of ours.
      FolderError: a folder has no videos.
    """
    found: dict[pathlib.Path, str] = {}
    pairs = []
    for path, relative in listing.expand_names(names, exclude=out):
        target = out / relative.parent / relative.stem
        if (other := found.setdefault(target, path)) != path:
            raise ValueError(f"{target}.json: the timelines of {other} and {path} go there")
        check_ours(target.with_name(f"{target.name}.json"))
        pairs.append((path, target))
    return list(dict.fromkeys(pairs))


def check_ours(path: pathlib.Path) -> None:
    """Raises a ValueError if there is a file that is no timeline: it shall not be replaced."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_bytes())
        if content["about"]["format"] == FORMAT:
            return
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        pass
    raise ValueError(f"{path}: is there already, and no timeline; use another folder")
