"""The log of a run: JSON lines and TensorBoard."""

import json
import math
import struct
import subprocess
import sys
import time

import pytest
from tensorboardX.proto import event_pb2

from i3d_jax.training.logs import Log


def test_damaged_lines_of_a_log_are_named_and_dropped_and_a_copy_keeps_them(tmp_path, capsys):
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
            log(3, {"loss": 9.0})  # Is logged already.
            log(4, {"loss": 0.125})
        found = [json.loads(each) for each in path.read_text().splitlines()]
        assert found == [*map(json.loads, good), {"step": 4, "loss": 0.125}]
        copy = tmp_path / "set_aside" / ("log.jsonl" + f".{number}" * bool(number))
        assert copy.read_bytes() == damaged
        said = f"{path}: line 2 left out, since damaged; as it was, the log is {copy}\n"
        assert capsys.readouterr().err == said


def test_a_log_that_cannot_be_written_is_one_error(tmp_path):
    """A limit on the size of files ends the writing, of TensorBoard's file first.

    If a thread wrote that file, it would end, and the run would wait for it.
    """
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
    message = f"[Errno 27] File too large: '{tmp_path / 'log.jsonl'}'\n"
    assert (done.stdout, done.stderr) == (message, "")


def test_tensorboard_gets_every_scalar_and_where_a_run_resumed(tmp_path):
    with Log(tmp_path, 6) as log:
        log(7, {"loss": 0.5, "lr": math.nan})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    found, data = [], path.read_bytes()
    while data:  # Each event follows its length; both have a checksum.
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    version, began, event = found
    assert version.file_version == "brain.Event:2"
    assert (began.step, began.session_log.status) == (7, event_pb2.SessionLog.START)
    assert event.step == 7 and event.wall_time == pytest.approx(time.time(), abs=60)
    scalars = [(each.tag, each.simple_value) for each in event.summary.value]
    assert repr(scalars) == "[('loss', 0.5), ('lr', nan)]"
