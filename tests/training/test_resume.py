"""Runs that are stopped, killed and resumed."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest
from support.small_run import read_log, read_weights

from i3d_jax import stopping
from i3d_jax.datasets import pipeline
from i3d_jax.training import loop
from i3d_jax.training.config import ConfigError


def test_a_resumed_run_ends_bit_identical(finished_c3d_run, c3d_config, tmp_path):
    folder, result = finished_c3d_run
    loop.train(str(tmp_path), **c3d_config | {"steps": 3})
    with (tmp_path / "log.jsonl").open("a") as log:  # Killed after logging step 5.
        log.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    again = loop.train(str(tmp_path), **c3d_config)
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path), read_weights(folder))
    assert again["loss"] == result["loss"]
    resumed = [line for line in read_log(tmp_path) if "loss" in line]
    assert resumed == [line for line in read_log(folder) if "loss" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_its_step_and_resumes_bit_identical(
    number, finished_c3d_run, c3d_config, tmp_path, monkeypatch
):
    folder, result = finished_c3d_run
    batches = pipeline.train_batches

    def interrupted(*args, **options):
        for index, batch in enumerate(batches(*args, **options)):
            if index == 2:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", interrupted)
        message = "has step 3, and the same command goes on"
        # Otherwise step 3 would have no checkpoint.
        with pytest.raises(stopping.StoppedError, match=message) as stopped:
            loop.train(str(tmp_path), **c3d_config)
    assert stopped.value.status == 128 + number and signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / "3").exists()
    assert loop.train(str(tmp_path), **c3d_config)["loss"] == result["loss"]
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path), read_weights(folder))
    resumed = [line for line in read_log(tmp_path) if "loss" in line]
    assert resumed == [line for line in read_log(folder) if "loss" in line]


def test_a_run_is_not_resumed_with_another_config(finished_run, config, tmp_path):
    folder, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other_rate = dict(optimizer=config["optimizer"] | {"lr": 0.2})
    for change, message in (
        (dict(seed=1), "config.seed: 1, but .* was started with 0; use another workdir"),
        (other_rate, "config.optimizer.lr: 0.2, but .* was started with 0.05"),
    ):
        with pytest.raises(ConfigError, match=message):
            loop.train(str(folder), **config | change)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    copy = shutil.copytree(folder, tmp_path / "copy")
    message = "config.steps: 3, but .* has a checkpoint of step 6 already"
    with pytest.raises(ConfigError, match=message):
        loop.train(str(copy), **config | {"steps": 3})


def test_grad_accum_steps_may_change_when_a_run_is_resumed(finished_c3d_run, c3d_config, tmp_path):
    loop.train(str(tmp_path), **c3d_config | {"grad_accum_steps": 2, "steps": 1})
    loop.train(str(tmp_path), **c3d_config | {"steps": 2})
    wanted, found = (
        [line["loss"] for line in read_log(each) if "loss" in line]
        for each in (finished_c3d_run[0], tmp_path)
    )
    assert found == [pytest.approx(wanted[0], rel=1e-5), pytest.approx(wanted[1], rel=1e-2)]
