import functools
import importlib.util
import inspect
import json
import math
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorboardX.proto import event_pb2

from i3d_jax import datasets, models, predict, stopping, weights
from i3d_jax.datasets import moving_shapes, pipeline
from i3d_jax.models import layers, pooling
from i3d_jax.training import checkpoints, loop, optimizers, run_folder, validation
from i3d_jax.training.config import ConfigError, validate
from i3d_jax.training.logs import Log
from i3d_jax.training.step import (
    State,
    _global_norm,
    initial_state,
    runs_per_micro_batch,
    split_into_micro_batches,
    train_step,
)
from i3d_jax.video import h264, planes

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of seconds: Inception-v1 on single frames of a few moving shapes."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            moving_shapes,
            "CLIPS_PER_CLASS",
            {k: {"train": 2, "validation": 1} for k in ("videos", "images")},
        )
        yield dict(
            steps=6,
            batch_size=8,
            model=dict(name="inception", width=0.1, dropout=0.5, norm_decay=0.9),
            dataset=dict(name="moving_shapes/videos", data_dir=folder),
            train_clips=dict(rgb=(1, 1), crop=32, flip=True),
            eval_clips=dict(rgb=(2, 1), crop=32, batch_size=10),
            optimizer=dict(lr=0.05, milestones=((4, 0.1),)),
            norm_group_size=4,
            log_every=1,
            checkpoint_every=2,
        )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, loop.train(str(folder), **config)


@pytest.fixture(scope="module")
def quick(config):
    """The same of C3D, which is traced and compiled in a quarter of the time."""
    changes = dict(
        model=dict(name="c3d"), train_clips=dict(rgb=(16, 1)), eval_clips=dict(rgb=(16, 1))
    )
    return config | {name: config[name] | change for name, change in changes.items()}


@pytest.fixture(scope="module")
def quick_run(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return folder, loop.train(str(folder), **quick)


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timings = "clips_per_second", "input_wait", "memory_mb"
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


def weights_of(folder):
    return weights.read(folder / "weights.safetensors")[0]


def test_norm_of_the_gradient_is_that_of_all_its_numbers():
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape) for shape in ((3, 3, 7, 11), (13,), (64, 64), ())]
    norm = _global_norm(jax.tree.map(jnp.float32, grads))
    np.testing.assert_allclose(norm, optax.tree.norm(grads), rtol=1e-6)


def test_a_state_is_made_by_one_program_and_saved_by_none(tmp_path, programs):
    ones = {
        name: np.ones(shape, np.float32)
        for name, shape in (("a", (3, 4)), ("b", (5,)), ("c", (2, 2, 6)))
    }
    tx, _ = optimizers.sgd(lr=0.1)
    state = initial_state(
        {"params": ones, "batch_stats": {"mean": np.ones(7, np.float32)}}, tx, ema=True
    )
    state = jax.device_put(
        state, NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec())
    )
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, state)
    assert len(programs()) == 1


def test_a_run_leaves_a_log_checkpoints_and_weights_that_predict(undisturbed, tmp_path):
    folder, result = undisturbed
    log = log_of(folder)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6, 6]
    assert [line["lr"] for line in log[:6]] == pytest.approx([0.05] * 4 + [0.005] * 2)
    assert (
        result["clips"] == log[-1]["validation_clips"] == 24
        and 0 <= result["top1"] <= result["top5"] <= 1
    )
    shares = {
        "train_used": 48,
        "train_annotated": 48,
        "validation_used": 24,
        "validation_annotated": 24,
    }
    assert shares.items() <= result.items() and shares.items() <= log[-1].items()
    assert list(folder.glob("events.out.tfevents.*"))
    variables, info = weights.read(folder / "weights.safetensors")
    assert info.classes == tuple(moving_shapes.CLASSES["videos"]) and (
        info.short_side,
        info.crop,
    ) == (56, 32)
    frames, _ = moving_shapes.render("disc", "moving left", np.random.default_rng(0))
    (tmp_path / "x.mp4").write_bytes(h264.encode(frames))
    assert (
        predict.main(["--weights", str(folder / "weights.safetensors"), str(tmp_path / "x.mp4")])
        == 0
    )
    assert len(variables["params"]["Logits"]["bias"]) == 24


def test_splits_that_the_data_set_does_not_have_are_named_before_training(undisturbed, config):
    for name in "train_split", "test_split":
        with pytest.raises(
            ConfigError, match=f"config.{name}: .* no split 'tset'; there are train, validation"
        ):
            validate(config | {name: "tset"}, loop.train)
    validate(config | {"train_split": "train[:50%]"}, loop.train)
    for split in "validation[nonsense]", "validation[:10 %%", "validation[:0]":
        with pytest.raises(ConfigError, match=re.escape(f"config.validation_split: '{split}'")):
            validate(config | {"validation_split": split, "validate_every": 1}, loop.train)


def test_a_resumed_run_ends_bit_identical(quick_run, quick, tmp_path):
    folder, result = quick_run
    loop.train(str(tmp_path), **quick | {"steps": 3})
    with (tmp_path / "log.jsonl").open("a") as log:  # Killed after logging step 5.
        log.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    again = loop.train(str(tmp_path), **quick)
    jax.tree.map(np.testing.assert_array_equal, weights_of(tmp_path), weights_of(folder))
    assert again["loss"] == result["loss"]
    resumed = [line for line in log_of(tmp_path) if "loss" in line]
    assert resumed == [line for line in log_of(folder) if "loss" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_as_if_nothing_had_been(
    number, quick_run, quick, tmp_path, monkeypatch
):
    folder, result = quick_run
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
        # Of step 3 there would be no checkpoint otherwise.
        with pytest.raises(stopping.StoppedError, match=message) as stopped:
            loop.train(str(tmp_path), **quick)
    assert stopped.value.status == 128 + number and signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / "3").exists()
    assert loop.train(str(tmp_path), **quick)["loss"] == result["loss"]
    jax.tree.map(np.testing.assert_array_equal, weights_of(tmp_path), weights_of(folder))
    assert [line for line in log_of(tmp_path) if "loss" in line] == [
        line for line in log_of(folder) if "loss" in line
    ]


