"""A run's folder: what is in it, whose it is, and which config it has."""

import functools
import json
import os
import pathlib
import re

import pytest

from i3d_jax import weights
from i3d_jax.training import loop, run_folder
from i3d_jax.training.config import ConfigError


@pytest.mark.parametrize("name", ["", *run_folder.FOLDERS, *run_folder.FILES])
def test_a_file_in_place_of_a_folder_and_the_reverse_are_named_before_training(
    name, c3d_config, tmp_path
):
    path = tmp_path / "run" / name
    if name in run_folder.FILES:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kind = "file" if name in run_folder.FILES else "folder"
    with pytest.raises(
        ConfigError, match=re.escape(f"{path}: is no {kind}, as it is in a run; move it away")
    ):
        run_folder.check_file_kinds(tmp_path / "run")


def test_a_workdir_whose_name_is_not_utf8_is_named_before_training(tmp_path):
    with pytest.raises(
        ConfigError, match="--workdir: .*: not a name in UTF-8, which checkpoints need"
    ):
        run_folder.check_file_kinds(pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))


def test_two_runs_in_one_folder_are_refused(finished_run, config):
    folder, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with (
        run_folder.locked(folder),
        pytest.raises(ConfigError, match="another process is training in it; use another workdir"),
    ):
        loop.train(str(folder), **config | {"log_every": 3})
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with run_folder.locked(folder):  # It was let go of.
        pass


def test_a_damaged_config_file_is_named_and_the_run_resumes_without_it(c3d_config, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    for damaged in (b"{", b"\xff", b"[]", b"3", b"[" * 200_000, b'{"train_clips": null}'):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(
            ConfigError, match="config.json: damaged; move it away, and the same command goes on"
        ):
            run_folder.record_config(tmp_path, c3d_config, loop.train)
    (tmp_path / "config.json").unlink()
    run_folder.record_config(tmp_path, c3d_config, loop.train)


def test_a_mistake_before_the_first_checkpoint_does_not_claim_the_folder(c3d_config, tmp_path):
    with pytest.raises(weights.WeightsError, match="typo.safetensors: no such file"):
        loop.train(str(tmp_path), **c3d_config | {"init_from": "typo.safetensors"})
    other = c3d_config["dataset"] | {"data_dir": str(tmp_path / "not made")}
    with pytest.raises(
        weights.WeightsError, match="typo.safetensors: no such file"
    ):  # Before data are made.
        loop.train(
            str(tmp_path), **c3d_config | {"init_from": "typo.safetensors", "dataset": other}
        )
    assert not (tmp_path / "not made").exists()
    note = functools.partial(run_folder.record_config, tmp_path, run=loop.train)
    note(c3d_config | {"pretrain": c3d_config})
    (tmp_path / "pretrain" / "checkpoints" / "1").mkdir(parents=True)
    note(c3d_config | {"pretrain": c3d_config, "seed": 1})
    with pytest.raises(ConfigError, match="config.pretrain.seed: 1, but .* was started with 0"):
        note(c3d_config | {"pretrain": c3d_config | {"seed": 1}})
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="config.seed: 0, but .* was started with 1"):
        note(c3d_config | {"pretrain": c3d_config})
    (tmp_path / "pretrain" / "checkpoints" / "1").rmdir()
    with pytest.raises(ConfigError, match="config.pretrain.* was started with"):
        note(c3d_config | {"seed": 1})


def test_an_omitted_option_equals_its_default(c3d_config, tmp_path):
    run_folder.record_config(tmp_path, c3d_config, loop.train)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    given = {"train_clips": c3d_config["train_clips"] | {"reverse": False}, "best_metric": "top1"}
    run_folder.record_config(tmp_path, c3d_config | given, loop.train)
    with pytest.raises(
        ConfigError, match="config.train_clips.reverse: True, but .* was started with False"
    ):
        run_folder.record_config(
            tmp_path,
            c3d_config | {"train_clips": c3d_config["train_clips"] | {"reverse": True}},
            loop.train,
        )


def test_a_checkpoint_tells_its_run(c3d_config):
    def other(**changes):
        about = {"config": json.loads(json.dumps(c3d_config | changes)), "versions": {"jax": "0.1"}}
        return run_folder.why_another_run(about, c3d_config, loop.train)

    assert (
        other() is None
        and other(steps=99, log_every=7, train_clips=c3d_config["train_clips"] | {"threads": 9})
        is None
    )
    assert other(seed=3) == "is of another run: its config.seed is 3, this run's 0"
    assert "config.optimizer.lr is 0.5" in other(optimizer=c3d_config["optimizer"] | {"lr": 0.5})
    assert "config.model.dropout is 0.1" in other(model=c3d_config["model"] | {"dropout": 0.1})
    for damaged in ({}, [], {"config": 3}, {"config": {"train_clips": None}}):
        assert (
            run_folder.why_another_run(damaged, c3d_config, loop.train)
            == "what it says of its run is damaged"
        )
