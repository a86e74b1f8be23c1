import csv

import numpy as np
import pytest
from scipy import stats

from i3d_jax.evaluation import metrics


def test_accuracies_and_loss():
    logits = np.tile(np.arange(10, dtype=np.float32)[::-1], (4, 1))  # Class 0 first.
    labels = np.array([0, 4, 5, 9])
    found = metrics.scores(logits, labels)
    assert (found["top1"], found["top5"], found["mean_class"], found["clips"]) == (
        1 / 4,
        2 / 4,
        1 / 4,
        4,
    )
    wanted = np.mean([np.log(np.exp(logits[0]).sum()) - logits[0][label] for label in labels])
    assert found["loss"] == pytest.approx(wanted, rel=1e-6)


def test_mean_per_class_accuracy_weighs_classes_not_clips_and_leaves_out_those_without():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 0]]
    found = metrics.scores(logits, np.array([0, 0, 0, 1, 1]))
    assert found["top1"] == 4 / 5 and found["mean_class"] == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize("value,top1", [(0.0, 0.1), (np.nan, 0.0)])
def test_a_network_that_says_nothing_is_not_right(value, top1):
    found = metrics.scores(np.full((10, 10), value, np.float32), np.arange(10))
    assert found["top1"] == pytest.approx(top1)


@pytest.mark.parametrize("right,clips", [(40, 40), (0, 40), (1, 1), (7, 9), (1400, 2000)])
@pytest.mark.parametrize("name,best", [("top1", 0), ("top5", 4)])
def test_intervals_of_top1_and_top5_are_wilsons(name, best, right, clips):
    logits = np.tile(np.arange(10, dtype=np.float32)[::-1], (clips, 1))  # Class 0 first.
    found = metrics.scores(logits, np.where(np.arange(clips) < right, best, best + 1))
    low, high = stats.binomtest(right, clips).proportion_ci(method="wilson")
    assert (found[f"{name}_low"], found[f"{name}_high"]) == (
        pytest.approx(low, abs=1e-9),
        pytest.approx(high, abs=1e-9),
    )
    assert found[f"{name}_low"] <= found[name] == right / clips <= found[f"{name}_high"]


def test_all_or_none_right_is_not_certain():
    labels = np.repeat([0, 2], 20)  # Class 1 has no clips.
    for shift in 0, 1:
        found = metrics.scores(np.eye(3, dtype=np.float32)[(labels + shift) % 3], labels)
        assert found["top1"] == found["mean_class"] == 1 - shift
        for name in "top1", "mean_class":  # 40 of 40 clips: the interval begins at 91.2 %.
            width = found[f"{name}_high"] - found[f"{name}_low"]
            assert width == pytest.approx(1 - 0.912, abs=1e-3)


def test_interval_of_classes_alike_is_that_of_all_clips_and_few_clips_of_a_class_widen_it():
    assert metrics.effective_clips(np.array([10, 10]), np.array([20, 20])) == pytest.approx(
        40, rel=0.06
    )
    assert metrics.effective_clips(np.array([20, 20]), np.array([20, 20])) == 40
    # The class of one clip alone contributes a quarter of its own variance.
    assert metrics.effective_clips(np.array([500, 1]), np.array([1000, 1])) < 4
    assert metrics.effective_clips(np.array([1]), np.array([1])) == 1
    # By hand: shares 0.9, 0.5, 0.5; variances 0.09 / 9, 0.25 / 9, 0.25 / 3; mean 19 / 30.
    by_class = metrics.effective_clips(np.array([9, 5, 2]), np.array([10, 10, 4]))
    assert by_class == pytest.approx(9 * (19 / 30) * (11 / 30) / (0.01 + 0.25 / 9 + 0.25 / 3))


@pytest.mark.parametrize(
    "clips",
    [[2] * 400, [20] * 24, np.geomspace(1, 100, 51).astype(int), [1] * 400],
    ids=["pairs", "twenties", "uneven", "single"],
)
@pytest.mark.parametrize("accuracy", [0, 0.02, 0.5, 0.98, 1])
def test_interval_of_the_mean_over_classes_covers_the_true_mean(accuracy, clips):
    assert coverage(np.array(clips), accuracy) >= 0.93


@pytest.mark.parametrize("clips", [1, 2])
def test_interval_covers_the_true_mean_where_small_classes_are_the_hard_ones(clips):
    accuracy = np.where(np.arange(100) < 20, 0.5, 1.0)
    assert coverage(np.where(accuracy < 1, clips, 500), accuracy) >= 0.92


def coverage(clips, accuracy):
    """The share of 2,000 draws in which the interval of `scores` covers the true mean."""
    rng = np.random.default_rng(0)
    mean, covered = np.mean(np.broadcast_to(accuracy, len(clips))), 0
    for right in rng.binomial(clips, accuracy, (2000, len(clips))):
        low, high = metrics.wilson_interval(
            float(np.mean(right / clips)), metrics.effective_clips(right, clips)
        )
        covered += low - 1e-12 <= mean <= high + 1e-12
    return covered / 2000


def test_confusion_matrix_counts_and_is_written_with_names(tmp_path):
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    matrix = metrics.confusion_matrix(logits, np.array([0, 0, 1, 1]))
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    metrics.write_confusion_matrix(tmp_path, matrix, ("a", 'b, "c"', "ü"))
    rows = list(csv.reader((tmp_path / "confusion.csv").read_text("utf-8").splitlines()))
    assert (
        rows[0][1:] == ["a", 'b, "c"', "ü"]
        and rows[1] == ["a", "1", "1", "0"]
        and rows[3] == ["ü", "0", "0", "0"]
    )
    picture = (tmp_path / "confusion.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    metrics.write_confusion_matrix(tmp_path, matrix, ("a", 'b, "c"', "ü"))
    assert (tmp_path / "confusion.png").read_bytes() == picture


def test_nan_is_taken_for_nothing():
    assert metrics.confusion_matrix(
        np.array([[np.nan, 0.0], [1.0, 0.0]]), np.array([0, 0])
    ).tolist() == [
        [1, 0],
        [0, 0],
    ]