def test_a_run_is_not_resumed_as_another(undisturbed, config):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for change, message in (
        (dict(seed=1), "config.seed: 1, but .* was started with 0; use another workdir"),
        (
            dict(optimizer=config["optimizer"] | {"lr": 0.2}),
            "config.optimizer.lr: 0.2, but .* was started with 0.05",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            loop.train(str(folder), **config | change)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(
        ConfigError, match="config.steps: 3, but .* has a checkpoint of step 6 already"
    ):
        loop.train(str(folder), **config | {"steps": 3})


def test_checkpoints_say_which_run_they_are_of_where_the_folder_does_not(
    quick_run, quick, tmp_path, capsys
):
    shutil.copytree(quick_run[0] / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(
        checkpoints.DamagedError, match=r"none of the steps \[4, 6\] can be restored"
    ):
        loop.train(str(tmp_path), **quick | {"seed": 1})
    assert (
        "step 6: is of another run: its config.seed is 0, this run's 1\n" in capsys.readouterr().err
    )
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "6"}


@pytest.mark.parametrize("name", ["", *run_folder.FOLDERS, *run_folder.FILES])
def test_files_and_folders_in_each_others_place_are_named_before_training(name, quick, tmp_path):
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


def test_a_damaged_config_is_named_and_the_run_goes_on_without_it(quick, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    for damaged in (b"{", b"\xff", b"[]", b"3", b"[" * 200_000, b'{"train_clips": null}'):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(
            ConfigError, match="config.json: damaged; move it away, and the same command goes on"
        ):
            run_folder.record_config(tmp_path, quick, loop.train)
    (tmp_path / "config.json").unlink()
    run_folder.record_config(tmp_path, quick, loop.train)


def test_damaged_lines_of_a_log_are_named_and_left_out_and_the_log_with_them_is_kept(
    tmp_path, capsys
):
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": null}', b'{"step": 3, "loss": 0.25}']
    bad = [
        b'{"step": 2, "lo\xf3s": 1.0}',
        b'{"step"; 2}',
        b"[2]",
        b'{"stop": 2}',
        b'{"step": true}',
        b"[" * 200_000,
        b"",
    ]
    path = tmp_path / "log.jsonl"
    for number, line in enumerate(bad):
        damaged = b"\n".join([good[0], line, *good[1:], b'{"step": 4}', b'{"ste'])
        path.write_bytes(damaged)
        with Log(tmp_path, 3) as log:
            log(3, {"loss": 9.0})  # Which is logged already.
            log(4, {"loss": 0.125})
        assert [json.loads(each) for each in path.read_text().splitlines()] == [
            *map(json.loads, good),
            {"step": 4, "loss": 0.125},
        ]
        copy = tmp_path / "set_aside" / ("log.jsonl" + f".{number}" * bool(number))
        assert copy.read_bytes() == damaged
        said = f"{path}: line 2 left out, since damaged; as it was, the log is {copy}\n"
        assert capsys.readouterr().err == said


def test_a_mistake_that_is_found_late_does_not_keep_its_folder(quick, tmp_path):
    with pytest.raises(weights.WeightsError, match="typo.safetensors: no such file"):
        loop.train(str(tmp_path), **quick | {"init_from": "typo.safetensors"})
    other = quick["dataset"] | {"data_dir": str(tmp_path / "not made")}
    with pytest.raises(
        weights.WeightsError, match="typo.safetensors: no such file"
    ):  # Before data are made.
        loop.train(str(tmp_path), **quick | {"init_from": "typo.safetensors", "dataset": other})
    assert not (tmp_path / "not made").exists()
    note = functools.partial(run_folder.record_config, tmp_path, run=loop.train)
    note(quick | {"pretrain": quick})
    (tmp_path / "pretrain" / "checkpoints" / "1").mkdir(parents=True)
    note(quick | {"pretrain": quick, "seed": 1})
    with pytest.raises(ConfigError, match="config.pretrain.seed: 1, but .* was started with 0"):
        note(quick | {"pretrain": quick | {"seed": 1}})
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="config.seed: 0, but .* was started with 1"):
        note(quick | {"pretrain": quick})
    (tmp_path / "pretrain" / "checkpoints" / "1").rmdir()
    with pytest.raises(ConfigError, match="config.pretrain.* was started with"):
        note(quick | {"seed": 1})


def test_an_option_that_is_left_out_is_as_by_default(quick, tmp_path):
    run_folder.record_config(tmp_path, quick, loop.train)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    given = {"train_clips": quick["train_clips"] | {"reverse": False}, "best_metric": "top1"}
    run_folder.record_config(tmp_path, quick | given, loop.train)
    with pytest.raises(
        ConfigError, match="config.train_clips.reverse: True, but .* was started with False"
    ):
        run_folder.record_config(
            tmp_path, quick | {"train_clips": quick["train_clips"] | {"reverse": True}}, loop.train
        )


def test_validations_that_are_not_made_need_no_split(config, undisturbed):
    validate(config | {"validation_split": "validation[:1%]"}, loop.train)
    with pytest.raises(ConfigError, match="config.validation_split: 'validation.*' has no clips"):
        validate(config | {"validation_split": "validation[:1%]", "validate_every": 1}, loop.train)


def restored(folder, states, refuse=lambda about: None):
    """What is restored from a run's checkpoints."""
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states[0]
    )
    with checkpoints.Checkpoints(folder / "checkpoints", max_to_keep=9) as saved:
        step, state = saved.restore(like, refuse)
        saved.save(step + 1, state._replace(step=jnp.int32(step + 1)))  # The way is free.
    return step, float(state.params[1])


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """Of steps 2, 4 and 6, whose parameters are as many, and that one seed made, but for the last."""
    folder = tmp_path_factory.mktemp("three")
    parts = dict(
        batch_stats={},
        opt_state=(),
        skipped=jnp.zeros(2, jnp.int32),
        validation=validation.initial(),
    )
    states = [State(jnp.int32(step), jnp.full(5, float(step)), **parts) for step in (2, 4, 6)]
    for state, seed in zip(states, (0, 0, 1), strict=True):
        with checkpoints.Checkpoints(
            folder / "checkpoints", max_to_keep=9, about={"config": {"seed": seed}}
        ) as saved:
            saved.save(int(state.step), state)
    return folder, states


def swap(folder):
    (folder / "6").rename(folder / "x")
    (folder / "4").rename(folder / "6")
    (folder / "x").rename(folder / "4")


@pytest.mark.parametrize(
    "change,step,moved,why",
    [
        (swap, 2, ["4", "6"], "step 6: is the checkpoint of step 4"),
        (
            lambda folder: shutil.copytree(folder / "4", folder / "1000000"),
            6,
            ["1000000"],
            "step 1000000: is the",
        ),
        (
            lambda folder: (folder / f"{10**30}").symlink_to("4"),
            6,
            [f"{10**30}"],
            "is the checkpoint of step 4",
        ),
        (
            lambda folder: (folder / "6" / "crc32c" / "metadata").write_text("[]"),
            4,
            ["6"],
            "step 6: its checksums are",
        ),
        (
            lambda folder: (folder / "6" / "about" / "metadata").write_text("{"),
            4,
            ["6"],
            "step 6: cannot be restored",
        ),
    ],
)
def test_checkpoints_in_a_folder_of_another_step_are_set_aside(
    three_checkpoints, change, step, moved, why, tmp_path, capsys
):
    folder, states = three_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "set_aside" / "6").mkdir(parents=True)  # From before; it stays.
    change(tmp_path / "checkpoints")
    assert restored(tmp_path, states) == (step, step)
    said = capsys.readouterr().err
    assert (
        why in said
        and f"goes on from step {step}; moved to {tmp_path / 'set_aside'}: {', '.join(moved)}\n"
        in said
    )
    wanted = {"6", *(f"{name}.1" if name == "6" else name for name in moved)}
    assert {path.name for path in (tmp_path / "set_aside").iterdir()} == wanted
    assert not list((tmp_path / "set_aside" / "6").iterdir())


def test_checkpoints_of_another_run_are_not_taken_for_ones_own(three_checkpoints, tmp_path, capsys):
    folder, states = three_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def refuse(about, wanted):
        return None if about.get("config") == wanted else "is another's"

    assert restored(tmp_path, states, functools.partial(refuse, wanted={"seed": 0})) == (4, 4.0)
    assert "step 6: is another's\n" in capsys.readouterr().err
    with pytest.raises(
        checkpoints.DamagedError, match=r"none of the steps \[2, 4, 5\] can be restored"
    ):
        restored(tmp_path, states, functools.partial(refuse, wanted={"seed": 2}))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_what_orbax_notes_of_a_step_may_be_damaged(three_checkpoints, tmp_path):
    folder, states = three_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "6" / "_CHECKPOINT_METADATA").write_text("[1]")
    with pytest.raises(
        checkpoints.DamagedError,
        match="a step's _CHECKPOINT_METADATA is damaged; move the step away",
    ):
        restored(tmp_path, states)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    assert restored(tmp_path, states) == (4, 4.0)


