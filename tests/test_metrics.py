import csv

import numpy as np
import pytest

from i3d_jax import metrics


def test_accuracies_and_loss():
    logits = np.tile(np.arange(10, dtype=np.float32)[::-1], (4, 1))  # Class 0 first.
    labels = np.array([0, 4, 5, 9])
    found = metrics.scores(logits, labels)
    assert (found["top1"], found["top5"], found["mean_class"], found["clips"]) == (1 / 4, 2 / 4, 1 / 4, 4)
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


def test_intervals_are_those_of_a_share_of_so_many_clips():
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.7
    labels = rng.integers(1, 5, 2000)
    logits = np.eye(5, dtype=np.float32)[np.where(right, labels, 0)]
    found = metrics.scores(logits, labels)
    error = np.sqrt(found["top1"] * (1 - found["top1"]) / 2000)
    assert found["top1_low"] == pytest.approx(found["top1"] - 1.96 * error, abs=0.2 * error)
    assert found["top1_high"] == pytest.approx(found["top1"] + 1.96 * error, abs=0.2 * error)
    assert metrics.scores(logits, labels) == found


def test_confusion_matrix_counts_and_is_written_with_names(tmp_path):
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    matrix = metrics.confusion(logits, np.array([0, 0, 1, 1]))
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    metrics.write_confusion(tmp_path, matrix, ("a", 'b, "c"', "ü"))
    rows = list(csv.reader((tmp_path / "confusion.csv").read_text("utf-8").splitlines()))
    assert rows[0][1:] == ["a", 'b, "c"', "ü"] and rows[1] == ["a", "1", "1", "0"] and rows[3] == ["ü", "0", "0", "0"]
    picture = (tmp_path / "confusion.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    metrics.write_confusion(tmp_path, matrix, ("a", 'b, "c"', "ü"))
    assert (tmp_path / "confusion.png").read_bytes() == picture


def test_nan_is_taken_for_nothing():
    assert metrics.confusion(np.array([[np.nan, 0.0], [1.0, 0.0]]), np.array([0, 0])).tolist() == [[1, 0], [0, 0]]
