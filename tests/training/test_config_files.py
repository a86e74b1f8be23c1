"""Configs by name and by file, their keys on the command line, their description."""

import pathlib

import pytest
from ml_collections import ConfigDict

from i3d_jax.training import config_files
from i3d_jax.training.config import ConfigError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture
def small():
    """A config with the required keys only."""
    return ConfigDict(
        dict(
            steps=3,
            batch_size=2,
            model=dict(name="i3d"),
            dataset=dict(name="moving_shapes/videos"),
            train_clips=dict(rgb=(16, 1), crop=32),
            eval_clips=dict(rgb=(16, 1), crop=32, batch_size=2),
            optimizer=dict(lr=0.1),
        )
    )


def test_a_config_is_found_by_its_name_and_by_its_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in "moving_shapes:frames", f"{CONFIGS / 'moving_shapes.py'}:frames":
        config = config_files.load(name)
        assert config.model.name == "inception" and config.eval_clips.rgb == (32, 1)
    program = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({"mine": 1})
"""
    (tmp_path / "moving_shapes").write_text(program)
    with pytest.raises(ConfigError, match="moving_shapes: is no Python file"):
        config_files.load("moving_shapes")


@pytest.mark.parametrize(
    "text,message",
    [
        (None, "no such file, and no config of kinetics, moving_shapes, transfer"),
        ("def get_config(): return {}", "get_config\\(\\) returns a dict, wanted a ConfigDict"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("get_config = ", "SyntaxError"),
        ("x = 1", "AttributeError: .*get_config"),
    ],
)
def test_a_file_that_is_no_config_is_one_error(text, message, tmp_path):
    path = tmp_path / "mine.py"
    if text:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_files.load(str(path))


def test_every_key_that_a_config_leaves_out_can_be_set(small):
    known = config_files.keys(small.to_dict())
    values = {
        "a whole number": 7,
        "a number": 0.25,
        "True or False": True,
        "text": "word",
        "a section": {"steps": 3},
    }
    for path, key in known.items():
        if path == "pretrain":  # Its value is a whole config.
            continue
        kind = config_files.describe_type(key.annotation).split(" or None")[0]
        wanted = values.get(kind, (3, 1) if "..." not in kind or "((" not in kind else ((3, 0.5),))
        changed = config_files.override(ConfigDict(small.to_dict()), [f"--config.{path}={wanted}"])
        for name in path.split("."):
            changed = changed[name]
        assert changed == wanted, path


def test_what_is_not_set_stays_as_it_was(small):
    before = small.to_dict()
    changed = config_files.override(small, ["--config.seed=5", "--config.optimizer.lr=0.5"])
    assert changed == before | {"seed": 5, "optimizer": {"lr": 0.5}}


@pytest.mark.parametrize(
    "argument,message",
    [
        ("--config.stpes=3", "config.stpes: there is no such key; did you mean config.steps?"),
        (
            "--config.optimiser.lr=3",
            "config.optimiser.lr: there is no such key; did you mean config.optimizer.lr?",
        ),
        ("--config.steps.more=3", "config.steps.more: there is no such key"),
        ("--config.model.dims=2", "config.model.dims: there is no such key"),
        ("--config.train_clips.processes=2", "config.train_clips.processes: there is no such key"),
        ("--config.lr=3", "config.lr: there is no such key; did you mean config.optimizer.lr? "),
        ("--config.steps=many", "many"),
        ("--nonsense=3", "--nonsense: there is no such option"),
        ("--config.steps", "steps"),
    ],
)
def test_a_key_or_value_that_cannot_be_is_named(argument, message, small):
    with pytest.raises(ConfigError) as error:
        config_files.override(small, [argument])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name", ["moving_shapes", "kinetics:two_stream,plateau", "transfer:fixed,own/videos"]
)
def test_every_key_is_printed_with_its_value_its_type_and_what_it_means(name):
    config = config_files.load(name).to_dict()
    lines = config_files.describe(config).splitlines()
    assert len(lines) == len(config_files.keys(config))
    assert f"config.steps = {config['steps']}  # a whole number. Updates in all." in lines
    for line in lines:
        kind, _, doc = line.partition("  # ")[2].partition(". ")
        assert kind and len(doc.split()) > 1 and doc[:1].isupper() or doc[:1] in '("', line


def test_the_printed_value_is_the_configs_and_the_default_is_beside_it(small):
    small.log_every = 3
    lines = config_files.describe(small.to_dict()).splitlines()
    (line,) = [line for line in lines if line.startswith("config.log_every")]
    assert line.startswith("config.log_every = 3  # a whole number, default 10. ")
    assert any(line.startswith("# config.plateau.factor = 0.1  # a number") for line in lines)