def test_a_checkpoint_says_which_run_it_is_of(quick):
    def other(**changes):
        about = {"config": json.loads(json.dumps(quick | changes)), "versions": {"jax": "0.1"}}
        return run_folder.why_another_run(about, quick, loop.train)

    assert (
        other() is None
        and other(steps=99, log_every=7, train_clips=quick["train_clips"] | {"threads": 9}) is None
    )
    assert other(seed=3) == "is of another run: its config.seed is 3, this run's 0"
    assert "config.optimizer.lr is 0.5" in other(optimizer=quick["optimizer"] | {"lr": 0.5})
    assert "config.model.dropout is 0.1" in other(model=quick["model"] | {"dropout": 0.1})
    for damaged in ({}, [], {"config": 3}, {"config": {"train_clips": None}}):
        assert (
            run_folder.why_another_run(damaged, quick, loop.train)
            == "what it says of its run is damaged"
        )


def test_two_runs_in_one_folder_are_refused(undisturbed, config):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with (
        run_folder.locked(folder),
        pytest.raises(ConfigError, match="another process is training in it; use another workdir"),
    ):
        loop.train(str(folder), **config | {"log_every": 3})
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with run_folder.locked(folder):  # It was let go of.
        pass


def test_weights_of_another_width_are_an_error_of_one_line(undisturbed):
    folder, _ = undisturbed
    model = models.build("inception", num_classes=24, width=0.2)
    with pytest.raises(
        weights.WeightsError, match="weights.safetensors: cannot inflate .*Conv_1a/bn/mean"
    ) as error:
        loop.initial_variables(
            "inception",
            model,
            jax.random.key(0),
            jnp.zeros((1, 1, 32, 32, 3)),
            str(folder / "weights.safetensors"),
        )
    assert "\n" not in str(error.value)


def test_damaged_checkpoints_are_passed_over_loudly(quick_run, quick, tmp_path, capsys):
    folder, _ = quick_run
    loop.train(str(tmp_path), **quick | {"steps": 4})
    data = max(
        (tmp_path / "checkpoints" / "4").rglob("*"),
        key=lambda path: path.stat().st_size if path.is_file() else 0,
    )
    bad = bytearray(data.read_bytes())
    bad[len(bad) // 2] ^= 1
    data.write_bytes(bad)
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(log.replace(b"step", b"s\xf4ep", 1))
    loop.train(str(tmp_path), **quick)
    said = capsys.readouterr().err
    assert "checkpoints: step 4: " in said and "log.jsonl: line 1 left out, since damaged" in said
    assert [path.name for path in (tmp_path / "set_aside").glob("?")] == ["4"]
    assert [line["step"] for line in log_of(tmp_path) if "loss" in line] == [2, 3, 4, 5, 6]
    jax.tree.map(np.testing.assert_array_equal, weights_of(tmp_path), weights_of(folder))


def test_checkpoints_that_are_all_damaged_are_an_error_and_left_alone(tmp_path):
    state = {"w": jnp.arange(1000.0)}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.restore(like) is None
        saved.save(1, state)
        saved.wait()
        step, restored = saved.restore(like)
        assert step == 1 and (restored["w"] == state["w"]).all()
        with pytest.raises(RuntimeError, match="step 1 was not saved"):
            saved.save(1, state)
        with pytest.raises(ValueError, match=r"none of the steps \[1\] can be restored"):
            saved.restore(
                {"w": jax.ShapeDtypeStruct((999,), jnp.float32, sharding=state["w"].sharding)}
            )
        assert saved.all_steps() == [1]


def test_one_command_trains_on_images_inflates_and_trains_on_videos(config, tmp_path):
    images = config | dict(steps=1, dataset=config["dataset"] | {"name": "moving_shapes/images"})
    images["eval_clips"] = images["eval_clips"] | {"rgb": (1, 1)}
    videos = config | dict(steps=1, model=config["model"] | {"name": "i3d"}, pretrain=images)
    videos |= dict(
        train_clips=dict(rgb=(16, 1), crop=32, flip=False), optimizer=dict(lr=0.0, weight_decay=0.0)
    )
    videos["eval_clips"] = videos["eval_clips"] | {"rgb": (16, 1)}
    loop.train(str(tmp_path), **videos)
    image, clip = weights_of(tmp_path / "pretrain")["params"], weights_of(tmp_path)["params"]
    np.testing.assert_allclose(
        clip["Conv_1a"]["conv"]["kernel"].sum(0), image["Conv_1a"]["conv"]["kernel"], atol=1e-6
    )
    assert clip["Logits"]["kernel"].shape[-1] == 24 and image["Logits"]["kernel"].shape[-1] == 4


def test_two_streams_are_trained_from_one_image_networks_weights(undisturbed, config, tmp_path):
    clips = dict(rgb=(1, 10), flow=(10, 1), crop=32)
    two = config | dict(
        steps=1, batch_size=4, model=dict(name="two_stream", width=0.1, dropout=0.5)
    )
    two |= dict(train_clips=clips | dict(flip=False), eval_clips=clips | dict(batch_size=4))
    two |= dict(
        init_from=str(undisturbed[0] / "weights.safetensors"),
        optimizer=dict(lr=0.0, weight_decay=0.0),
    )
    result = loop.train(str(tmp_path), **two)
    image, both = weights_of(undisturbed[0])["params"], weights_of(tmp_path)["params"]
    np.testing.assert_allclose(
        both["flow"]["Conv_1a"]["conv"]["kernel"][:, :, 7],
        image["Conv_1a"]["conv"]["kernel"].mean(2),
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        both["rgb"]["Conv_2c"]["conv"]["kernel"], image["Conv_2c"]["conv"]["kernel"]
    )
    assert result["clips"] == 24
    _, _, info = weights.network(tmp_path / "weights.safetensors")
    assert info.footprint == {"rgb": (1, 10), "flow": (10, 1)} and info.stream == "rgb+flow"


class Steps(nn.Module):
    """Logits per step in time in training, as ConvNet+LSTM's."""

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "unused", jnp.zeros, ())
        return nn.Dense(5)(x.mean((2, 3)))


