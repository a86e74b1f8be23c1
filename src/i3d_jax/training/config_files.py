"""Config files: found by name or path, changed on the command line, and printed with their docs.

A config file has `get_config()`, which returns a `ml_collections.ConfigDict`. Behind the file's
name, after a colon, may stand an argument of it: `kinetics:i3d_rgb`.
"""

import difflib
import importlib.util
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from i3d_jax import cli
from i3d_jax.models import MODELS
from i3d_jax.training import loop
from i3d_jax.training.config import ConfigError, describe_type, model_options, sections

PACKAGE = pathlib.Path(__file__).parents[1]
# Where configs lie in an installed package, and in the repository.
FOLDERS = PACKAGE / "configs", PACKAGE.parents[1] / "configs"


class Key(NamedTuple):
    """A key that a config may have.

    Attributes:
      annotation: its type.
      default: its value where the config leaves it out; `inspect.Parameter.empty` if it must not.
      doc: what it means.
    """

    annotation: Any
    default: Any
    doc: str


def load(name: str) -> ConfigDict:
    """Loads a config.

    Args:
      name: of one that is installed ("moving_shapes"), or a file; then perhaps ":ARGUMENT".

    Raises:
      ConfigError: there is none, or it cannot be loaded.
    """
    name, _, argument = name.partition(":")
    path = _find(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*[argument] if argument else [])
    except Exception as error:  # noqa: BLE001 - whatever the file's own code raises
        raise ConfigError(f"--config: {path}: {cli.one_line(error)}") from None
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise ConfigError(f"--config: {path}: get_config() returns a {kind}, wanted a ConfigDict")
    return config


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.is_file():
        return path
    names = sorted({found.stem for folder in FOLDERS for found in folder.glob("[a-z]*.py")})
    if name in names:
        return next(found for folder in FOLDERS if (found := folder / f"{name}.py").is_file())
    raise ConfigError(f"--config: {name}: no such file, and no config of {', '.join(names)}")


def override(config: ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """A config with values from the command line.

    Args:
      config: is changed.
      arguments: such as "--config.optimizer.lr=0.1", of any key that a run has.

    Raises:
      ConfigError: there is no such key, or it cannot have such a value.
    """
    for option in check_options(arguments):
        _make_settable(config, option.partition(".")[2])
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["", *arguments]
        )
        rest = values(["", *arguments])
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(cli.one_line(error)) from None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options start with --")
    return holder.value.to_dict()


def check_options(arguments: Sequence[str]) -> list[str]:
    """The options among some arguments, without their values.

    Raises:
      ConfigError: one is not of a config's key.
    """
    options = [each.partition("=")[0] for each in arguments if each.startswith("--")]
    for option in options:
        if not option.startswith(("--config.", "--noconfig.")):
            raise ConfigError(f"{option}: there is no such option")
    return options


def _make_settable(config: ConfigDict, path: str) -> None:
    """Adds a key, with its default, that a config leaves out."""
    known = keys(config.to_dict())
    *parents, name = path.split(".")
    section: Any = config
    for parent in parents:
        if path in known and section.get(parent) is None:
            section[parent] = ConfigDict()
        section = section.get(parent) if isinstance(section, ConfigDict) else None
    if isinstance(section, ConfigDict) and name in section:
        return
    if path in known:
        section[name] = _settable(known[path])
        return
    same_name = [each for each in known if each.split(".")[-1] == name]
    near = same_name or difflib.get_close_matches(path, known, 1)
    hint = f"did you mean config.{near[0]}? " if near else ""
    raise ConfigError(f"config.{path}: there is no such key; {hint}--print-config lists all")


def _settable(key: Key) -> Any:
    """A key's default, or a placeholder of its type."""
    if key.default is not None and key.default is not inspect.Parameter.empty:
        return key.default
    wanted = [each for each in typing.get_args(key.annotation) if each is not types.NoneType]
    return config_dict.placeholder(typing.get_origin(wanted[0]) or wanted[0] if wanted else object)


def keys(config: dict[str, Any]) -> dict[str, Key]:
    """All keys that a config may have, by path ("optimizer.lr"), in the order of the docs.

    Args:
      config: says which network it is of, and whether it has a `pretrain`, whose keys are added.
    """
    model = (config.get("model") or {}).get("name")
    parts = sections(model)
    found: dict[str, Key] = {}
    for name, key in _arguments(loop.train, {"workdir"}).items():
        if name == "pretrain" and config.get("pretrain"):
            inner = keys(config["pretrain"])
            found |= {f"pretrain.{each}": key for each, key in inner.items()}
            continue
        if name not in parts:
            found[name] = key
            continue
        section = parts[name]
        if name == "model":
            arguments = {"name": Key(str, inspect.Parameter.empty, f"One of {', '.join(MODELS)}.")}
            if model in MODELS:
                arguments |= _attributes(section.function, model_options(model))
        else:
            arguments = _arguments(section.function, set(section.given))
        found |= {f"{name}.{each}": key for each, key in arguments.items()}
    return found


def describe(config: dict[str, Any]) -> str:
    """A line for every key that a config may have: its value, its type, and its docs."""
    lines = []
    for path, key in keys(config).items():
        *parents, name = path.split(".")
        section: Any = config
        for parent in parents:
            section = section.get(parent) if section else None
        value = key.default if section is None else section.get(name, key.default)
        shown = "" if value is inspect.Parameter.empty else f" = {value!r}"
        differs = key.default is not inspect.Parameter.empty and value != key.default
        default = f", default {key.default!r}" if differs else ""
        doc = key.doc[:1].upper() + key.doc[1:]
        line = f"config.{path}{shown}  # {describe_type(key.annotation)}{default}. {doc}".rstrip()
        # A section that is not there has no effect.
        lines.append(f"# {line}" if section is None else line)
    return "\n".join(lines)


def _arguments(function: Callable, but: set[str]) -> dict[str, Key]:
    hints, docs = typing.get_type_hints(function), _docs(function)
    return {
        name: Key(hints.get(name, Any), each.default, docs.get(name, ""))
        for name, each in inspect.signature(function).parameters.items()
        if name not in but and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }


def _attributes(network: Any, defaults: dict[str, Any]) -> dict[str, Key]:
    hints, docs = typing.get_type_hints(network), {}
    for each in reversed(network.__mro__):
        docs |= _docs(each)
    hints["dtype"] = str  # A config has its name.
    return {
        name: Key(hints[name], default, docs.get(name, "")) for name, default in defaults.items()
    }


def _docs(described: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute, in a line."""
    text = inspect.cleandoc(described.__doc__ or "")
    section = re.search(r"^(?:Args|Attributes):\n((?:  .*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^  (\w+): (.*(?:\n {3,}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(doc.split()) for name, doc in entries}
