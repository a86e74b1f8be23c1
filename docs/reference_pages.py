"""Writes the parts of the reference that come from the code: commands' help, and configs' keys."""

import concurrent.futures
import inspect
import os
import pathlib
import re
import subprocess
import sys
import typing
from collections.abc import Callable

from i3d_jax import models
from i3d_jax.training import loop
from i3d_jax.training.config import Section, describe_type, sections

# Modules that are run with `python -m i3d_jax.NAME`, and the subcommands of each.
COMMANDS = {
    "predict": (),
    "flow": (),
    "weights": ("list", "fetch", "verify", "convert", "plan"),
    "models": (),
    "datasets": ("prepare", "doctor", "show"),
    "main": (),
    "evaluate": (),
}
MODEL_NAME = f"| `name` | text | required | One of {', '.join(models.MODELS)}. |\n"
KEYS = "| key | type | default | meaning |\n|---|---|---|---|\n"


def write(folder: pathlib.Path) -> None:
    """Writes commands.md and config.md, for pages to include."""
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text(commands())
    (folder / "config.md").write_text(config_keys())


def commands() -> str:
    """The --help text of every command and subcommand, as Markdown."""
    calls = [
        (name, *each) for name, subcommands in COMMANDS.items() for each in [(), *zip(subcommands)]
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = dict(zip(calls, pool.map(help_text, calls), strict=True))
    return "".join(
        f"{'#' * (1 + len(call))} {' '.join(call)}\n\n```text\n{text}\n```\n\n"
        for call, text in texts.items()
    )


def help_text(call: tuple[str, ...]) -> str:
    """What `python -m i3d_jax.COMMAND [SUBCOMMAND] --help` prints."""
    module, *subcommand = call
    command = [sys.executable, "-m", f"i3d_jax.{module}", *subcommand, "--help"]
    environment = os.environ | {"COLUMNS": "92"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if not done.stdout.strip():
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    # absl names the file that defines a flag, which is somewhere else on every machine.
    return re.sub(r"^/\S+/(\w+\.py):$", r"\1:", done.stdout.strip(), flags=re.MULTILINE)


def config_keys() -> str:
    """The keys of a config, from `loop.train` and the functions of its sections, as Markdown."""
    found = sections()
    parts = ["## The run\n\n" + KEYS + rows(loop.train, {"workdir": "", **dict.fromkeys(found)})]
    for name, section in found.items():
        table = KEYS + (MODEL_NAME if name == "model" else "")
        parts.append(f"## {name}\n\n{table}" + rows(section.function, section.given))
        if name == "model":
            parts.append(options_of_single_networks(section))
    return "\n".join(parts)


def options_of_single_networks(common: Section) -> str:
    """The options of the section "model" that only some networks have."""
    shared = dict.fromkeys(inspect.signature(common.function).parameters)
    tables = ""
    for model, entry in models.MODELS.items():
        section = sections(model)["model"]
        if table := rows(section.function, shared | section.given | entry.attributes):
            tables += f"`{model}` also takes:\n\n{KEYS}{table}\n"
    return tables


def rows(function: Callable, left_out: dict) -> str:
    """One row per argument of a function, or per attribute of a class, that is not left out."""
    meanings = described(inspect.getdoc(function) or "")
    lines = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in left_out or name in ("parent", "name") and inspect.isclass(function):
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        shown = "required" if default is parameter.empty else f"`{plain(default)}`"
        any_type = parameter.annotation is typing.Any  # A type of numbers, which a config names.
        kind = "text" if any_type else describe_type(parameter.annotation)
        meaning = meanings.get(name, "").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | {shown} | {meaning} |\n")
    return "".join(lines)


def plain(value: object) -> str:
    """A default as a config would have it: a type of numbers by its name."""
    return repr(value.__name__) if isinstance(value, type) else repr(value)


def described(docstring: str) -> dict[str, str]:
    """The lines of a docstring's "Args" or "Attributes", by name."""
    section = re.search(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        entry = re.match(r"(?:  |    )(\w[\w, ]*): (.*)", line)
        if entry and not line.startswith("     "):
            name = entry[1]
            found.update(dict.fromkeys(re.split(r", ", name), entry[2]))
        elif name and line.strip():
            for each in re.split(r", ", name):
                found[each] += " " + line.strip()
    return found