def packed(rng, batch, frames, size):
    """Clips of noise, as `pipeline.train_batches` gives them."""
    rgb = rng.integers(0, 255, (batch, frames, (size + 2) * 3 // 2, size + 2)).astype(np.uint8)
    corner, mirrored = rng.integers(0, 2, (batch, 2)).astype(np.int32), rng.random(batch) < 0.5
    return {"rgb": rgb, "corner": corner, "mirrored": mirrored}


def test_every_step_in_time_is_taught():
    model, (tx, _) = Steps(), optimizers.sgd(lr=0.1)
    rng = np.random.default_rng(0)
    batch = packed(rng, 4, 3, 2) | {"label": np.arange(4)}
    variables = model.init(jax.random.key(0), jnp.zeros((1, 3, 2, 2, 3)))
    params, stats = variables["params"], variables["batch_stats"]
    state = initial_state({"params": params, "batch_stats": stats}, tx)
    _, scalars = train_step(state, batch, jax.random.key(1), model=model, tx=tx)
    logits = jax.jit(model.apply)(variables, planes.unpack(batch)["rgb"])
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(logits[:, t], batch["label"])
        for t in range(3)
    ]
    np.testing.assert_allclose(scalars["loss"], np.mean(losses), rtol=1e-6)
    np.testing.assert_allclose(
        scalars["accuracy"], (logits.argmax(-1) == batch["label"][:, None]).mean()
    )


class Small(nn.Module):
    """Two convolutions with grouped batch norm, a pool and dropout; in float64."""

    @nn.compact
    def __call__(self, x, train=False):
        unit = functools.partial(layers.ConvBN, groups=4, dtype=jnp.float64)
        x = unit(6, (3, 3, 3), (1, 1, 1), name="a")(x, train)
        x = pooling.max_pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(8, (3, 3, 3), (2, 2, 2), name="b")(x, train).mean((1, 2, 3))
        return nn.Dense(5, name="Logits")(layers.Dropout(0.5)(x, train))


def test_two_devices_match_one(float64):
    # Not in float32: rounding alone flips ReLUs, and gradients of deep layers then differ in the second digit.
    model, tx = Small(), optimizers.sgd(lr=0.1)[0]
    rng = np.random.default_rng(0)
    batch = packed(rng, 8, 4, 16) | {"label": np.arange(8) % 5}
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    state = initial_state({"params": params, "batch_stats": batch_stats}, tx)
    step = jax.jit(train_step, static_argnames=("model", "tx"))
    results = []
    for devices in jax.devices()[:1], jax.devices()[:2]:
        mesh = Mesh(np.array(devices), ("data",))
        here = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        clips = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        for _ in range(3):
            here, scalars = step(here, clips, jax.random.key(1), model=model, tx=tx)
        results.append(jax.device_get((scalars["loss"], here.batch_stats, here.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7, rtol=1e-6), *results)


class Fragile(nn.Module):
    """Logits that are not finite for bright clips."""

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "unused", jnp.zeros, ())
        x = x.mean((1, 2, 3))
        return nn.Dense(5, name="Logits")(x) + jnp.where(x.mean() > 0.5, jnp.nan, 0.0)


def fragile_run(ema_decay=None):
    """A state, and a function that takes a step with dark or bright clips."""
    model, (tx, _) = Fragile(), optimizers.sgd(lr=0.1, milestones=((2, 0.1),))
    rng = np.random.default_rng(0)
    dark = packed(rng, 4, 2, 4) | {"label": np.arange(4)}
    bright = dark | {"rgb": np.full_like(dark["rgb"], 235)}
    bright["rgb"][:, :, 6:] = 128
    params = model.init(jax.random.key(0), jnp.zeros((1, 2, 4, 4, 3)))["params"]
    state = initial_state(
        {"params": params, "batch_stats": {"unused": jnp.zeros(())}}, tx, ema_decay is not None
    )
    step = functools.partial(
        train_step, key=jax.random.key(1), model=model, tx=tx, ema_decay=ema_decay
    )
    return state, lambda state, is_bright: step(state, bright if is_bright else dark)


def test_updates_that_are_not_finite_are_passed_over_and_counted():
    state, step = fragile_run()
    counted = []
    for is_bright in (False, True, True, False, True):
        before = state
        state, scalars = step(state, is_bright)
        counted.append(state.skipped.tolist())
        assert [float(scalars["skipped_in_a_row"]), float(scalars["skipped"])] == counted[-1]
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, before.params)
        assert all(jax.tree.leaves(same)) == is_bright
        assert all(
            jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state._replace(validation=None))
        )
    assert counted == [[0, 0], [1, 1], [2, 2], [0, 2], [1, 3]]
    # Steps are steps, also for the learning rate.
    counts = [
        leaf for leaf in jax.tree.leaves(state.opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    assert int(state.step) == 5 and [int(count) for count in counts] == [5]


@pytest.mark.parametrize("wide", [False, True])
def test_a_state_keeps_its_types_so_that_a_step_is_compiled_once(wide):
    with jax.enable_x64(wide):
        state, step = fragile_run(ema_decay=0.9)
        after, _ = jax.eval_shape(functools.partial(step, is_bright=False), state)
        described = [
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), each)
            for each in (state, after)
        ]
        assert described[0] == described[1]


def test_the_average_of_parameters_is_exponential():
    state, step = fragile_run(ema_decay=0.9)
    wanted = state.params
    for is_bright in (False, False, True, False):
        state, _ = step(state, is_bright)
        if not is_bright:
            wanted = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, wanted, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.ema_params, wanted)


def test_a_batch_in_parts_has_every_clip_once_and_whole_groups():
    batch = {"number": np.arange(24), "rgb": np.arange(24)[:, None] * np.ones((1, 2))}
    for parts, devices, group in ((2, 2, 3), (2, 4, 3), (4, 2, 3), (1, 8, 3), (2, 8, 6)):
        runs = runs_per_micro_batch(24, parts, group, devices)
        found = split_into_micro_batches(jax.tree.map(jnp.asarray, batch), parts, runs)
        assert sorted(found["number"].ravel().tolist()) == list(range(24))
        assert (found["rgb"][..., 0] == found["number"]).all()
        groups = found["number"].reshape(-1, group)
        assert (groups[:, 0] % group == 0).all() and (jnp.diff(groups, axis=1) == 1).all()
        if runs == devices:  # A device's clips stay where they are.
            whose = found["number"].reshape(parts, devices, -1) // (24 // devices)
            assert (whose == jnp.arange(devices)[None, :, None]).all()
    assert [runs_per_micro_batch(24, 2, group, 8) for group in (1, 3, 6, 12, None)] == [
        4,
        4,
        2,
        1,
        1,
    ]


def test_dropout_drops_the_same_of_a_clip_whatever_part_it_is_in():
    module, key = layers.Dropout(0.5), jax.random.key(3)

    def drop(x, numbers):
        return module.apply({"clips": {"number": numbers}}, x, True, rngs={"dropout": key})

    x = jnp.ones((6, 2, 50))
    whole = drop(x, jnp.arange(6))
    assert 0.4 < (whole == 0).mean() < 0.6 and set(np.unique(whole)) == {0.0, 2.0}
    assert len({each.tobytes() for each in np.asarray(whole)}) == 6
    chosen = jnp.array([4, 1])
    np.testing.assert_array_equal(drop(x[chosen], chosen), whole[chosen])
    rows = drop(x[chosen].reshape(4, 50), chosen)  # Two rows per clip.
    np.testing.assert_array_equal(rows.reshape(2, 2, 50), whole[chosen])
    np.testing.assert_array_equal(module.apply({}, x, False), x)


def test_a_run_may_take_its_batches_in_parts_and_go_on_without(quick_run, quick, tmp_path):
    loop.train(str(tmp_path), **quick | {"grad_accum_steps": 2, "steps": 1})
    loop.train(str(tmp_path), **quick | {"steps": 2})
    wanted, found = (
        [line["loss"] for line in log_of(each) if "loss" in line]
        for each in (quick_run[0], tmp_path)
    )
    assert found == [pytest.approx(wanted[0], rel=1e-5), pytest.approx(wanted[1], rel=1e-2)]


def test_a_run_that_diverges_says_so_and_keeps_what_was_good(quick, tmp_path):
    wild = quick | {
        "optimizer": dict(lr=1e30),
        "steps": 20,
        "max_skipped_steps": 3,
        "checkpoint_every": 1,
    }
    message = r"step \d: loss or gradient of the last 3 steps was not finite; .* has the last good parameters"
    with pytest.raises(loop.DivergedError, match=message):
        loop.train(str(tmp_path), **wild)
    log = [line for line in log_of(tmp_path) if "loss" in line]
    assert log[-1]["skipped_in_a_row"] == 3 and log[-1]["loss"] is None


