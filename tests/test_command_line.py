import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from i3d_jax import command_line


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


# Runs a module of the package in a folder, and of no other that is installed.
RUN = """
import pathlib, runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [sys.argv[1], *(path for path in sys.path if not pathlib.Path(path, "i3d_jax").exists())]
runpy.run_module(sys.argv.pop(2), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "state,command",
    [
        ("installed later", "weights"),
        ("installed before", "weights"),
        ("uninstalled", "weights"),
        ("uninstalled", "main"),
    ],
)
def test_another_project_installed_in_this_ones_folder_is_one_line_that_says_what_to_do(state, command, tmp_path):
    package = pathlib.Path(command_line.__file__).parent
    copy = shutil.copytree(package, tmp_path / "i3d_jax", ignore=shutil.ignore_patterns("__pycache__"))
    if state == "uninstalled":
        (copy / "__init__.py").unlink()
    else:
        (copy / "i3d.py").write_text("class InceptionI3d: pass\n")
    if state == "installed later":
        (copy / "__init__.py").write_text("from .i3d import InceptionI3d\n")
    code = [sys.executable, "-c", RUN, str(tmp_path), f"i3d_jax.{command}"]
    done = subprocess.run([*code, "list"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "another project's" in done.stderr and "`pip uninstall i3d_jax i3d-jax-zoo`" in done.stderr


def test_text_is_printed_without_control_characters():
    assert command_line.printable("a\x1b[2J\tb\r\n\x7f\x85\u2028\udcff é 動") == (
        r"a\x1b[2J\tb\r\n\x7f\x85\u2028\udcff é 動"
    )
