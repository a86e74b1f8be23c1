"""How commands begin and end: standard streams, signals, errors, exit status."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from i3d_jax import cli

# `cli` needs the standard library only. Without the rest of the package it starts at once.
ALONE = f"""
import importlib.util, os, signal, sys, threading, time, types
sys.modules["i3d_jax"] = types.SimpleNamespace(inflate_params=None)
spec = importlib.util.spec_from_file_location("cli", {cli.__file__!r})
cli = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cli)
"""


@pytest.fixture(autouse=True)
def interruptible():
    """Has processes that tests start handle SIGINT.

    A shell has its background jobs ignore it, and processes that they start inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(
    main, before="", closed=(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment
):
    """Starts a command whose `main` returns 3.

    Args:
      main: the code of its `main`.
      before: code that runs first.
      closed: numbers of standard streams that are closed.
      stdout: as `subprocess.Popen` takes it.
      stderr: as `subprocess.Popen` takes it.
      environment: variables to set.
    """
    lines = "".join(f"\n    {line}" for line in main.splitlines())
    code = f"{ALONE}{before}\ndef main():{lines}\n    return 3\ncli.run(main)"
    environment = os.environ | {"PYTHONUNBUFFERED": ""} | environment
    shell = ["sh", "-c", " ".join(['exec "$@"', *(f"{number}>&-" for number in closed)]), "sh"]
    command = [*shell, sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env=environment)


def run(main, *arguments, **options):
    """Runs a command as `start` does; returns its status, stdout and stderr."""
    process = start(main, *arguments, **options)
    out, errors = process.communicate()
    return process.returncode, out, errors


# The command notices it at its end; or, unbuffered, in `main`.
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_quietly(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    status, _, errors = run("print('line')", stdout=writer, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (status, errors) == (1, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_not_reported_as_a_file_error(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    main = (
        "try:\n    print('line', flush=True)\nexcept OSError as error:\n    cli.print_error(error)"
    )
    status, _, errors = run(main, stdout=writer, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (status, errors) == (1, "")


def test_status_and_output_are_those_of_main():
    assert run("print('line')") == (3, "line\n", "")
    assert run("print('line'); sys.exit(4)") == (4, "line\n", "")


def test_another_pipe_that_breaks_is_an_error_as_any_other():
    status, _, errors = run("raise BrokenPipeError('of a worker')")
    assert status == 1 and "BrokenPipeError: of a worker" in errors


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_without_standard_streams_a_command_does_its_work(closed, tmp_path):
    main = f"""
file = open({str(tmp_path / "file")!r}, "w")
print("line")
sys.stderr.write("message\\n")
os.write(2, b"of a library\\n")
file.write(f"{{file.fileno() > 2}} {{sys.stdin and sys.stdin.read()}}")
file.close()
"""
    status, out, errors = run(main, closed=closed)
    assert status == 3
    assert out == ("" if 1 in closed else "line\n")
    assert errors == ("" if 2 in closed else "message\nof a library\n")
    assert (tmp_path / "file").read_text().startswith("True ")


def test_a_usage_error_is_never_printed_to_stdout():
    main = "cli.parser('x', None).parse_args(['--nonsense'])"
    assert run(main, closed=(2,)) == (2, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_one_line_and_status_1(unbuffered):
    with open("/dev/full", "w") as full:
        found = run("print('line')\nprint('another')", stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert found == (1, None, "-c: stdout: No space left on device\n")


def test_a_lost_error_message_makes_the_status_1_and_the_work_continues():
    with open("/dev/full", "w") as full:
        assert run("print('line')\nreturn 0", stderr=full) == (0, "line\n", None)
        failing = "cli.print_error('x')\nprint('line')\nreturn"
        assert run(f"{failing} 0", stderr=full) == (1, "line\n", None)
        assert run(f"{failing} 2", stderr=full) == (2, "line\n", None)


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_are_not_text_are_printed(encoding):
    main = "print('\\udcff'); cli.print_error('\\udcff')"
    assert run(main, PYTHONIOENCODING=encoding) == (3, "\\udcff\n", "-c: \\udcff\n")


@pytest.mark.parametrize(
    "main,line",
    [
        ("open('/nowhere/x')", "/nowhere/x: No such file or directory"),
        (
            "'runs/\\udcff'.encode()",
            "runs/\\udcff: this name is not UTF-8, and cannot be used here",
        ),
        (
            (
                "raise RuntimeError(\"Unable to initialize backend 'x': "
                "it is not\\n known (set JAX_PLATFORMS='')\")"
            ),
            "Unable to initialize backend 'x': it is not known (set JAX_PLATFORMS='')",
        ),
    ],
)
def test_errors_of_the_environment_are_one_line_and_status_2(main, line):
    assert run(main) == (2, "", f"-c: {line}\n")


def test_a_bug_keeps_its_traceback():
    for main in "raise RuntimeError('bug')", "'\\xff'.encode('ascii')", "raise OSError('bug')":
        status, _, errors = run(main)
        assert status == 1 and errors.startswith("Traceback")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_at_once_with_one_line_and_nothing_half_written(number, tmp_path):
    main = f"""
threading.Thread(target=time.sleep, args=(60,)).start()
path = {str(tmp_path / "half")!r}
try:
    open(path, "w").close()
    print("working")
    sys.stdout.flush()
    time.sleep(60)
finally:
    os.remove(path)
"""
    process = start(main)
    assert process.stdout.readline() == "working\n"
    began = time.monotonic()
    process.send_signal(number)
    assert process.communicate() == ("", f"stopped by {signal.Signals(number).name}\n")
    assert process.returncode == 128 + number and time.monotonic() - began < 50
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_wait_for_the_cleanup():
    main = """
try:
    print("1", flush=True)
    time.sleep(60)
finally:
    print("2", flush=True)
    time.sleep(60)
"""
    process = start(main)
    for _ in range(2):
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "stopped by SIGINT\n") and process.returncode == 130


def test_a_signal_in_a_destructor_ends_the_command():
    main = """
class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
Deaf()
time.sleep(60)
"""
    assert run(main) == (130, "", "stopped by SIGINT\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["predict", "main"])
def test_a_signal_while_a_command_is_imported_is_one_line_too(command, number, tmp_path):
    # The signal comes while JAX is imported, which takes most of the time.
    (tmp_path / "jax.py").write_text(f"import signal; signal.raise_signal({int(number)})")
    source = pathlib.Path(cli.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-m", f"i3d_jax.{command}"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"},
    )
    assert (found.returncode, found.stdout) == (128 + number, "")
    assert found.stderr == f"stopped by {signal.Signals(number).name}\n"


def test_importing_the_package_leaves_the_signals_of_other_programs_alone(tmp_path):
    (tmp_path / "jax.py").write_text(
        "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL); raise SystemExit"
    )
    source = pathlib.Path(cli.__file__).parents[1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import i3d_jax")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"}
    for program in ["-c", "import i3d_jax"], ["-m", "other"]:
        command = [sys.executable, *program]
        found = subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment
        )
        assert found.stdout == "True\n"


def test_a_file_whose_name_begins_with_a_dash_gets_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x.mp4").write_bytes(b"")
    parser = cli.parser("x", None)
    parser.add_argument("videos", nargs="+")
    within = parser.add_subparsers().add_parser("within")
    within.add_argument("--videos")
    for arguments in ["-x.mp4"], ["a.mp4", "-x.mp4"], ["a.mp4", "within", "--videos", "-x.mp4"]:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(arguments)
        last = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and "; the file -x.mp4 is written ./-x.mp4 (" in last
    with pytest.raises(SystemExit):
        parser.parse_args(["--top-k", "5"])
    assert "is written" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error,text",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            "out/x: No space left on device",
        ),
        (ValueError("two\n lines"), "two lines"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "not enough memory: RESOURCE_EXHAUSTED: 9 GB"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_an_error_is_one_line(error, text):
    assert cli.one_line(error) == text


# Runs a module of the package in a folder, not of an installed package.
RUN = """
import pathlib, runpy, sys
def is_editable(finder):
    return "editable" in getattr(finder, "__module__", "")
sys.meta_path = [finder for finder in sys.meta_path if not is_editable(finder)]
others = (path for path in sys.path if not pathlib.Path(path, "i3d_jax").exists())
sys.path = [sys.argv[1], *others]
runpy.run_module(sys.argv.pop(2), run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize(
    "state,command",
    [
        ("installed later", "weights"),
        ("installed before", "weights"),
        ("uninstalled", "weights"),
        ("uninstalled", "main"),
    ],
)
def test_another_project_installed_over_this_one_is_one_line_that_says_what_to_do(
    state, command, tmp_path
):
    package = pathlib.Path(cli.__file__).parent
    copy = shutil.copytree(
        package, tmp_path / "i3d_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    if state == "uninstalled":
        (copy / "__init__.py").unlink()
    else:
        (copy / "i3d.py").write_text("class InceptionI3d: pass\n")
    if state == "installed later":
        (copy / "__init__.py").write_text("from .i3d import InceptionI3d\n")
    code = [sys.executable, "-c", RUN, str(tmp_path), f"i3d_jax.{command}"]
    done = subprocess.run([*code, "list"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "another project's" in done.stderr
    assert "`pip uninstall i3d_jax i3d-jax-zoo`" in done.stderr


def test_text_is_printed_without_control_characters():
    assert cli.escape_unprintable("a\x1b[2J\tb\r\n\x7f\x85\u2028\udcff é 動") == (
        r"a\x1b[2J\tb\r\n\x7f\x85\u2028\udcff é 動"
    )