def test_weight_decay_is_an_l2_penalty_on_kernels_only():
    tx, _ = optimizers.sgd(lr=1.0, momentum=0.0, weight_decay=0.5)
    params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], 2.0)
    np.testing.assert_allclose(new["bias"], 4.0)


def test_the_releases_flow_schedule_with_its_restart():
    _, rate = optimizers.sgd(
        lr=0.1,
        milestones=(
            (97_000, 0.1),
            (104_500, 0.01),
            (115_000, 1.0),
            (140_000, 0.1),
            (150_000, 0.01),
        ),
    )
    steps = [0, 96_999, 97_000, 104_500, 115_000, 139_999, 140_000, 150_000, 154_999]
    found = [float(rate(step)) for step in steps]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.1, 0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    "change,message",
    [
        (
            dict(stpes=3),
            "config: there is no key 'stpes'; did you mean 'steps'? there are steps, batch_size, ",
        ),
        (dict(train_clips=dict(rgb=(1, 1), corp=32)), "config.train_clips: "),
        (dict(dataset={}), "config.dataset.name: is missing"),
        (
            dict(optimizer=dict(lr=0.1, momentun=0.9)),
            "config.optimizer: there is no key 'momentun'; did you mean 'momentum'? there are lr, ",
        ),
        (dict(model=dict(name="i2d")), "no model is called 'i2d'"),
        (dict(batch_size=6), "config.batch_size: 6 cannot be divided by norm_group_size, 4"),
        (
            dict(batch_size=9, norm_group_size=3),
            "config.batch_size: 9 cannot be divided by the number of devices, 2",
        ),
        (dict(model=dict(name="i3d")), "config.train_clips: I3D: 1 frames give no prediction"),
        (
            dict(model=dict(name="i3d"), train_clips=dict(rgb=(9, 1), crop=32)),
            "config.eval_clips: rgb: 2 frames, and the network takes 9 at least",
        ),
        (
            dict(model=dict(name="inception", dims=3)),
            "config.model: there is no key 'dims'; there are name, width, ",
        ),
        (
            dict(model=dict(name="inception", norm_group_size=3)),
            "config.model.norm_group_size: is not for a config to set",
        ),
        (dict(model=dict(name="inception", dtype=jnp.bfloat16)), "config: Object of type"),
        (
            dict(model=dict(name="inception", dtype="float17")),
            "dtype is 'float17', wanted one of float64, float32, bfloat16, float16",
        ),
        (
            dict(model=dict(name="inception", dtype="int32")),
            "dtype is 'int32', wanted one of float64, float32, bfloat16, float16",
        ),
        (
            dict(model=dict(name="inception", dtype="longdouble")),
            "dtype is 'longdouble', wanted one of",
        ),
        (dict(model=dict(name="inception", dtype=None)), "dtype is None, wanted one of"),
        (dict(model=dict(name="inception", width=-1.0)), "width is -1.0, wanted a positive number"),
        (
            dict(model=dict(name="inception", width=math.inf)),
            "config.model.width: inf, wanted a number",
        ),
        (
            dict(model=dict(name="inception", dropout=2.0)),
            "dropout is 2.0, wanted a number from 0 to less than 1",
        ),
        (
            dict(model=dict(name="inception", norm_decay="x")),
            "config.model.norm_decay: 'x', wanted a number",
        ),
        (dict(model=dict(name="inception", time_padding="egde")), "time_padding is 'egde'"),
        (
            dict(train_clips=dict(rgb=(1, 1), crop=58)),
            "config.train_clips.crop: 58 pixels of frames whose short side has 56",
        ),
        (
            dict(train_clips=dict(rgb=(1, 1), crop=32, process=1)),
            "config.train_clips.process: is not for a config to set",
        ),
        (
            dict(eval_clips=dict(rgb=(1, 1), crop=32, batch_size=3)),
            "config.eval_clips.batch_size: 3 cannot be divided",
        ),
        (dict(train_clips=dict(crop=32)), "config.train_clips: clips have neither rgb nor flow"),
        (
            dict(train_clips=dict(crop=32, rgb=(1, 0))),
            "config.train_clips: rgb: (1, 0), wanted (frames, step between them)",
        ),
        (
            dict(train_clips=dict(crop=32, flow=(1, 1))),
            "config.eval_clips: have ['rgb'], but config.train_clips have ['flow']",
        ),
        (
            dict(train_clips=dict(crop=32, flow=(1, 1)), dataset=dict(name="moving_shapes/images")),
            "config.train_clips: the data set has no flow",
        ),
        (
            dict(train_clips=dict(crop=32, flow=(1, 1), short_side=40)),
            "config.train_clips: short_side: flow cannot be resized",
        ),
        (
            dict(model=dict(name="two_stream")),
            "config.train_clips: TwoStream: got an array of shape (4, 1, 32, 32, 3), wanted {",
        ),
        (
            dict(
                train_clips=dict(crop=32, rgb=(1, 1), flow=(1, 1)),
                eval_clips=dict(crop=32, rgb=(1, 1), flow=(1, 1), batch_size=2),
            ),
            "config.train_clips: 2-D Inception: got the streams ['flow', 'rgb'], wanted [B, H, W, C] or [B, T, H, W, C]",
        ),
        (
            dict(train_clips=dict(crop=32, rgb=(1, 1), threads=0)),
            "config.train_clips.threads: 0 is not a positive whole number",
        ),
        (
            dict(eval_clips=dict(crop=32, rgb=(1, 1), batch_size=0)),
            "config.eval_clips.batch_size: 0 is not a positive",
        ),
        (
            dict(eval_clips=dict(crop=32, rgb=(1, 1), batch_size=2, chunk=8)),
            "config.eval_clips.chunk: is not for a config to set",
        ),
        (
            dict(model=dict(name="convnet_lstm", width=0.1), norm_group_size=1),
            "config.train_clips: batch norm: a group with one value per channel has no variance",
        ),
        (
            dict(model=dict(name="two_stream_i3d")),
            "config.model.name: two_stream_i3d's streams are trained separately",
        ),
        (
            dict(grad_accum_steps=2, norm_group_size=None),
            "config.norm_group_size: is needed with grad_accum_steps",
        ),
        (dict(grad_accum_steps=3), "config.batch_size: 8 cannot be divided by grad_accum_steps, 3"),
        (
            dict(grad_accum_steps=4),
            "config.batch_size: 2 clips per micro-batch cannot be divided by norm_group_size, 4",
        ),
        (
            dict(batch_size=12, grad_accum_steps=4, norm_group_size=3),
            "config.batch_size: 3 clips per micro-batch cannot be divided by the number of devices, 2",
        ),
        (dict(grad_accum_steps=0), "config.grad_accum_steps: 0 is not a positive whole number"),
        (dict(max_skipped_steps=0), "config.max_skipped_steps: 0 is not a positive whole number"),
        (dict(ema_decay=1.0), "config.ema_decay: 1.0 is not a number between 0 and 1"),
        (dict(ema_decay="0.9"), "config.ema_decay: '0.9', wanted a number or None"),
        (dict(steps=0), "config.steps: 0 is not a positive whole number"),
        (dict(max_to_keep=0), "config.max_to_keep: 0 is not a positive whole number"),
        (dict(validate_every=0), "config.validate_every: 0 is not a positive whole number"),
        (dict(freeze_backbone=1, init_from="x"), "config.freeze_backbone: 1, wanted True or False"),
        (
            dict(freeze_backbone=True),
            "config.freeze_backbone: only the last layer is trained: config.init_from must say",
        ),
        (
            dict(best_metric="top3"),
            "config.best_metric: 'top3' is none of top1, top5, mean_class, loss",
        ),
        (dict(best_metric=["top1"]), "config.best_metric: ['top1'], wanted text"),
        (dict(plateau="x"), "config.plateau: 'x', wanted a section or None"),
        (dict(optimizer=dict(lr="0.1")), "config.optimizer.lr: '0.1', wanted a number"),
        (
            dict(optimizer=dict(lr=0.1, lr_batch_size=0)),
            "config.optimizer.lr_batch_size: 0 is not a positive",
        ),
        (
            dict(plateau=dict(factor=0.1)),
            "config.plateau: needs validations: set config.validate_every",
        ),
        (
            dict(plateau=dict(facto=0.1), validate_every=1),
            "config.plateau: there is no key 'facto'; did you mean 'factor'? there are factor, ",
        ),
        (
            dict(plateau=dict(factor=2), validate_every=1),
            "config.plateau.factor: 2 is not a number between 0 and 1",
        ),
        (
            dict(plateau=dict(patience=0.5), validate_every=1),
            "config.plateau.patience: 0.5, wanted a whole number",
        ),
        (dict(profile=(3,)), "config.profile: (3,), wanted (first step, number of steps)"),
        (dict(profile=("3", 1)), "config.profile: ('3', 1), wanted (a whole number, ...)"),
        (
            dict(optimizer=dict(lr=0.1, only="Logits")),
            "config.optimizer.only: is not for a config to set",
        ),
        (
            dict(model=dict(name="inception", freeze_backbone=True)),
            "config.model.freeze_backbone: is not for a config to set",
        ),
        (dict(pretrain={}, init_from="x"), "config.pretrain and config.init_from: only one"),
        (dict(pretrain=3), "config.pretrain: 3, wanted a section or None"),
        (dict(optimizer=None), "config.optimizer: None, wanted a section"),
        (
            dict(optimizer=dict(lr=0.1, milestones=(300, 0.1))),
            "config.optimizer.milestones: (300, 0.1), wanted ((",
        ),
        (
            dict(optimizer=dict(lr=0.1, milestones=((3, "a"),))),
            "config.optimizer.milestones: ((3, 'a'),), wanted ((",
        ),
        (
            dict(optimizer=dict(lr=0.1, milestones=((3, 0.1), (1, 0.2)))),
            "milestones: steps [3, 1], wanted positive",
        ),
        (dict(optimizer=dict(lr=math.nan)), "config.optimizer.lr: nan, wanted a number"),
        (
            dict(optimizer=dict(lr=0.1, warmup=-1)),
            "config.optimizer.warmup: -1 is no number of steps",
        ),
        (dict(seed=-1), "config.seed: -1 is not a whole number from 0 to 2**32 - 1"),
        (dict(seed=1.5), "config.seed: 1.5, wanted a whole number"),
        (dict(init_from=3), "config.init_from: 3, wanted text or None"),
        (dict(init_from="weights\udcff"), "weights\udcff: not text in UTF-8"),
        (dict(train_split=["train"]), "config.train_split: ['train'], wanted text"),
        (
            dict(dataset=dict(name="moving_shapes/videos", data_dir=3)),
            "config.dataset.data_dir: 3, wanted text or None",
        ),
        (
            dict(train_clips=dict(rgb=(1, 1), crop=32, flip="no")),
            "config.train_clips.flip: 'no', wanted True or False",
        ),
        (
            dict(train_clips=dict(rgb=(1, 1), crop=32, short_side=40.5)),
            "config.train_clips.short_side: 40.5, wanted a whole number",
        ),
        (
            dict(train_clips=dict(rgb=(1, 1), crop=32, short_side=0)),
            "config.train_clips.short_side: 0 is not a positive whole",
        ),
        (
            dict(train_clips=dict(rgb=(1, 1), crop=32, workers=True)),
            "config.train_clips.workers: True, wanted a whole number",
        ),
        (
            dict(train_clips=dict(rgb=(1, 1.5), crop=32)),
            "config.train_clips.rgb: (1, 1.5), wanted (a whole number, a whole number)",
        ),
        (
            dict(plateau=dict(factor=None), validate_every=1),
            "config.plateau.factor: None, wanted a number",
        ),
        (
            dict(model=dict(name="inception", parent=1)),
            "config.model: there is no key 'parent'; there are name, width, ",
        ),
        (
            dict(model=dict(name="convnet_lstm", norm_steps="8")),
            "config.model.norm_steps: '8', wanted a whole number",
        ),
    ],
)
def test_mistakes_in_a_config_are_named_before_anything_is_made(config, change, message):
    with pytest.raises(ConfigError) as error:
        validate(config | change, loop.train)
    assert message in str(error.value)


