"""The command `python -m i3d_jax.demo`: its mistakes, and the weights that it offers."""

import importlib.util
import pathlib
import runpy
import socket

import pytest

from i3d_jax import cli, weights
from i3d_jax.demo import __main__ as command

APP = pathlib.Path(__file__).parents[2] / "experiments" / "demo" / "app.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of weights."""
    monkeypatch.setenv("I3D_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mistake(capsys, *arguments):
    """The one line on stderr of a command that ends with status 2."""
    try:
        status = command.main([*map(str, arguments)])
    except SystemExit as end:
        status = end.code
    out, errors = capsys.readouterr()
    assert status == 2 and out == "" and errors.count("\n") == 1, errors
    return errors


def test_without_weights_a_line_says_what_to_fetch(capsys):
    line = mistake(capsys, "--port", 0)
    assert "no weights are in the cache: `python -m i3d_jax.weights fetch rgb_scratch`" in line


def test_a_port_that_is_in_use_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = mistake(capsys, "--port", port)
    assert line == f"python -m i3d_jax.demo: 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    "arguments,words",
    [
        ("--port 65536", "'65536' is no port, wanted a number from 0 to 65535"),
        ("--port x", "'x' is no port"),
        ("--max-seconds 0", "'0' is not a positive whole number"),
        ("--max-megabytes -1", "'-1' is not a positive whole number"),
        # An address for documentation, which no machine has.
        ("--host 192.0.2.1", "192.0.2.1:7860: Cannot assign requested address"),
        ("--port 0 --weights none.safetensors", "none.safetensors: no such file"),
        ("--port 0 --weights a/x.pt --weights b/x.pt", "b/x.pt: has the same name as a/x.pt"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, words, capsys):
    assert words in mistake(capsys, *arguments.split())


def test_gradio_that_is_missing_is_named(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name)
    )
    line = mistake(capsys)
    assert 'needs gradio, which is not installed: pip install "i3d-jax-zoo[demo]"' in line


def test_given_weights_come_first_and_those_in_the_cache_after_them(cache):
    cache.mkdir()
    for name in "rgb_imagenet", "flow_scratch":
        weights.cache_path(name).touch()
    assert command.weights_to_offer([]) == ["rgb_imagenet", "flow_scratch"]
    assert command.weights_to_offer(["x.pt", "flow_scratch", "x.pt"]) == [
        "x.pt",
        "flow_scratch",
        "rgb_imagenet",
    ]
    assert command.weights_to_offer(["rgb_scratch"])[0] == "rgb_scratch"


def test_any_free_port_is_found_at_any_address_of_this_machine():
    ports = {command.free_port("127.0.0.1", 0) for _ in range(3)}
    assert all(0 < port < 2**16 for port in ports)


def test_a_hosted_space_listens_to_all_and_where_its_environment_says(monkeypatch):
    called = []
    monkeypatch.setattr(command, "main", lambda arguments: called.append(arguments))
    monkeypatch.setattr(cli, "run", lambda main: main())
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8080")
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    runpy.run_path(str(APP), run_name="__main__")
    (arguments,) = called
    flags = command.make_parser().parse_args(arguments)
    assert (flags.host, flags.port, flags.weights) == ("0.0.0.0", 8080, ["rgb_imagenet"])
