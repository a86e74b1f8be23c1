"""The launch scripts. They start programs that log their arguments in place of the real ones."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).parents[2]
LAUNCH = REPOSITORY / "experiments" / "launch"


def write_program(folder: pathlib.Path, name: str, body: str) -> pathlib.Path:
    """Writes a program that logs its arguments to `folder`/calls.

    Args:
      folder: where to write it.
      name: of the program.
      body: shell commands that it runs afterwards.
    """
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {folder}/calls\n{body}\n')
    path.chmod(0o755)
    return path


def start(
    script: str, folder: pathlib.Path, *arguments: str, **environment: str
) -> subprocess.Popen:
    """Starts a launch script.

    Args:
      script: its file name.
      folder: of the programs that it finds first.
      arguments: of the script.
      environment: variables to set.
    """
    usual = {"PATH": f"{folder}:{os.environ['PATH']}", "PAUSE": "0"}
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.Popen(command, env=os.environ | usual | environment)


def calls(folder: pathlib.Path) -> list[str]:
    """The calls that the programs have logged."""
    return [line.rstrip() for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
    "ends,status", [("0", 0), ("2", 2), ("127", 127), ("143", 143), ("1 134 0", 0), ("1 1 1", 1)]
)
def test_a_run_is_restarted_unless_it_ended_or_is_wrong_or_was_stopped(ends, status, tmp_path):
    body = f'ends=({ends}); exit "${{ends[$(($(wc -l < {tmp_path}/calls) - 1))]}}"'
    python = write_program(tmp_path, "python", body)
    run = start("run.sh", tmp_path, "--config=x", "--workdir=a b", PYTHON=str(python), RESTARTS="2")
    assert run.wait(30) == status
    call = "python -m i3d_jax.main --config=x --workdir=a b"
    assert calls(tmp_path) == [call] * len(ends.split())


def test_a_stopped_run_may_save_its_step_and_is_not_restarted(tmp_path):
    body = f"""
trap 'sleep 0.5; echo saved >> {tmp_path}/calls; exit 143' TERM
echo up >> {tmp_path}/calls
sleep 60 & wait
"""
    python = write_program(tmp_path, "python", body)
    run = start("run.sh", tmp_path, "--config=x", PYTHON=str(python))
    while not (tmp_path / "calls").exists() or "up" not in calls(tmp_path):
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143
    assert calls(tmp_path) == ["python -m i3d_jax.main --config=x", "up", "saved"]


def test_ctrl_c_reaches_a_run_once(tmp_path):
    """A terminal sends it to a whole process group."""
    body = f"""
trap 'echo interrupted >> {tmp_path}/calls' INT
trap 'sleep 0.5; echo saved >> {tmp_path}/calls; exit 143' TERM
echo up >> {tmp_path}/calls
sleep 60 & wait
"""
    python = write_program(tmp_path, "python", body)
    # If these tests run in the background of a shell, their children would ignore SIGINT.
    environment = os.environ | {"PYTHON": str(python), "PAUSE": "0"}
    command = ["env", "--default-signal=INT", "bash", str(LAUNCH / "run.sh")]
    run = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (tmp_path / "calls").exists() or "up" not in calls(tmp_path):
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(30) == 143
    assert calls(tmp_path) == ["python -m i3d_jax.main", "up", "saved"]


def test_a_stop_between_two_starts_is_not_forgotten(tmp_path):
    python = write_program(tmp_path, "python", "exit 1")
    run = start("run.sh", tmp_path, PYTHON=str(python), PAUSE="60")
    while not (tmp_path / "calls").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143 and len(calls(tmp_path)) == 1


@pytest.mark.parametrize("status,again", [(0, False), (2, False), (143, True), (137, True)])
def test_a_slurm_job_is_requeued_if_its_run_can_be_resumed(status, again, tmp_path):
    write_program(tmp_path, "srun", f"exit {status}")
    write_program(tmp_path, "scontrol", "")
    job = start("slurm.sh", tmp_path, "--config=x", "--workdir=y", SLURM_JOB_ID="17")
    assert job.wait(30) == status
    wanted = ["srun --kill-on-bad-exit=1 python -m i3d_jax.main --config=x --workdir=y"]
    assert calls(tmp_path) == wanted + ["scontrol requeue 17"] * again


def test_all_hosts_of_a_pod_start_the_same_run(tmp_path):
    write_program(tmp_path, "gcloud", "")
    where = {"TPU": "pod", "ZONE": "zone"}
    assert start("tpu_pod.sh", tmp_path, "--config=x", "--workdir=a b", **where).wait(30) == 0
    (call,) = calls(tmp_path)
    assert "tpu-vm ssh pod --zone=zone --worker=all" in call
    assert r"PYTHON=.venv/bin/python experiments/launch/run.sh --config=x --workdir=a\ b" in call


def test_the_command_in_kubernetes_is_one_that_main_takes():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"--num-processes={job['spec']['completions']}" in container["command"]
    arguments = [each.replace("$(JOB_COMPLETION_INDEX)", "0") for each in container["command"][3:]]
    number = next(index for index, each in enumerate(arguments) if "--num-processes" in each)
    arguments[number] = "--num-processes=1"
    command = [sys.executable, "-m", "i3d_jax.main", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    # On this machine nothing else is wrong with it.
    assert "kinetics/400 is not prepared in /shared/data" in done.stderr


def test_the_readme_names_every_script_and_only_existing_flags():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name == "README.md" or f"experiments/launch/{path.name}" in text
    command = [sys.executable, "-m", "i3d_jax.main", "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=False)
    for flag in re.findall(r"`--([a-z-]+)[=`]", text):
        assert f"--{flag}" in known.stdout or flag == "config", flag
