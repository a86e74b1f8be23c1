"""Ctrl-C and SIGTERM while processes prepare or check videos.

The command prints a line, exits with the signal's status, leaves no process and loses no shard.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import real_files
from support.processes import gone, wait_until

from i3d_jax import datasets
from i3d_jax.datasets.__main__ import main

# Workers run the lines before the last two as well. Every video but a's takes for ever.
SCRIPT = """
import os, pathlib, sys, time
from i3d_jax import cli, datasets
from i3d_jax.datasets import doctor, shards
from i3d_jax.datasets.__main__ import main

record, check = shards.make_record, doctor.check
shards.CLIPS_PER_SHARD, datasets.Kinetics.SHORT_SIDE, doctor.CLIPS_PER_TASK = 1, 16, 1

def wait_for_ever(clip):
    if not clip.id.startswith("a_"):
        pathlib.Path(f"{sys.argv[0]}.{clip.id}").touch()
        time.sleep(600)

shards.make_record = lambda clip, *given: (wait_for_ever(clip), record(clip, *given))[1]
doctor.check = lambda clip: (wait_for_ever(clip), check(clip))[1]
if __name__ == "__main__":
    cli.run(main)
"""


@pytest.fixture
def made(tmp_path):
    """The arguments that both commands take."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "abc":
        sort = real_files.steady(3, 25, 16, 16)
        sort.write(videos / f"{name}_000000_000001.mp4", np.random.default_rng(0))
    lists = real_files.write_list(tmp_path, *[f"yoga,{name},0,1,train" for name in "abc"])
    return ["kinetics/400", "--videos", str(videos), "--annotations", str(lists), "--workers", "2"]


def stop(command, number, to_all, tmp_path):
    """Starts a command, and sends it a signal when two workers are busy.

    Returns its status and stderr.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, script, *command],
        start_new_session=True,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )
    wait_until(lambda: len(list(tmp_path.glob("script.py.*"))) == 2)
    if to_all:  # A terminal sends it to all processes.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, errors = process.communicate(timeout=120)  # A worker's task alone takes 600 s.
    wait_until(lambda: gone(process.pid))  # Python's tracker of shared memory ends last.
    assert out == "" and "Traceback" not in errors, errors
    return process.returncode, errors.splitlines()


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize(
    "number,to_all", [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)]
)
def test_prepare_ends_in_a_line_and_keeps_what_is_done(number, to_all, made, tmp_path, monkeypatch):
    command = ["prepare", *made, "--data-dir", str(tmp_path / "out")]
    status, lines = stop(command, number, to_all, tmp_path)
    assert status == 128 + number
    assert lines[-1] == (
        "python -m i3d_jax.datasets: stopped; "
        "finished shards are kept, and the same command resumes"
    )
    parts = tmp_path / "out" / "kinetics" / "400" / "1.0.0.parts"
    assert len(list(parts.glob("*.json"))) == 1
    if to_all:
        return
    monkeypatch.setattr(datasets.Kinetics, "SHORT_SIDE", 16)
    monkeypatch.setattr(datasets.shards, "CLIPS_PER_SHARD", 1)
    written, write = [], datasets.shards.write
    monkeypatch.setattr(
        datasets.shards,
        "write",
        lambda job, *more, **named: (written.append(job), write(job, *more, **named)),
    )
    assert main(command[:-4] + command[-2:]) == 0 and len(written) == 2
    assert not parts.exists()


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize("number,to_all", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_doctor_ends_in_a_line(number, to_all, made, tmp_path):
    status, lines = stop(["doctor", *made], number, to_all, tmp_path)
    assert status == 128 + number
    assert lines[-1].startswith("python -m i3d_jax.datasets: stopped; not all files were checked")
    assert len([line for line in lines if line and "checking: " not in line]) == 1
