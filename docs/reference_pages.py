"""Writes the parts of the reference that come from the code: commands' help, and configs' keys."""

import concurrent.futures
import inspect
import os
import pathlib
import subprocess
import sys

from i3d_jax import models
from i3d_jax.__main__ import COMMANDS
from i3d_jax.training.config import describe_type
from i3d_jax.training.config_files import Key, keys

# Of the commands that have any.
SUBCOMMANDS = {
    "weights": ("list", "fetch", "verify", "convert", "plan"),
    "datasets": ("prepare", "doctor", "show"),
}
HEADER = "| key | type | default | meaning |\n|---|---|---|---|\n"


def write(folder: pathlib.Path) -> None:
    """Writes commands.md and config.md, for pages to include."""
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text(commands())
    (folder / "config.md").write_text(config_keys())


def commands() -> str:
    """The --help text of every command and subcommand, as Markdown."""
    calls = [
        (name, *subcommand)
        for name in COMMANDS
        for subcommand in [(), *((each,) for each in SUBCOMMANDS.get(name, ()))]
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = dict(zip(calls, pool.map(help_text, calls), strict=True))
    return "".join(
        f"{'#' * (1 + len(call))} {' '.join(call)}\n\n```text\n{text}\n```\n\n"
        for call, text in texts.items()
    )


def help_text(call: tuple[str, ...]) -> str:
    """What a command, and perhaps its subcommand, prints for --help."""
    name, *subcommand = call
    module = COMMANDS[name][0].removesuffix(".__main__")
    command = [sys.executable, "-m", module, *subcommand, "--help"]
    environment = os.environ | {"COLUMNS": "92"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def config_keys() -> str:
    """The keys of a config by section, as Markdown."""
    sections: dict[str, dict[str, Key]] = {"The run": {}}
    for path, key in keys({"model": {"name": "i3d"}}).items():
        section, _, name = path.rpartition(".")
        sections.setdefault(section or "The run", {})[name] = key
    by_network = {name: network_keys(name) for name in models.MODELS}
    everywhere = set.intersection(*map(set, by_network.values()))
    sections["model"] = {
        name: by_network["i3d"][name] for name in by_network["i3d"] if name in everywhere
    }
    text = ""
    for section, found in sections.items():
        text += f"## {section}\n\n{table(found)}\n"
        if section == "model":
            for network, all_keys in by_network.items():
                own = {name: key for name, key in all_keys.items() if name not in everywhere}
                text += f"`{network}` also takes\n\n{table(own)}\n" if own else ""
    return text


def network_keys(network: str) -> dict[str, Key]:
    """The keys of the section "model" for one network."""
    found = keys({"model": {"name": network}})
    start = "model."
    return {path[len(start) :]: key for path, key in found.items() if path.startswith(start)}


def table(found: dict[str, Key]) -> str:
    """One row per key."""
    rows = ""
    for name, key in found.items():
        default = "required" if key.default is inspect.Parameter.empty else f"`{key.default!r}`"
        doc = (key.doc[:1].upper() + key.doc[1:]).replace("|", "\\|")
        rows += f"| `{name}` | {describe_type(key.annotation)} | {default} | {doc} |\n"
    return HEADER + rows
