"""What logits are worth: accuracies, their uncertainty, and the confusion matrix."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the right one, int [N]: of equal logits the first class does, and of NaN all do."""
    right = np.take_along_axis(logits, labels[:, None], 1)
    tied_before = (logits == right) & (np.arange(logits.shape[1])[None] < labels[:, None])
    return (~(logits <= right) | tied_before).sum(1)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies and loss over clips, with bootstrap confidence intervals.

    Args:
      logits: f32 [N, K].
      labels: int [N].

    Returns:
      "top1", "top5", "mean_class" (top-1 by class, averaged over the classes that there are clips of), "loss"
      (cross-entropy), "clips" (N) and, as "top1_low" and "top1_high" and so on for the three accuracies, 95 %
      confidence intervals: percentiles over 1,000 resamples of the clips, always the same ones.
    """
    rank, classes = ranks(logits, labels), logits.shape[1]
    high = logits.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        log_sum = high[:, 0] + np.log(np.exp(logits - high).sum(1))
        loss = float((log_sum - np.take_along_axis(logits, labels[:, None], 1)[:, 0]).mean())

    def accuracies(chosen):
        top1 = rank[chosen] < 1
        count = np.bincount(labels[chosen], minlength=classes)
        right = np.bincount(labels[chosen], top1, classes)
        return top1.mean(), (rank[chosen] < 5).mean(), (right[count > 0] / count[count > 0]).mean()

    names = "top1", "top5", "mean_class"
    rng = np.random.default_rng(0)
    draws = np.array([accuracies(rng.integers(len(rank), size=len(rank))) for _ in range(RESAMPLES)])
    found = dict(zip(names, map(float, accuracies(slice(None))), strict=True)) | {"loss": loss, "clips": len(rank)}
    for name, (low, top) in zip(names, np.percentile(draws, (2.5, 97.5), axis=0).T, strict=True):
        found |= {f"{name}_low": float(low), f"{name}_high": float(top)}
    return found


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Clips by their class (row) and by the one they were taken for (column), int [K, K]; NaN is taken for nothing."""
    classes = logits.shape[1]
    sure = ~np.isnan(logits).any(1)
    flat = np.bincount(labels[sure] * classes + logits[sure].argmax(1), minlength=classes * classes)
    return flat.reshape(classes, classes)


def write_confusion(folder: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Writes confusion.csv, with the classes' names, and confusion.png, each row as shares of its class."""
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class \\ taken for", *names])
        writer.writerows([name, *map(int, row)] for name, row in zip(names, matrix, strict=True))

    from matplotlib import figure  # Half a second, for the one who wants a picture.

    size = min(16.0, 3 + 0.2 * len(names))
    picture = figure.Figure(figsize=(size, size), layout="constrained")
    axes = picture.subplots()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    if len(names) <= 60:  # More cannot be read.
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    picture.colorbar(image, shrink=0.6, label="share of the class's clips")
    picture.savefig(folder / "confusion.png", dpi=120, metadata={"Software": None})
