"""Files of features: their formats, their description, and whether they are whole.

A file's bytes depend on the features and the description only.
"""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from i3d_jax import files
from i3d_jax.features import grids


class Features(NamedTuple):
    """The features of one video.

    Attributes:
      streams: what each network gave, by its stream ("rgb", "flow", or "rgb+flow" for a network
        of two streams): f32 [rows, C], with several crops [rows, crops, C], and with the layer's
        space [rows, (crops,) H, W, C].
      spans: the frames of each row, int64 [rows, 2]: its first, and the one after its last.
      length: number of frames of the video at `fps`.
      fps: frames per second.
    """

    streams: list[tuple[str, np.ndarray]]
    spans: np.ndarray
    length: int
    fps: float

    @property
    def features(self) -> np.ndarray:
        """The features of all networks, in order, along the last axis."""
        return np.concatenate([features for _, features in self.streams], -1)

    @property
    def seconds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start, end and centre of each row in seconds, float64 [rows] each."""
        return grids.seconds(self.spans, self.fps)


class Format(NamedTuple):
    """How features are written.

    Attributes:
      shown: ending by which messages name the files.
      main: ending of the file that is written last, and that has the description.
      arrays: a function from features to the arrays of the other files, by ending.
    """

    shown: str
    main: str
    arrays: Callable[[Features], dict[str, np.ndarray]]


def _as_video_features(found: Features) -> dict[str, np.ndarray]:
    """Files by the names of video_features; float32 where it has float64."""
    _, end, _ = found.seconds
    return {f"_{stream}.npy": features for stream, features in found.streams} | {
        "_fps.npy": np.float64(found.fps),
        "_timestamps_ms.npy": 1000 * end,
    }


def _transposed(found: Features) -> dict[str, np.ndarray]:
    return {".npy": np.ascontiguousarray(np.moveaxis(found.features, 0, -1))}


FORMATS = {
    "npz": Format(".npz", ".npz", lambda _: {}),
    "npy": Format("_*.npy", "_about.json", _as_video_features),
    "joint": Format(".npy", "_about.json", lambda found: {".npy": found.features}),
    "joint-transposed": Format(".npy", "_about.json", _transposed),
}


def with_ending(stem: pathlib.Path, ending: str) -> pathlib.Path:
    """A path with an ending; the stem may have dots."""
    return stem.with_name(stem.name + ending)


def write(stem: pathlib.Path, form: str, found: Features, about: dict[str, Any]) -> None:
    """Writes the features of a video, atomically; the file with the description comes last.

    Args:
      stem: the files' path without their endings.
      form: one of FORMATS.
      found: the features.
      about: the description; values that JSON has.

    Raises:
      OSError: a file cannot be written; it is named.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    main = with_ending(stem, FORMATS[form].main)
    if form == "npz":
        start, end, centre = found.seconds
        with files.atomic_write(main) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                features=found.features,
                start=start,
                end=end,
                centre=centre,
                frames=found.spans,
                about=np.array(_to_json(about)),
            )
        return
    checksums = {}
    for ending, array in FORMATS[form].arrays(found).items():
        path = with_ending(stem, ending)
        with files.atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, array)
            checksums[path.name] = _checksum(temporary)
    with files.atomic_write(main) as temporary:
        temporary.write_text(_to_json(about | {"files": checksums}) + "\n")


def _to_json(about: dict[str, Any]) -> str:
    return json.dumps(about, indent=1)


def _checksum(path: pathlib.Path) -> int:
    """The CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def read_about(stem: pathlib.Path, form: str) -> dict[str, Any] | None:
    """The description of the features of a video; None if any file is missing or damaged.

    Args:
      stem: as in `write`.
      form: as in `write`.

    Raises:
      OSError: a file cannot be read.
    """
    main = with_ending(stem, FORMATS[form].main)
    try:
        about = _read_npz(main) if form == "npz" else json.loads(main.read_text())
        listed = about.pop("files", {})
        whole = all(_checksum(main.with_name(name)) == sum_ for name, sum_ in listed.items())
    except (FileNotFoundError, ValueError, KeyError, AttributeError, zipfile.BadZipFile):
        return None
    return about if whole and isinstance(about, dict) else None


def _read_npz(path: pathlib.Path) -> dict[str, Any]:
    """The description in a file whose checksums are right."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                raise ValueError
        with np.load(path) as arrays:
            return json.loads(str(arrays["about"]))
    except (EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        # Damage may look like a compressed or an encrypted file.
        raise ValueError from error


def exists(stem: pathlib.Path, form: str) -> bool:
    """Whether the file with the description is there, damaged or not."""
    return os.path.lexists(with_ending(stem, FORMATS[form].main))
