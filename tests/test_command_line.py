import os
import subprocess
import sys

import pytest


def run(main, stdout, before="", **environment):
    """Runs a command whose `main` does so and returns 3."""
    code = f"from i3d_jax import command_line\n{before}\ndef main():\n    {main}\n    return 3\ncommand_line.run(main)"
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])  # Found out at the end; in `main`.
def test_a_reader_that_has_gone_ends_a_command_quietly(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("print('line')", writer, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_status_and_output_are_those_of_main():
    done = run("print('line')", subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "line\n", "")


def test_another_pipe_that_breaks_is_an_error_as_any_other():
    done = run("raise BrokenPipeError('of a worker')", subprocess.PIPE)
    assert done.returncode == 1 and "BrokenPipeError: of a worker" in done.stderr


def test_without_stdout_a_command_does_its_work():
    done = run("print('line')", subprocess.PIPE, "import sys; sys.stdout = None")
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_are_not_text_are_printed(encoding):
    done = run("print('\\udcff')", subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (3, "\\udcff\n", "")
