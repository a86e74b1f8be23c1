"""A run's folder: its files, its lock, and the config that tells which run it is."""

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
def test_a_file_in_place_of_a_folder_and_the_reverse_are_named_before_training(name, tmp_path):
    path = tmp_path / "run" / name
    if name in run_folder.FILES:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kind = "file" if name in run_folder.FILES else "folder"
    message = re.escape(f"{path}: is no {kind}, as it is in a run; move it away")
    with pytest.raises(ConfigError, match=message):
        run_folder.check_file_kinds(tmp_path / "run")


def test_a_workdir_whose_name_is_not_utf8_is_named_before_training(tmp_path):
    workdir = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    message = "--workdir: .*: not a name in UTF-8, which checkpoints need"
    with pytest.raises(ConfigError, match=message):
        run_folder.check_file_kinds(workdir)


def test_two_runs_in_one_folder_are_refused(finished_run, config):
    folder, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with (
        run_folder.locked(folder),
        pytest.raises(ConfigError, match="another process is training in it; use another workdir"),
    ):
        loop.train(str(folder), **config | {"log_every": 3})
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with run_folder.locked(folder):  # The lock was released.
        pass


def test_a_damaged_config_file_is_named_and_the_run_resumes_without_it(c3d_config, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    for damaged in (b"{", b"\xff", b"[]", b"3", b"[" * 200_000, b'{"train_clips": null}'):
        (tmp_path / "config.json").write_bytes(damaged)
        message = "config.json: damaged; move it away, and the same command goes on"
        with pytest.raises(ConfigError, match=message):
            run_folder.record_config(tmp_path, c3d_config, loop.train)
    (tmp_path / "config.json").unlink()
    run_folder.record_config(tmp_path, c3d_config, loop.train)


def test_a_mistake_before_the_first_checkpoint_does_not_claim_the_folder(c3d_config, tmp_path):
    with pytest.raises(weights.WeightsError, match="typo.safetensors: no such file"):
        loop.train(str(tmp_path), **c3d_config | {"init_from": "typo.safetensors"})
    other = c3d_config["dataset"] | {"data_dir": str(tmp_path / "not made")}
    wrong = c3d_config | {"init_from": "typo.safetensors", "dataset": other}
    with pytest.raises(weights.WeightsError, match="typo.safetensors: no such file"):
        loop.train(str(tmp_path), **wrong)
    assert not (tmp_path / "not made").exists()  # The weights are looked for first.
    record = functools.partial(run_folder.record_config, tmp_path, run=loop.train)
    record(c3d_config | {"pretrain": c3d_config})
    (tmp_path / "pretrain" / "checkpoints" / "1").mkdir(parents=True)
    record(c3d_config | {"pretrain": c3d_config, "seed": 1})
    with pytest.raises(ConfigError, match="config.pretrain.seed: 1, but .* was started with 0"):
        record(c3d_config | {"pretrain": c3d_config | {"seed": 1}})
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="config.seed: 0, but .* was started with 1"):
        record(c3d_config | {"pretrain": c3d_config})
    (tmp_path / "pretrain" / "checkpoints" / "1").rmdir()
    with pytest.raises(ConfigError, match="config.pretrain.* was started with"):
        record(c3d_config | {"seed": 1})


def test_an_omitted_option_equals_its_default(c3d_config, tmp_path):
    run_folder.record_config(tmp_path, c3d_config, loop.train)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    given = {"train_clips": c3d_config["train_clips"] | {"reverse": False}, "best_metric": "top1"}
    run_folder.record_config(tmp_path, c3d_config | given, loop.train)
    other = c3d_config | {"train_clips": c3d_config["train_clips"] | {"reverse": True}}
    message = "config.train_clips.reverse: True, but .* was started with False"
    with pytest.raises(ConfigError, match=message):
        run_folder.record_config(tmp_path, other, loop.train)


def test_a_checkpoint_tells_its_run(c3d_config):
    def other(**changes):
        about = {"config": json.loads(json.dumps(c3d_config | changes)), "versions": {"jax": "0.1"}}
        return run_folder.why_another_run(about, c3d_config, loop.train)

    assert other() is None
    clips = c3d_config["train_clips"] | {"threads": 9}
    assert other(steps=99, log_every=7, train_clips=clips) is None
    assert other(seed=3) == "is of another run: its config.seed is 3, this run's 0"
    assert "config.optimizer.lr is 0.5" in other(optimizer=c3d_config["optimizer"] | {"lr": 0.5})
    assert "config.model.dropout is 0.1" in other(model=c3d_config["model"] | {"dropout": 0.1})
    for damaged in ({}, [], {"config": 3}, {"config": {"train_clips": None}}):
        why = run_folder.why_another_run(damaged, c3d_config, loop.train)
        assert why == "what it says of its run is damaged"


EARLIER_KEYS = dict(
    accumulate=2,
    average=0.9,
    best="loss",
    clips=dict(rgb=(16, 1), crop=32),
    fixed=True,
    init="w.safetensors",
    keep=3,
    most_bad=7,
    norm_group=4,
    test_clips=dict(rgb=(16, 1), crop=32, batch_size=10),
)
TODAYS_KEYS = dict(
    grad_accum_steps=2,
    ema_decay=0.9,
    best_metric="loss",
    train_clips=dict(rgb=(16, 1), crop=32),
    freeze_backbone=True,
    init_from="w.safetensors",
    max_to_keep=3,
    max_skipped_steps=7,
    norm_group_size=4,
    eval_clips=dict(rgb=(16, 1), crop=32, batch_size=10),
)


def test_a_config_with_the_keys_of_earlier_versions_is_of_the_same_run(c3d_config, tmp_path):
    common = {name: value for name, value in c3d_config.items() if name not in TODAYS_KEYS}
    common |= {"steps": 4}
    earlier = common | EARLIER_KEYS | {"pretrain": common | EARLIER_KEYS}
    config = common | TODAYS_KEYS | {"pretrain": common | TODAYS_KEYS}
    path = tmp_path / "config.json"

    def record(**changes):
        path.write_text(json.dumps(earlier))
        run_folder.record_config(tmp_path, config | changes, loop.train)

    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    record()
    assert json.loads(path.read_text()) == json.loads(json.dumps(config))
    record(max_to_keep=9, grad_accum_steps=1, max_skipped_steps=1)
    for name, value, before in (
        ("ema_decay", 0.5, "0.9"),
        ("best_metric", "top1", "'loss'"),
        ("freeze_backbone", False, "True"),
        ("init_from", None, "'w.safetensors'"),
        ("norm_group_size", 2, "4"),
    ):
        message = re.escape(f"config.{name}: {value!r}, but {tmp_path} was started with {before};")
        with pytest.raises(ConfigError, match=message):
            record(**{name: value})
    for section in "train_clips", "eval_clips":
        with pytest.raises(ConfigError, match=f"config.{section}.crop: 30, .* started with 32;"):
            record(**{section: config[section] | {"crop": 30}})
    with pytest.raises(ConfigError, match=r"config.pretrain.ema_decay: 0.5, .* started with 0.9;"):
        record(pretrain=config["pretrain"] | {"ema_decay": 0.5})

    about = {"config": json.loads(json.dumps(earlier))}
    assert run_folder.why_another_run(about, config, loop.train) is None
    why = run_folder.why_another_run(about, config | {"ema_decay": 0.5}, loop.train)
    assert why == "is of another run: its config.ema_decay is 0.9, this run's 0.5"
