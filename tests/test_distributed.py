"""Runs of several processes of `python -m i3d_jax.main`, on the CPU and network of one machine."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from kill import read_log
from support import small_run

from i3d_jax import weights

# Gloo's messages in every process; its threads write them in pieces, and mix these.
GLOOS = re.compile(
    r"(\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    r"|\d|\s)+"
)


class Run:
    """`python -m i3d_jax.main` with a small config, in several processes."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.config = small_run.write(folder)
        self.started: list[subprocess.Popen] = []

    def start(
        self, workdir, *options, processes=2, devices=2, slurm=False, of_process_1=()
    ) -> list[subprocess.Popen]:
        started, port = [], small_run.free_port()
        for process in range(processes):
            environment = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_ENABLE_COMPILATION_CACHE": "1",
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            }
            how = [
                f"--coordinator=localhost:{port}",
                f"--num-processes={processes}",
                f"--process-id={process}",
            ]
            if slurm:  # The variables that `srun` sets.
                environment |= {
                    "SLURM_JOB_ID": "17",
                    "SLURM_STEP_NODELIST": "localhost",
                    "SLURM_LOCALID": str(process),
                }
                environment |= {"SLURM_NTASKS": str(processes), "SLURM_PROCID": str(process)}
                environment |= {"JAX_COORDINATOR_PORT": str(port)}
                how = []
            command = [sys.executable, "-m", "i3d_jax.main", f"--config={self.config}"]
            command += [
                f"--workdir={workdir}",
                "--heartbeat=10",
                *how,
                *options,
                *(of_process_1 if process else ()),
            ]
            with (self.folder / f"{process}.err").open("w") as error:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.PIPE, stderr=error, text=True
                    )
                )
        self.started += started
        return started

    def wait(self, started: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
        out = [each.communicate(timeout=240)[0] for each in started]
        return [each.returncode for each in started], out

    def errors(self, process: int) -> str:
        return (self.folder / f"{process}.err").read_text()


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    for each in run.started:  # Processes that a failed test left would fail other tests.
        with each:
            each.kill()


def until(workdir, step, run, started):
    """Waits until a step is logged."""
    while not any(line["step"] >= step for line in read_log(workdir)):
        assert all(each.poll() is None for each in started), (
            run.errors(0)[-2000:] + run.errors(1)[-2000:]
        )
        time.sleep(0.01)


def state_of(workdir):
    variables, _ = weights.read(workdir / "weights.safetensors")
    untimed = [
        {k: v for k, v in line.items() if k in ("step", "loss", "validation_loss")}
        for line in read_log(workdir)
    ]
    return variables, untimed


@pytest.mark.slow
def test_two_processes_train_lose_one_and_go_on_and_one_process_goes_on_from_theirs(run, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    status, out = run.wait(run.start(undisturbed))
    assert status == [0, 0], run.errors(0)[-2000:] + run.errors(1)[-2000:]
    said = [
        [line for line in each.splitlines() if line and not GLOOS.fullmatch(line)] for each in out
    ]
    assert "top-1" in said[0][0] and not said[1]  # The first process logs for all.

    started = run.start(disturbed)
    until(disturbed, 6, run, started)
    started[1].kill()
    status, _ = run.wait(started)
    assert status[1] == -signal.SIGKILL and status[0] != 0
    lost = max(line["step"] for line in read_log(disturbed))

    started = run.start(disturbed, slurm=True)
    until(disturbed, lost + 3, run, started)
    started[1].terminate()
    status, _ = run.wait(started)
    assert status == [128 + signal.SIGTERM] * 2, run.errors(0)[-2000:]
    (stopped,) = {
        line.split("has step ")[1].split(",")[0]
        for line in run.errors(0).splitlines()
        if "has step" in line
    }
    assert (disturbed / "checkpoints" / stopped).exists() and f"has step {stopped}" in run.errors(1)

    status, _ = run.wait(run.start(disturbed))
    assert status == [0, 0]
    for wanted, found in zip(state_of(undisturbed), state_of(disturbed), strict=True):
        jax.tree.map(np.testing.assert_array_equal, wanted, found)

    status, _ = run.wait(run.start(disturbed, "--config.steps=26", processes=1, devices=1))
    assert status == [0], run.errors(0)[-2000:]
    assert [line["step"] for line in read_log(disturbed) if "loss" in line] == list(range(1, 27))


@pytest.mark.slow
def test_a_mistake_ends_all_processes_at_once_with_one_line_each(run, tmp_path):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    (workdir / "config.json").write_text("{")
    began = time.time()
    status, _ = run.wait(run.start(workdir))
    assert status == [2, 2] and time.time() - began < 150
    assert "config.json: damaged" in run.errors(0) and "another process failed" in run.errors(1)
    assert "Traceback" not in run.errors(0) + run.errors(1)


@pytest.mark.slow
def test_processes_of_different_configs_end_with_one_line_each(run, tmp_path):
    began = time.time()
    status, _ = run.wait(run.start(tmp_path / "run", of_process_1=["--config.optimizer.lr=0.2"]))
    assert status == [2, 2] and time.time() - began < 150
    line = (
        "config.optimizer.lr: 0.0001 in process 0, but 0.2 in process 1; "
        "it must be the same in all processes of a run"
    )
    for process in range(2):
        said = [
            each for each in run.errors(process).splitlines() if each and not GLOOS.fullmatch(each)
        ]
        assert said == [f"python -m i3d_jax.main: {line}"]
    assert not (tmp_path / "run").exists()


DIFFERENT = """
import os, pathlib, sys
import jax
from i3d_jax import distributed
from i3d_jax.training import loop, run_folder

process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.path.insert(0, folder)
import config
from config import moving_shapes

distributed.initialize(f"localhost:{port}", 2, process, 10)
run = config.get_config().to_dict()
run_folder.PATIENCE = 1

def attempt(workdir="run", **changes):
    run_here = {**run, **(changes if process else {})}
    try:
        loop.train(os.path.join(folder, workdir), **run_here)
    except distributed.ProcessError as error:
        print(error, flush=True)
    except ValueError as error:
        print(type(error).__name__, error, flush=True)

for change in (
    {"batch_size": 16},
    {"batch_size": 7},
    {"steps": 8},
    {"checkpoint_every": 3},
    {"validate_every": None, "max_to_keep": 5},
    {"train_clips": run["train_clips"] | {"reverse": True}},
    {"model": None},
    {"pretrain": run},
    {"profile": (1, 2), "train_clips": run["train_clips"] | {"threads": 0}},
):
    attempt(**change)
jax.config.update("jax_enable_x64", bool(process))
attempt()
jax.config.update("jax_enable_x64", False)
attempt(f"workdir {process}")
usual, data_dir = moving_shapes.CLIPS_PER_CLASS, run["dataset"]["data_dir"]
moving_shapes.CLIPS_PER_CLASS = {kind: {"train": 2 + process, "validation": 1} for kind in usual}
attempt(dataset=run["dataset"] | {"data_dir": data_dir + " of another"})
moving_shapes.CLIPS_PER_CLASS = usual
original = loop.initial_variables
loop.initial_variables = lambda *start: jax.tree.map(lambda leaf: leaf + process, original(*start))
attempt(dataset=run["dataset"] | {"data_dir": data_dir + "/../data"})
"""


@pytest.mark.slow
def test_all_that_may_differ_between_processes_is_named_in_all_of_them(run, tmp_path):
    started, port = [], small_run.free_port()
    for process in range(2):
        command = [sys.executable, "-c", DIFFERENT, str(process), str(port), str(tmp_path)]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        with (tmp_path / f"{process}.err").open("w") as error:
            started.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=error, text=True
                )
            )
    run.started += started
    status, out = run.wait(started)
    assert status == [0, 0], run.errors(0)[-2000:] + run.errors(1)[-2000:]
    rule = "; it must be the same in all processes of a run"
    lost = "process 0: another process failed; see its error"
    shards = r"\d+ bytes \(shards \w+\)"
    for process in range(2):
        wanted = [
            f"config.batch_size: 8 in process 0, but 16 in process 1{rule}",
            f"config.batch_size: 8 in process 0, but 7 in process 1{rule}",
            f"config.steps: 24 in process 0, but 8 in process 1{rule}",
            f"config.checkpoint_every: 4 in process 0, but 3 in process 1{rule}",
            (
                rf"config.max_to_keep: 2 in process 0, but 5 in process 1{rule} "
                r"\(and 1 more: config.validate_every\)"
            ),
            f"config.train_clips.reverse: False in process 0, but True in process 1{rule}",
            (
                rf"config.model.dropout: 0.5 in process 0, but nothing in process 1{rule} "
                r"\(and \d more: config.model.*\)"
            ),
            (
                rf"config.pretrain: None in process 0, but nothing in process 1{rule} "
                r"\(and \d+ more: .*\)"
            ),
            ["ConfigError config.train_clips.threads: 0 is not a positive whole number", lost][
                process == 0
            ],
            f"JAX's setting jax_enable_x64: False in process 0, but True in process 1{rule}",
            [
                (
                    "ConfigError --workdir: process 1 does not see in .*workdir 1 "
                    "what the first process writes.*"
                ),
                lost,
            ][process == 0],
            (
                rf"the data set moving_shapes/videos, train: '48 clips of {shards}' in process 0, "
                rf"but '72 clips of {shards}' in process 1{rule}"
            ),
            (
                r"the weights to start from \(SHA-256\): '\w+' in process 0, "
                rf"but '\w+' in process 1{rule}"
            ),
        ]
        found = [line for line in out[process].splitlines() if line and not GLOOS.fullmatch(line)]
        for line, pattern in zip(found, wanted, strict=True):
            assert re.fullmatch(pattern, line), (line, pattern)


@pytest.mark.slow
def test_processes_with_different_numbers_of_devices_are_named(tmp_path):
    program = """
import sys
from i3d_jax import distributed
distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]), 10)
try:
    distributed.check_same({})
except distributed.ProcessError as error:
    print(error)
"""
    started, port = [], small_run.free_port()
    for process in range(2):
        command = [sys.executable, "-c", program, str(process), str(port)]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(process + 1)}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    wanted = (
        "the number of devices: 1 in process 0, but 2 in process 1; "
        "it must be the same in all processes of a run\n"
    )
    for each in started:
        out = each.communicate(timeout=120)[0]
        assert each.returncode == 0 and out.endswith(wanted)


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize(
    "options,message",
    [
        (
            ["--num-processes=2", "--process-id=2", "--coordinator=localhost:1"],
            "--process-id: 2, wanted 0 to 1",
        ),
        (["--num-processes=2"], "takes --coordinator, --num-processes and --process-id"),
        (["--num-processes=0"], "num-processes"),
    ],
)
def test_mistakes_in_joining_processes_are_one_line(options, message, tmp_path):
    command = [
        sys.executable,
        "-m",
        "i3d_jax.main",
        f"--config={small_run.write(tmp_path)}",
        f"--workdir={tmp_path}",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
