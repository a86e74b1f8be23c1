"""PNG files that say what they are, so that a command replaces its own files and no others."""

import pathlib

import numpy as np
from PIL import Image, PngImagePlugin

from i3d_jax import files


def write(path: pathlib.Path, picture: np.ndarray, kind: str) -> None:
    """Writes a picture as a PNG file, atomically.

    Args:
      path: of the file.
      picture: uint8 [H, W, 3].
      kind: what the file says it is, as "Software".

    Raises:
      OSError: the file cannot be written.
    """
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", kind)
    with files.atomic_write(path) as written:
        Image.fromarray(picture).save(written, "PNG", pnginfo=about, optimize=True)


def is_of_kind(path: pathlib.Path, kind: str) -> bool:
    """Whether a file is a PNG file that `write` wrote as of this kind."""
    try:
        with Image.open(path, formats=["PNG"]) as found:
            return found.info.get("Software") == kind
    except (OSError, ValueError, SyntaxError):
        return False
