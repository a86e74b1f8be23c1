"""Files that are never seen half-written, and where downloads are kept."""

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator


def cache() -> pathlib.Path:
    """The folder for what was downloaded: `~/.cache/i3d_jax`, or the environment variable I3D_JAX_CACHE."""
    return pathlib.Path(os.environ.get("I3D_JAX_CACHE") or pathlib.Path.home() / ".cache" / "i3d_jax")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
