"""Files that are never seen half-written, notes on what a folder is of, and where downloads are kept."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any


def cache() -> pathlib.Path:
    """The folder for what was downloaded: `~/.cache/i3d_jax`, or the environment variable I3D_JAX_CACHE."""
    return pathlib.Path(os.environ.get("I3D_JAX_CACHE") or pathlib.Path.home() / ".cache" / "i3d_jax")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    The block writes a file there or, where `path` does not exist, a folder.
    """
    own = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{own}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def note(path: pathlib.Path, settings: dict) -> None:
    """Notes in a file what its folder is of or, if it exists, makes sure that it says the same.

    Raises:
      ValueError: it says something else, or is damaged.
      OSError: it cannot be read or written.
    """
    if path.exists():
        earlier = read_json(path)
        other = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
        if other:
            raise ValueError(
                f"{path.parent} has results of other settings: {other[0]} is {earlier.get(other[0])!r} there and "
                f"{settings.get(other[0])!r} here; use another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def write_json(path: pathlib.Path, value: Any) -> None:
    with replacing(path) as written:
        written.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict:
    """Raises a ValueError if the file is not whole."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: damaged") from None