def configs(name, *others):
    """The configs in a file, by run: all of its RUNS, and others that its argument can name."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        run: module.get_config(run).to_dict() for run in (*getattr(module, "RUNS", ()), *others)
    }


EVERY_CONFIG = [
    (f"{name}:{run}", config)
    for name in ("kinetics", "moving_shapes", "transfer")
    for run, config in configs(name).items()
]


@pytest.mark.parametrize("run,config", configs("moving_shapes").items())
def test_every_config_of_moving_shapes_is_valid(run, config):
    validate(config, loop.train)


def test_test_videos_of_c3d_may_have_frames_beyond_the_last_window(config):
    clips = dict(crop=32, rgb=(16, 1))
    c3d = config | dict(model=dict(name="c3d", width=0.1), train_clips=clips)
    validate(c3d | dict(eval_clips=dict(crop=32, rgb=(30, 1), batch_size=2)), loop.train)
    with pytest.raises(
        ConfigError, match="config.train_clips: 3D-ConvNet: got 30 frames, wanted a multiple of 16"
    ):
        validate(
            c3d
            | dict(
                train_clips=clips | dict(rgb=(30, 1)),
                eval_clips=dict(crop=32, rgb=(30, 1), batch_size=2),
            ),
            loop.train,
        )


@pytest.mark.parametrize("run,config", configs("kinetics", "two_stream,plateau").items())
def test_every_config_of_kinetics_is_valid_once_it_is_prepared(run, config, monkeypatch, tmp_path):
    config["dataset"]["data_dir"] = str(tmp_path)
    message = f"config: kinetics/400 is not prepared in {tmp_path}: python -m i3d_jax.datasets prepare kinetics/400 "
    with pytest.raises(ConfigError, match=message):
        validate(config, loop.train)

    class Kinetics:
        SHORT_SIDE, streams, final = 256, ("rgb", "flow"), tmp_path / "not here"

    monkeypatch.setattr(datasets, "available", lambda name, data_dir=None: Kinetics)
    validate(config, loop.train)
    entry = models.MODELS[config["model"]["name"]]
    for section, wanted in (("train_clips", entry.train), ("eval_clips", entry.test)):
        found = {
            stream: pair for stream, pair in config[section].items() if stream in ("rgb", "flow")
        }
        assert found == (wanted if run != "i3d_flow" else {"flow": wanted["rgb"]})
        assert config[section]["crop"] == entry.crop


@pytest.mark.parametrize(
    "run,config",
    configs("transfer", "fixed,ucf101/1", "full,hmdb51/2,flow", "original,ucf101/3").items(),
)
def test_every_config_of_transfer_is_valid_once_it_is_prepared(run, config, monkeypatch, tmp_path):
    class Prepared:
        SHORT_SIDE, streams, final = 256, ("rgb", "flow"), tmp_path / "not here"

    monkeypatch.setattr(datasets, "available", lambda name, data_dir=None: Prepared)
    validate(config | {"init_from": "rgb_imagenet"}, loop.train)
    assert config["dataset"]["name"] in run and config["freeze_backbone"] == run.startswith("fixed")
    assert ("flow" in config["train_clips"]) == run.endswith("flow")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--config=configs/moving_shapes.py"], "--workdir is missing"),
        (["--workdir=x"], "--config is missing"),
        (["--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
        (
            ["--config=configs/moving_shapes.py:sounds", "--workdir=x"],
            "no run is called 'sounds'; there are i3d, i3d_flow",
        ),
        (
            ["--config=configs/kinetics.py:i3d_rgb,platau", "--workdir=x"],
            "no schedule is called 'platau'",
        ),
        (
            ["--config=configs/transfer.py:full", "--workdir=x"],
            "'full', wanted HOW,DATASET or HOW,DATASET,flow",
        ),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x", "--config.optimizer.momentun=1"],
            "config.optimizer.momentun: there is no such key; did you mean config.optimizer.momentum?",
        ),
        (["--config=configs/moving_shapes.py", "--workdir=x", "--config.steps=many"], "many"),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x", "stray"],
            "unexpected argument 'stray'",
        ),
        (["--config=configs/moving_shapes.py", "--workdir=x", "--stpes=3"], "stpes"),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x", "--config.batch_size=0"],
            "config.batch_size",
        ),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x", "--config.dataset.name=ucf"],
            "no data set is called 'ucf'",
        ),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x", "--config.model.name=i2d"],
            "no model is called 'i2d'",
        ),
        (
            ["--config=configs/moving_shapes.py", "--workdir=README.md"],
            "README.md: is no folder, as it is in a run",
        ),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x\udcff"],
            "x\\udcff: not a name in UTF-8",
        ),
        (
            [
                "--config=configs/moving_shapes.py",
                "--workdir=x",
                "--config.dataset.data_dir=x\udcff",
            ],
            "not text in UTF-8",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_2(arguments, message):
    command = [sys.executable, "-m", "i3d_jax.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "i3d_jax.main" in line]
    assert message in line and "Traceback" not in done.stderr and done.stdout == ""


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "i3d_jax.main",
        "--config=configs/moving_shapes.py",
        f"--workdir={tmp_path}",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("python -m i3d_jax.main: Unable to initialize backend 'nonsense'")


def test_a_device_without_enough_memory_is_one_line_that_says_what_takes_less(tmp_path):
    program = """
