"""A run of several processes, as `python -m i3d_jax.main` makes it: on this machine's CPU, over its own network."""

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
import small_run
from kill import lines

from i3d_jax import weights

# What Gloo says in every process, in the pieces that its threads write and mix.
GLOOS = re.compile(r"(\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d|\s)+")


class Run:
    """`python -m i3d_jax.main` with a small config, in as many processes as it takes."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.config = small_run.write(folder)
        self.started: list[subprocess.Popen] = []

    def start(self, workdir, *options, processes=2, devices=2, slurm=False) -> list[subprocess.Popen]:
        started, port = [], small_run.free_port()
        for process in range(processes):
            environment = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_ENABLE_COMPILATION_CACHE": "1",
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            }
            how = [f"--coordinator=localhost:{port}", f"--num-processes={processes}", f"--process-id={process}"]
            if slurm:  # As `srun` sets them.
                environment |= {"SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": str(process)}
                environment |= {"SLURM_NTASKS": str(processes), "SLURM_PROCID": str(process)}
                environment |= {"JAX_COORDINATOR_PORT": str(port)}
                how = []
            command = [sys.executable, "-m", "i3d_jax.main", f"--config={self.config}"]
            command += [f"--workdir={workdir}", "--heartbeat=10", *how, *options]
            with (self.folder / f"{process}.err").open("w") as error:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=error, text=True)
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
    for each in run.started:  # What a failed test leaves would fail another.
        with each:
            each.kill()


def until(workdir, step, run, started):
    """Waits until a step is logged."""
    while not any(line["step"] >= step for line in lines(workdir)):
        assert all(each.poll() is None for each in started), run.errors(0)[-2000:] + run.errors(1)[-2000:]
        time.sleep(0.01)


def state_of(workdir):
    variables, _ = weights.read(workdir / "weights.safetensors")
    untimed = [{k: v for k, v in line.items() if k in ("step", "loss", "validation_loss")} for line in lines(workdir)]
    return variables, untimed


@pytest.mark.slow
def test_two_processes_train_lose_one_and_go_on_and_one_process_goes_on_from_theirs(run, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    status, out = run.wait(run.start(undisturbed))
    assert status == [0, 0], run.errors(0)[-2000:] + run.errors(1)[-2000:]
    said = [[line for line in each.splitlines() if line and not GLOOS.fullmatch(line)] for each in out]
    assert "top-1" in said[0][0] and not said[1]  # The first answers for all.

    started = run.start(disturbed)
    until(disturbed, 6, run, started)
    started[1].kill()
    status, _ = run.wait(started)
    assert status[1] == -signal.SIGKILL and status[0] != 0
    lost = max(line["step"] for line in lines(disturbed))

    started = run.start(disturbed, slurm=True)
    until(disturbed, lost + 3, run, started)
    started[1].terminate()
    status, _ = run.wait(started)
    assert status == [128 + signal.SIGTERM] * 2, run.errors(0)[-2000:]
    (stopped,) = {line.split("has step ")[1].split(",")[0] for line in run.errors(0).splitlines() if "has step" in line}
    assert (disturbed / "checkpoints" / stopped).exists() and f"has step {stopped}" in run.errors(1)

    status, _ = run.wait(run.start(disturbed))
    assert status == [0, 0]
    for wanted, found in zip(state_of(undisturbed), state_of(disturbed), strict=True):
        jax.tree.map(np.testing.assert_array_equal, wanted, found)

    status, _ = run.wait(run.start(disturbed, "--config.steps=26", processes=1, devices=1))
    assert status == [0], run.errors(0)[-2000:]
    assert [line["step"] for line in lines(disturbed) if "loss" in line] == list(range(1, 27))


@pytest.mark.slow
def test_a_mistake_ends_all_processes_at_once_with_one_line_each(run, tmp_path):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    (workdir / "config.json").write_text("{")
    began = time.time()
    status, _ = run.wait(run.start(workdir))
    assert status == [2, 2] and time.time() - began < 60
    assert "config.json: damaged" in run.errors(0) and "another process cannot go on" in run.errors(1)
    assert "Traceback" not in run.errors(0) + run.errors(1)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--num-processes=2", "--process-id=2", "--coordinator=localhost:1"], "--process-id: 2, wanted 0 to 1"),
        (["--num-processes=2"], "takes --coordinator, --num-processes and --process-id"),
        (["--num-processes=0"], "num-processes"),
    ],
)
def test_mistakes_in_joining_processes_are_one_line(options, message, tmp_path):
    command = [sys.executable, "-m", "i3d_jax.main", f"--config={small_run.write(tmp_path)}", f"--workdir={tmp_path}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
