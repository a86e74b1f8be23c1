"""Scores of logits: accuracies with confidence intervals, and the confusion matrix."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

from i3d_jax import files

NORMAL_QUANTILE = 1.959963984540054  # Of the normal distribution, for 95 % intervals.


def count_higher_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts the classes that rank above the right one, int [N].

    Of equal logits the first class ranks higher. Above a right class of NaN rank all classes.

    Args:
      logits: f32 [N, K].
      labels: int [N].
    """
    right = np.take_along_axis(logits, labels[:, None], 1)
    tied_before = (logits == right) & (np.arange(logits.shape[1])[None] < labels[:, None])
    return (~(logits <= right) | tied_before).sum(1)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies and loss over clips, with 95 % confidence intervals.

    Args:
      logits: f32 [N, K].
      labels: int [N].

    Returns:
      "top1" and "top5"; "mean_class", top-1 averaged over the classes that have clips; "loss",
      the cross-entropy; "clips", N. Each accuracy also has the ends of its interval, "top1_low"
      and "top1_high". These are `wilson_interval`s; the number of clips is N or, for the mean
      over classes, `effective_clips`.
    """
    rank, classes = count_higher_classes(logits, labels), logits.shape[1]
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
        found[f"{name}_low"], found[f"{name}_high"] = wilson_interval(float(share), number)
    return found


def wilson_interval(share: float, clips: float) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927); its width is never zero.

    scipy's `proportion_ci` takes whole numbers of clips only.

    Args:
      share: share of the clips that are right.
      clips: number of clips; need not be whole (see `effective_clips`).
    """
    weight = NORMAL_QUANTILE**2 / clips
    centre = (share + weight / 2) / (1 + weight)
    half = np.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    # Rounding must not put the share outside of its interval, or the interval outside of [0, 1].
    return max(0.0, min(share, float(centre - half))), min(1.0, max(share, float(centre + half)))


def effective_clips(right: np.ndarray, clips: np.ndarray) -> float:
    """The number of clips that gives the mean over classes its `wilson_interval`.

    This is the effective sample size of stratified surveys (Franco et al., Journal of Survey
    Statistics and Methodology 7, 2019), with classes as strata: share * (1 - share) divided by
    the variance of the mean. The variance is the larger of two estimates. One takes all classes
    for alike. The other is estimated in each class, where classes of one clip are pooled.

    The intervals cover the true mean in 95 % of cases or more. Percentiles of a bootstrap over
    clips do not: they are too narrow where classes have few clips, and have no width where all
    are right.

    Args:
      right: int [K], the clips of each class that are right.
      clips: int [K], the clips of each class, one or more.
    """
    shares, classes = right / clips, len(clips)
    mean, single = shares.mean(), shares[clips == 1]
    alike = classes**2 / (1 / clips).sum()
    # Zero for a class of one clip.
    variance = (shares * (1 - shares) / np.maximum(1, clips - 1)).sum()
    variance += len(single) * (single.var(ddof=1) if len(single) > 1 else mean * (1 - mean))
    if variance == 0:
        return float(alike)
    return float(min(alike, classes**2 * mean * (1 - mean) / variance))


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The confusion matrix, int [K, K]: clips by their class (row) and predicted class (column).

    Clips with a NaN among their logits count nowhere.

    Args:
      logits: f32 [N, K].
      labels: int [N].
    """
    classes = logits.shape[1]
    sure = ~np.isnan(logits).any(1)
    flat = np.bincount(labels[sure] * classes + logits[sure].argmax(1), minlength=classes * classes)
    return flat.reshape(classes, classes)


def write_confusion_matrix(folder: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Writes confusion.csv and confusion.png.

    Args:
      folder: where to write them.
      matrix: int [K, K]; the picture shows each row as shares of its class.
      names: of the classes.
    """
    with (
        files.atomic_write(folder / "confusion.csv") as written,
        written.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["class \\ predicted", *names])
        writer.writerows([name, *map(int, row)] for name, row in zip(names, matrix, strict=True))

    from matplotlib import figure  # Imported here, since it takes half a second.

    size = min(16.0, 3 + 0.2 * len(names))
    picture = figure.Figure(figsize=(size, size), layout="constrained")
    axes = picture.subplots()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    if len(names) <= 60:  # More cannot be read.
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    picture.colorbar(image, shrink=0.6, label="share of the class's clips")
    with files.atomic_write(folder / "confusion.png") as written:
        picture.savefig(written, format="png", dpi=120, metadata={"Software": None})