import sys
import jax
from i3d_jax import main
from i3d_jax.training import loop
def full(workdir, **config):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\\n[tf-allocator-allocation-error='']")
loop.train = full
sys.exit(main.main())
"""
    arguments = ["--config=configs/moving_shapes.py", f"--workdir={tmp_path}"]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes. [" in done.stderr
    assert done.stderr.endswith(
        "; --config.grad_accum_steps or --config.remat=True makes a step take less\n"
    )


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in datasets.builder("moving_shapes/videos", "~/data").final.parents
    (tmp_path / "w.safetensors").touch()
    weights.find("~/w.safetensors")


def test_a_fixed_trunk_stays_to_the_bit_with_its_statistics_and_only_the_last_layer_is_trained(
    undisturbed, config, tmp_path
):
    start = str(undisturbed[0] / "weights.safetensors")
    run = config | dict(
        steps=2, freeze_backbone=True, init_from=start, optimizer=dict(lr=0.1, weight_decay=0.1)
    )
    loop.train(str(tmp_path), **run)
    before, after = weights_of(undisturbed[0]), weights_of(tmp_path)
    for kind in "params", "batch_stats":
        trunks = [
            {name: layer for name, layer in each[kind].items() if name != "Logits"}
            for each in (before, after)
        ]
        jax.tree.map(np.testing.assert_array_equal, *trunks)
    kernel = after["params"]["Logits"]["kernel"]
    assert np.isfinite(kernel).all() and not np.array_equal(
        kernel, before["params"]["Logits"]["kernel"]
    )


@pytest.mark.parametrize("name", ["inception", "convnet_lstm", "c3d", "fused_two_stream"])
def test_a_fixed_trunk_computes_as_in_a_test(name):
    """No gradient but the last layer's, no statistics of the batch; and the same tree of variables."""
    entry = models.MODELS[name]
    streams = {"rgb": (16, 1)} if len(entry.train) == 1 else {"rgb": (1, 1), "flow": (10, 1)}
    network = models.build(name, num_classes=3, width=0.05, dropout=0.5, freeze_backbone=True)
    video = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(1), x.shape), models.input_shapes(streams, 32, 2)
    )
    variables = jax.jit(network.init)(jax.random.key(0), video)
    free = models.build(name, num_classes=3, width=0.05)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(free.init, jax.random.key(0), video)
    )

    def loss(params):
        found = {"params": params, "batch_stats": variables["batch_stats"]}
        rngs = {"dropout": jax.random.key(2)}
        logits, updates = network.apply(
            found, video, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return (logits[..., 1] - 2 * logits[..., 2]).sum(), updates

    (_, updates), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert bool(jnp.any(grad != 0)) == ("Logits" in str(path)), path


def test_of_a_fixed_trunk_only_the_dropout_before_the_last_layer_is_on():
    """3D-ConvNet has one between its dense layers, too."""
    video = jax.random.normal(jax.random.key(1), (2, 16, 32, 32, 3))
    found = {}
    with models.forms_of("plain"):
        for dropout in (0.0, 0.5):
            network = models.build(
                "c3d", num_classes=3, width=0.1, dropout=dropout, freeze_backbone=True
            )
            variables = jax.jit(network.init)(jax.random.key(0), video)
            apply = jax.jit(
                functools.partial(
                    network.apply, endpoints=True, train=True, mutable=["batch_stats"]
                )
            )
            (logits, ends), _ = apply(variables, video, rngs={"dropout": jax.random.key(2)})
            found[dropout] = logits, ends["Dense_7"]
        tested, ends = jax.jit(functools.partial(network.apply, endpoints=True))(variables, video)
    for logits, features in found.values():
        np.testing.assert_allclose(features, ends["Dense_7"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0.0][0], tested, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0.5][0], tested, rtol=0.1)


def test_weights_that_leave_a_fixed_layer_new_are_refused(undisturbed):
    """The LSTM of a ConvNet+LSTM is not in an image network's weights."""
    network = models.build("convnet_lstm", num_classes=24, width=0.1, freeze_backbone=True)
    init = str(undisturbed[0] / "weights.safetensors")
    arguments = "convnet_lstm", network, jax.random.key(0), jnp.zeros((1, 2, 32, 32, 3)), init
    loop.initial_variables(*arguments)
    with pytest.raises(
        weights.WeightsError,
        match="freeze_backbone: 13 leaves are not in them and would never be trained: .*lstm/bias",
    ):
        loop.initial_variables(*arguments, freeze_backbone=True)


