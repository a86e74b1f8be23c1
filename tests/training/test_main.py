"""The command line of training: mistakes are one line, and status 2."""

import os
import pathlib
import subprocess
import sys

import pytest

from i3d_jax import datasets, weights

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.mark.slow  # Starts processes.
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
            (
                "config.optimizer.momentun: there is no such key; "
                "did you mean config.optimizer.momentum?"
            ),
        ),
        (["--config=configs/moving_shapes.py", "--workdir=x", "--config.steps=many"], "many"),
        (
            ["--config=configs/moving_shapes.py", "--workdir=x", "stray"],
            "unexpected argument 'stray'",
        ),
        (["--config=configs/moving_shapes.py", "--workdir=x", "--stpes=3"], "stpes"),
        (["--config=moving_shapes", "--wrokdir=x"], "--wrokdir: there is no such option"),
        (["--confg=moving_shapes", "--workdir=x"], "--confg: there is no such option"),
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


def test_an_unknown_platform_is_one_line(tmp_path):
    arguments = ["--config=configs/moving_shapes.py", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "i3d_jax.main", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("python -m i3d_jax.main: Unable to initialize backend 'nonsense'")


def test_out_of_memory_is_one_line_with_the_options_that_need_less(tmp_path):
    program = """
import sys
import jax
from i3d_jax import main
from i3d_jax.training import loop
message = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."
def full(workdir, **config):
    raise jax.errors.JaxRuntimeError(message + "\\n[tf-allocator-allocation-error='']")
loop.train = full
sys.exit(main.main())
"""
    arguments = ["--config=configs/moving_shapes.py", f"--workdir={tmp_path}"]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes. [" in done.stderr
    hint = "; --config.grad_accum_steps or --config.remat=True makes a step take less\n"
    assert done.stderr.endswith(hint)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in datasets.builder("moving_shapes/videos", "~/data").final.parents
    (tmp_path / "w.safetensors").touch()
    weights.check_exists("~/w.safetensors")
