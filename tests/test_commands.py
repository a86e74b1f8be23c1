"""All commands: what they are called, and how they help."""

import importlib
import re
import sys

import pytest

import i3d_jax
from i3d_jax import __main__ as dispatcher
from i3d_jax import cli

SUBCOMMANDS = {
    "weights": ("list", "fetch", "verify", "convert", "plan"),
    "datasets": ("prepare", "doctor", "show"),
}
CALLS = [
    (command, *subcommand)
    for command in dispatcher.COMMANDS
    for subcommand in ((), *((each,) for each in SUBCOMMANDS.get(command, ())))
]


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """What commands are called is forgotten after each test."""
    monkeypatch.setattr(cli, "_names", {})


def ended(main, *arguments):
    with pytest.raises(SystemExit) as end:
        main(*arguments)
    return end.value.code


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_command_has_help_with_an_example(call, capsys):
    command, *rest = call
    module, _ = dispatcher.COMMANDS[command]
    assert ended(importlib.import_module(module).main, [*rest, "--help"]) == 0
    out, errors = capsys.readouterr()
    called = f"python -m {module.removesuffix('.__main__')}"
    assert errors == "" and out.startswith(f"usage: {' '.join([called, *rest])}")
    assert re.search(rf"^ +{re.escape(called)} .*[a-z]", out, re.MULTILINE), "no example"


def test_the_dispatcher_lists_all_commands(monkeypatch, capsys):
    for arguments in [], ["--help"]:
        monkeypatch.setattr(sys, "argv", ["i3d-jax", *arguments])
        assert ended(dispatcher.main) == 0
        out = capsys.readouterr().out
        for command, (module, what) in dispatcher.COMMANDS.items():
            (line,) = [line for line in out.splitlines() if line.endswith(what)]
            assert line.split()[0] == command and module.removesuffix(".__main__") in line


def test_a_command_behind_the_script_is_called_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/i3d-jax", "predict"])
    assert ended(dispatcher.main) == 2
    assert capsys.readouterr().err == (
        "i3d-jax predict: the following arguments are required: VIDEO (--help for help)\n"
    )


def test_an_unknown_command_is_one_line_that_names_the_others(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["i3d-jax", "predct"])
    assert ended(dispatcher.main) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(
        "i3d-jax: there is no command 'predct'; there are predict, live, demo, weights, "
    )
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", dispatcher.COMMANDS)
def test_every_command_knows_its_version(command, capsys):
    module, _ = dispatcher.COMMANDS[command]
    assert ended(importlib.import_module(module).main, ["--version"]) == 0
    assert capsys.readouterr().out == f"i3d_jax {i3d_jax.__version__}\n"