def test_a_run_that_is_extended_has_the_best_of_the_whole_one(quick, tmp_path, monkeypatch):
    """The test at an end that no validation is due at is none."""
    scores = {1: 0.1, 2: 0.3, 3: 0.9, 4: 0.2, 5: 0.4}
    real, steps = loop.evaluate, []

    def log(self, step, scalars):
        steps.append(step)
        return logged(self, step, scalars)

    logged = loop.Log.__call__
    monkeypatch.setattr(loop.Log, "__call__", log)
    monkeypatch.setattr(
        loop, "evaluate", lambda *a, **k: real(*a, **k) | {"top1": scores[steps[-1]]}
    )
    run = quick | dict(validate_every=2, max_to_keep=1)
    loop.train(str(tmp_path), **run | dict(steps=3))
    loop.train(str(tmp_path), **run | dict(steps=5))
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5]
    best = weights.read(tmp_path / "best.safetensors")[0]
    again = tmp_path / "again"
    loop.train(str(again), **run | dict(steps=2))
    jax.tree.map(np.testing.assert_array_equal, best, weights_of(again))


def test_fixed_layers_have_no_slots_in_the_optimiser():
    params = {"Conv": {"kernel": jnp.ones((2, 3))}, "rgb": {"Logits": {"kernel": jnp.ones((3, 4))}}}
    tx, _ = optimizers.sgd(lr=1.0, only="Logits", weight_decay=0.5)
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim] == [(3, 4)]
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert (updates["Conv"]["kernel"] == 0).all() and (
        updates["rgb"]["Logits"]["kernel"] == -0.5
    ).all()


def test_the_rate_is_in_proportion_to_the_batch_where_it_says_so():
    for options, wanted in (
        ({}, 0.1),
        ({"lr_batch_size": 384}, 0.1 / 6),
        ({"lr_batch_size": 16}, 0.4),
    ):
        _, rate = optimizers.sgd(lr=0.1, batch_size=64, **options)
        assert float(rate(0)) == pytest.approx(wanted)


def test_rematerialisation_changes_neither_variables_nor_gradients(float64):
    video = jax.random.normal(jax.random.key(1), (4, 9, 16, 16, 3))
    found, barriers = [], []
    for remat in (False, True):
        network = models.build(
            "i3d", num_classes=3, width=0.05, dropout=0.5, dtype=jnp.float64, remat=remat
        )
        variables = jax.jit(network.init)(jax.random.key(0), video)

        def loss(params, network=network, stats=variables["batch_stats"]):
            rngs = {"dropout": jax.random.key(2)}
            variables = {"params": params, "batch_stats": stats}
            logits, updates = network.apply(
                variables, video, train=True, mutable=["batch_stats"], rngs=rngs
            )
            return (logits[..., 1] - 2 * logits[..., 2]).sum(), updates

        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"])
        barriers.append(step.as_text().count("optimization_barrier"))
        found.append(step.compile()(variables["params"]))
    assert barriers[1] - barriers[0] == 12  # One for each convolution and block of the table.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), *found)


def test_a_run_with_validations_keeps_the_best_and_drops_its_rate_and_resumes_exactly(
    quick, tmp_path, monkeypatch
):
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] * 2)

    def evaluate(*args, **options):
        found = real(*args, **options)
        return found | {"loss": next(losses)}

    real = loop.evaluate
    run = quick | dict(
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
    lines = [line for line in log_of(whole) if "loss" in line]
    # Validated after steps 1 to 4: not lower after 2 and 3, and after 4 once.
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005])
    assert sorted(int(path.name) for path in (whole / "checkpoints").iterdir()) == [1, 5]
    assert list((whole / "profile").rglob("*.xplane.pb"))
    best, info = weights.read(whole / "best.safetensors")
    assert info.model == "c3d" and not np.array_equal(
        best["params"]["Logits"]["bias"], weights_of(whole)["params"]["Logits"]["bias"]
    )
    about = json.loads((whole / "checkpoints" / "5" / "about" / "metadata").read_text())
    assert (
        about["config"]["validate_every"] == 1
        and {"i3d-jax-zoo", "jax"} <= about["versions"].keys()
    )

    loop.train(str(halves), **run | dict(steps=3, profile=()))
    loop.train(str(halves), **run | dict(profile=()))
    undisturbed = tmp_path / "undisturbed"
    loop.train(str(undisturbed), **run | dict(profile=()))
    for a, b in zip(
        *(sorted(log_of(each), key=str) for each in (halves, undisturbed)), strict=True
    ):
        assert a == b
    for file in "weights", "best":
        first, second = (
            weights.read(each / f"{file}.safetensors")[0] for each in (halves, undisturbed)
        )
        jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_is_best_and_when_the_rate_drops():
    known = validation.initial()
    scores = [
        (0.1, 5.0),
        (0.3, 4.0),
        (0.2, 4.1),
        (0.3, 3.999),
        (0.4, 4.2),
        (float("nan"), float("nan")),
    ]
    found = []
    for step, (top1, loss) in enumerate(scores, 1):
        known = validation.update(
            known, step, {"top1": top1, "loss": loss}, plateau=dict(patience=2, threshold=0.01)
        )
        found.append((int(known.best_step), round(float(known.scale), 6), int(known.since)))
    assert found == [(1, 1, 0), (2, 1, 0), (2, 1, 1), (2, 0.1, 0), (5, 0.1, 1), (5, 0.01, 0)]


def test_disk_full_is_one_error_and_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    state = {"w": jnp.arange(1000.0)}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with (
        pytest.raises(checkpoints.SaveError, match="it takes 0.0 MB, and 0.0 MB are free"),
        checkpoints.Checkpoints(tmp_path, max_to_keep=1) as saved,
    ):
        saved.save(1, state)
        saved.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100))
        saved.save(2, state)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.restore(like)[0] == 1


def test_a_checkpoint_that_cannot_be_written_to_its_end_leaves_the_one_before(tmp_path):
    """A limit on the size of files stands for a disk that fills up in the middle."""
    program = """
import resource, signal, sys
import jax, jax.numpy as jnp, numpy as np
from i3d_jax.training import checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(1000, 1000)).astype("f"))}
try:
    with checkpoints.Checkpoints(sys.argv[1], max_to_keep=1) as saved:
        saved.save(1, state)
        saved.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        saved.save(2, state)
        saved.wait()
except checkpoints.SaveError as error:
    print(error)
with checkpoints.Checkpoints(sys.argv[1]) as saved:
    print(saved.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state))[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    message, step = done.stdout.splitlines()
    assert (
        "cannot save a checkpoint" in message
        and "File too large" in message
        and "are as they were" in message
    )
    assert step == "1"


def test_a_log_that_cannot_be_written_ends_a_run_with_one_error(tmp_path):
    """Files reach a limit on their size, those for TensorBoard first; a thread that wrote them would end, and the run wait for it."""
    program = """
import pathlib, resource, signal, sys
from i3d_jax.training.logs import Log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    with Log(pathlib.Path(sys.argv[1]), 0) as log:
        for step in range(1000):
            log(step, {name: 0.125 for name in "abcdefgh"})
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (
        f"[Errno 27] File too large: '{tmp_path / 'log.jsonl'}'\n",
        "",
    )


def test_tensorboard_is_given_every_scalar_and_told_where_a_run_went_on(tmp_path):
    with Log(tmp_path, 6) as log:
        log(7, {"loss": 0.5, "lr": math.nan})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    found, data = [], path.read_bytes()
    while data:  # A length and its checksum, the event and its checksum.
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    version, began, event = found
    assert version.file_version == "brain.Event:2"
    assert (began.step, began.session_log.status) == (7, event_pb2.SessionLog.START)
    assert event.step == 7 and event.wall_time == pytest.approx(time.time(), abs=60)
    assert (
        repr([(each.tag, each.simple_value) for each in event.summary.value])
        == "[('loss', 0.5), ('lr', nan)]"
    )
