"""The scripts that start runs; what they start is a stand-in that notes how."""

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


def stand_in(folder: pathlib.Path, name: str, body: str) -> pathlib.Path:
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {folder}/calls\n{body}\n')
    path.chmod(0o755)
    return path


def start(
    script: str, folder: pathlib.Path, *arguments: str, **environment: str
) -> subprocess.Popen:
    environment = (
        os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PAUSE": "0"} | environment
    )
    return subprocess.Popen(["bash", str(LAUNCH / script), *arguments], env=environment)


def calls(folder: pathlib.Path) -> list[str]:
    return [line.rstrip() for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
    "ends,status", [("0", 0), ("2", 2), ("127", 127), ("143", 143), ("1 134 0", 0), ("1 1 1", 1)]
)
def test_a_run_is_started_again_unless_it_ended_or_is_wrong_or_was_stopped(ends, status, tmp_path):
    body = f'ends=({ends}); exit "${{ends[$(($(wc -l < {tmp_path}/calls) - 1))]}}"'
    python = stand_in(tmp_path, "python", body)
    run = start("run.sh", tmp_path, "--config=x", "--workdir=a b", PYTHON=str(python), RESTARTS="2")
    assert run.wait(30) == status
    assert calls(tmp_path) == ["python -m i3d_jax.main --config=x --workdir=a b"] * len(
        ends.split()
    )


def test_a_run_that_is_asked_to_stop_may_save_its_step_and_is_not_started_again(tmp_path):
    body = f"trap 'sleep 0.5; echo saved >> {tmp_path}/calls; exit 143' TERM; echo up >> {tmp_path}/calls; sleep 60 & wait"
    python = stand_in(tmp_path, "python", body)
    run = start("run.sh", tmp_path, "--config=x", PYTHON=str(python))
    while not (tmp_path / "calls").exists() or "up" not in calls(tmp_path):
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143
    assert calls(tmp_path) == ["python -m i3d_jax.main --config=x", "up", "saved"]


def test_ctrl_c_reaches_a_run_once(tmp_path):
    """From a terminal, it goes to all of a process group. What a script starts with `&`, as it may these tests, ignores it."""
    body = f"trap 'echo interrupted >> {tmp_path}/calls' INT; trap 'sleep 0.5; echo saved >> {tmp_path}/calls; exit 143' TERM"
    python = stand_in(tmp_path, "python", f"{body}; echo up >> {tmp_path}/calls; sleep 60 & wait")
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
    python = stand_in(tmp_path, "python", "exit 1")
    run = start("run.sh", tmp_path, PYTHON=str(python), PAUSE="60")
    while not (tmp_path / "calls").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143 and len(calls(tmp_path)) == 1


@pytest.mark.parametrize("status,again", [(0, False), (2, False), (143, True), (137, True)])
def test_a_slurm_job_is_queued_again_when_its_run_can_go_on(status, again, tmp_path):
    stand_in(tmp_path, "srun", f"exit {status}")
    stand_in(tmp_path, "scontrol", "")
    assert (
        start("slurm.sh", tmp_path, "--config=x", "--workdir=y", SLURM_JOB_ID="17").wait(30)
        == status
    )
    wanted = ["srun --kill-on-bad-exit=1 python -m i3d_jax.main --config=x --workdir=y"]
    assert calls(tmp_path) == wanted + ["scontrol requeue 17"] * again


def test_all_hosts_of_a_pod_start_the_same_run(tmp_path):
    stand_in(tmp_path, "gcloud", "")
    assert (
        start("tpu_pod.sh", tmp_path, "--config=x", "--workdir=a b", TPU="pod", ZONE="zone").wait(
            30
        )
        == 0
    )
    (call,) = calls(tmp_path)
    assert "tpu-vm ssh pod --zone=zone --worker=all" in call
    assert r"PYTHON=.venv/bin/python experiments/launch/run.sh --config=x --workdir=a\ b" in call


def test_the_command_in_kubernetes_is_one_that_main_takes():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"--num-processes={job['spec']['completions']}" in container["command"]
    arguments = [each.replace("$(JOB_COMPLETION_INDEX)", "0") for each in container["command"][3:]]
    arguments = [
        "--num-processes=1" if each.startswith("--num-processes") else each for each in arguments
    ]
    command = [sys.executable, "-m", "i3d_jax.main", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (
        "kinetics/400 is not prepared in /shared/data" in done.stderr
    )  # All that is wrong with it here.


def test_the_readme_names_every_script_and_flags_that_there_are():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name == "README.md" or f"experiments/launch/{path.name}" in text
    known = subprocess.run(
        [sys.executable, "-m", "i3d_jax.main", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    for flag in re.findall(r"`--([a-z-]+)[=`]", text):
        assert f"--{flag}" in known.stdout or flag == "config", flag
