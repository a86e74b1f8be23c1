"""Validations during a run: the best step, and the learning rate on a plateau."""

import json

import jax
import numpy as np
import pytest
from support.small_run import read_log, read_weights

from i3d_jax import weights
from i3d_jax.training import loop, validation


def test_update_finds_the_best_step_and_when_the_rate_is_lowered():
    known, nan = validation.initial(), float("nan")
    scores = [(0.1, 5.0), (0.3, 4.0), (0.2, 4.1), (0.3, 3.999), (0.4, 4.2), (nan, nan)]
    plateau = dict(patience=2, threshold=0.01)
    found = []
    for step, (top1, loss) in enumerate(scores, 1):
        known = validation.update(known, step, {"top1": top1, "loss": loss}, plateau=plateau)
        found.append((int(known.best_step), round(float(known.scale), 6), int(known.since)))
    assert found == [(1, 1, 0), (2, 1, 0), (2, 1, 1), (2, 0.1, 0), (5, 0.1, 1), (5, 0.01, 0)]


def test_the_first_validation_is_the_best_whatever_its_value():
    for metric, value in (("top1", 0.0), ("loss", 1e9)):
        scores = {"top1": value, "loss": value}
        known = validation.update(validation.initial(), 7, scores, metric)
        assert (known.best_step, known.best) == (7, value)
        # A loss is better when it is lower.
        better = validation.update(known, 8, {"top1": 0.5, "loss": 2.0}, metric)
        assert (better.best_step, better.best) == (8, {"top1": 0.5, "loss": 2.0}[metric])
        worse = validation.update(better, 9, {"top1": 0.25, "loss": 3.0}, metric)
        assert (worse.best_step, worse.best) == (8, better.best)


def test_the_rate_drops_tenfold_after_two_validations_that_are_not_a_thousandth_better():
    known = validation.initial()
    scales = []
    for step, loss in enumerate((5.0, 4.996, 4.994, 4.994, 4.993, 4.992), 1):
        known = validation.update(known, step, {"top1": 0.0, "loss": loss}, plateau={})
        scales.append(float(known.scale))
    # 4.996 is no thousandth below 5, 4.994 is; then two are not, and the count begins anew.
    assert scales == pytest.approx([1, 1, 1, 1, 0.1, 0.1])


def test_an_extended_run_keeps_the_best_of_all_its_validations(c3d_config, tmp_path, monkeypatch):
    """The test at the end counts as a validation only if one is due at that step."""
    scores = {1: 0.1, 2: 0.3, 3: 0.9, 4: 0.2, 5: 0.4}
    real, steps = loop.evaluate, []

    def log(self, step, scalars):
        steps.append(step)
        return logged(self, step, scalars)

    logged = loop.Log.__call__
    monkeypatch.setattr(loop.Log, "__call__", log)

    def evaluate(*args, **options):
        return real(*args, **options) | {"top1": scores[steps[-1]]}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    run = c3d_config | dict(validate_every=2, max_to_keep=1)
    loop.train(str(tmp_path), **run | dict(steps=3))
    loop.train(str(tmp_path), **run | dict(steps=5))
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5]
    best = weights.read(tmp_path / "best.safetensors")[0]
    again = tmp_path / "again"
    loop.train(str(again), **run | dict(steps=2))
    jax.tree.map(np.testing.assert_array_equal, best, read_weights(again))


@pytest.mark.slow  # Trains networks.
def test_a_run_with_validations_keeps_the_best_lowers_its_rate_and_resumes_exactly(
    c3d_config, tmp_path, monkeypatch
):
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] * 2)

    def evaluate(*args, **options):
        found = real(*args, **options)
        return found | {"loss": next(losses)}

    real = loop.evaluate
    run = c3d_config | dict(
        validate_every=1,
        best_metric="loss",
        plateau=dict(factor=0.5, patience=2),
        max_to_keep=1,
        profile=(2, 1),
    )
    run |= dict(steps=5, optimizer=dict(lr=0.01))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        loop.train(str(whole), **run)
    lines = [line for line in read_log(whole) if "loss" in line]
    # After step 1 no loss improves: patience ends at 3, and the rate of step 4 is lower.
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005])
    assert sorted(int(path.name) for path in (whole / "checkpoints").iterdir()) == [1, 5]
    assert list((whole / "profile").rglob("*.xplane.pb"))
    best, info = weights.read(whole / "best.safetensors")
    biases = [each["params"]["Logits"]["bias"] for each in (best, read_weights(whole))]
    assert info.model == "c3d" and not np.array_equal(*biases)
    about = json.loads((whole / "checkpoints" / "5" / "about" / "metadata").read_text())
    assert about["config"]["validate_every"] == 1
    assert {"i3d-jax-zoo", "jax"} <= about["versions"].keys()

    loop.train(str(halves), **run | dict(steps=3, profile=()))
    loop.train(str(halves), **run | dict(profile=()))
    undisturbed = tmp_path / "undisturbed"
    loop.train(str(undisturbed), **run | dict(profile=()))
    logs = (sorted(read_log(each), key=str) for each in (halves, undisturbed))
    for a, b in zip(*logs, strict=True):
        assert a == b
    for name in "weights.safetensors", "best.safetensors":
        first, second = (weights.read(each / name)[0] for each in (halves, undisturbed))
        jax.tree.map(np.testing.assert_array_equal, first, second)
