"""What logits are worth: accuracies, their uncertainty, and the confusion matrix."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

from i3d_jax import files

QUANTILE = 1.959963984540054  # Of the normal distribution, for intervals of 95 %.


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the right one, int [N]: of equal logits the first class does, and of NaN all do."""
    right = np.take_along_axis(logits, labels[:, None], 1)
    tied_before = (logits == right) & (np.arange(logits.shape[1])[None] < labels[:, None])
    return (~(logits <= right) | tied_before).sum(1)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies and loss over clips, with 95 % confidence intervals.

    Args:
      logits: f32 [N, K].
      labels: int [N].

    Returns:
      "top1", "top5", "mean_class" (top-1 by class, averaged over the classes that there are clips of), "loss"
      (cross-entropy), "clips" (N) and, as "top1_low" and "top1_high" and so on for the three accuracies, Wilson's
      intervals: of N clips (`wilson`) and, for the mean over classes, of the effective number (`effective_clips`).
    """
    rank, classes = ranks(logits, labels), logits.shape[1]
    high = logits.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        log_sum = high[:, 0] + np.log(np.exp(logits - high).sum(1))
        loss = float((log_sum - np.take_along_axis(logits, labels[:, None], 1)[:, 0]).mean())
    clips = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[rank < 1], minlength=classes)[clips > 0]
    clips = clips[clips > 0]
    accuracies = {
        "top1": (np.mean(rank < 1), len(rank)),
        "top5": (np.mean(rank < 5), len(rank)),
        "mean_class": (np.mean(right / clips), effective_clips(right, clips)),
    }
    found = {name: float(share) for name, (share, _) in accuracies.items()} | {
        "loss": loss,
        "clips": len(rank),
    }
    for name, (share, number) in accuracies.items():
        found[f"{name}_low"], found[f"{name}_high"] = wilson(float(share), number)
    return found


def wilson(share: float, clips: float) -> tuple[float, float]:
    """The 95 % score interval of a share of so many clips (Wilson, 1927), which is never of width zero."""
    weight = QUANTILE**2 / clips
    centre = (share + weight / 2) / (1 + weight)
    half = np.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    # Rounding must not put the ends on the wrong side of the share, or of 0 and 1.
    return max(0.0, min(share, float(centre - half))), min(1.0, max(share, float(centre + half)))


def effective_clips(right: np.ndarray, clips: np.ndarray) -> float:
    """The number of clips for `wilson` of the mean of the classes' accuracies, as if all classes were alike.

    This is the effective sample size of stratified surveys (Franco et al., Journal of Survey Statistics and Methodology 7,
    2019), with classes as strata: share * (1 - share), divided by the variance of the mean. The variance is the larger of
    two: of classes that are all alike, and as estimated in each class, where classes of one clip are taken together.
    The intervals cover the true mean in about 95 % of cases, or more. Percentiles of a bootstrap of the clips do not: they
    are too narrow where classes have few clips, and of width zero where all are right.

    Args:
      right: int [K], how many of a class's clips are right.
      clips: int [K], how many there are, one or more.
    """
    shares, classes = right / clips, len(clips)
    mean, single = shares.mean(), shares[clips == 1]
    alike = classes**2 / (1 / clips).sum()
    variance = (
        shares * (1 - shares) / np.maximum(1, clips - 1)
    ).sum()  # Zero for a class of one clip.
    variance += len(single) * (single.var(ddof=1) if len(single) > 1 else mean * (1 - mean))
    if variance == 0:
        return float(alike)
    return float(min(alike, classes**2 * mean * (1 - mean) / variance))


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Clips by their class (row) and by the one they were taken for (column), int [K, K]; NaN is taken for nothing."""
    classes = logits.shape[1]
    sure = ~np.isnan(logits).any(1)
    flat = np.bincount(labels[sure] * classes + logits[sure].argmax(1), minlength=classes * classes)
    return flat.reshape(classes, classes)


def write_confusion(folder: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Writes confusion.csv, with the classes' names, and confusion.png, each row as shares of its class."""
    with (
        files.atomic_write(folder / "confusion.csv") as written,
        written.open("w", newline="", encoding="utf-8") as file,
    ):
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
    with files.atomic_write(folder / "confusion.png") as written:
        picture.savefig(written, format="png", dpi=120, metadata={"Software": None})
