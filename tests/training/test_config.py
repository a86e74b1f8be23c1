"""Mistakes in configs are named before a run makes anything."""

import importlib.util
import math
import pathlib
import re

import jax.numpy as jnp
import pytest

from i3d_jax import datasets, models
from i3d_jax.training import loop
from i3d_jax.training.config import ConfigError, validate

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_splits_that_the_data_set_does_not_have_are_named_before_training(config):
    for name in "train_split", "test_split":
        message = f"config.{name}: .* no split 'tset'; there are train, validation"
        with pytest.raises(ConfigError, match=message):
            validate(config | {name: "tset"}, loop.train)
    validate(config | {"train_split": "train[:50%]"}, loop.train)
    for split in "validation[nonsense]", "validation[:10 %%", "validation[:0]":
        with pytest.raises(ConfigError, match=re.escape(f"config.validation_split: '{split}'")):
            validate(config | {"validation_split": split, "validate_every": 1}, loop.train)


def test_the_validation_split_is_checked_only_if_it_is_used(config):
    validate(config | {"validation_split": "validation[:1%]"}, loop.train)
    with pytest.raises(ConfigError, match="config.validation_split: 'validation.*' has no clips"):
        validate(config | {"validation_split": "validation[:1%]", "validate_every": 1}, loop.train)


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
            (
                "config.train_clips: 2-D Inception: got the streams ['flow', 'rgb'], "
                "wanted [B, H, W, C] or [B, T, H, W, C]"
            ),
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
            (
                "config.batch_size: 3 clips per micro-batch "
                "cannot be divided by the number of devices, 2"
            ),
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


def test_eval_clips_of_c3d_may_have_frames_beyond_the_last_window(config):
    clips = dict(crop=32, rgb=(16, 1))
    c3d = config | dict(model=dict(name="c3d", width=0.1), train_clips=clips)
    c3d |= dict(eval_clips=dict(crop=32, rgb=(30, 1), batch_size=2))
    validate(c3d, loop.train)
    message = "config.train_clips: 3D-ConvNet: got 30 frames, wanted a multiple of 16"
    with pytest.raises(ConfigError, match=message):
        validate(c3d | dict(train_clips=clips | dict(rgb=(30, 1))), loop.train)


def configs_in_file(name, *others):
    """The configs of a file, by run.

    Args:
      name: of the file.
      others: arguments of its `get_config` beside its RUNS.
    """
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs = (*getattr(module, "RUNS", ()), *others)
    return {run: module.get_config(run).to_dict() for run in runs}


@pytest.mark.parametrize("run,config", configs_in_file("moving_shapes").items())
def test_every_config_of_moving_shapes_is_valid(run, config):
    validate(config, loop.train)


@pytest.mark.parametrize("run,config", configs_in_file("kinetics", "two_stream,plateau").items())
def test_every_config_of_kinetics_is_valid_once_it_is_prepared(run, config, monkeypatch, tmp_path):
    config["dataset"]["data_dir"] = str(tmp_path)
    prepare = "python -m i3d_jax.datasets prepare kinetics/400 "
    message = f"config: kinetics/400 is not prepared in {tmp_path}: {prepare}"
    with pytest.raises(ConfigError, match=message):
        validate(config, loop.train)

    class Kinetics:
        SHORT_SIDE, streams, final = 256, ("rgb", "flow"), tmp_path / "not here"

    monkeypatch.setattr(datasets, "available", lambda name, data_dir=None: Kinetics)
    validate(config, loop.train)
    entry = models.MODELS[config["model"]["name"]]
    for section, wanted in (("train_clips", entry.train), ("eval_clips", entry.test)):
        clips = config[section]
        found = {stream: clips[stream] for stream in ("rgb", "flow") if stream in clips}
        assert found == (wanted if run != "i3d_flow" else {"flow": wanted["rgb"]})
        assert config[section]["crop"] == entry.crop


TRANSFERS = "fixed,ucf101/1", "full,hmdb51/2,flow", "original,ucf101/3"


@pytest.mark.parametrize("run,config", configs_in_file("transfer", *TRANSFERS).items())
def test_every_config_of_transfer_is_valid_once_it_is_prepared(run, config, monkeypatch, tmp_path):
    class Prepared:
        SHORT_SIDE, streams, final = 256, ("rgb", "flow"), tmp_path / "not here"

    monkeypatch.setattr(datasets, "available", lambda name, data_dir=None: Prepared)
    validate(config | {"init_from": "rgb_imagenet"}, loop.train)
    assert config["dataset"]["name"] in run and config["freeze_backbone"] == run.startswith("fixed")
    assert ("flow" in config["train_clips"]) == run.endswith("flow")
