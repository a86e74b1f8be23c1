"""Sets of videos to measure: folders of videos or of frames, arrays, and records of data sets.

A set knows the names of its videos in sorted order, and reads frames of one of them.
"""

import contextlib
import math
import os
import pathlib
import re
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from i3d_jax import video
from i3d_jax.video import VideoError, listing

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
PIXELS = "uint8, or floats from 0 to 1"


class VideoSet(Protocol):
    """A set of videos.

    Attributes:
      names: of the videos, sorted; a clip's random place depends on its video's name.
      kind: "videos", "frames", "array" or "records".
    """

    names: list[str]
    kind: str

    def where(self, number: int) -> str:
        """The name of a video for messages."""
        ...

    def length(self, number: int) -> tuple[int, float | None]:
        """The frames of a video, and the frames per second; None if these are unknown.

        Raises:
          VideoError: the video cannot be read.
        """
        ...

    def frames(self, number: int, start: int) -> Iterator[np.ndarray]:
        """Yields a video's frames from one on, [H, W, 3], uint8 or float32 from 0 to 255.

        Raises:
          VideoError: the video cannot be read, or is no RGB or grey video.
        """
        ...


def open_set(name: str, fps: float | None = None, data_dir: str | None = None) -> VideoSet:
    """Opens a set of videos.

    Args:
      name: a folder of videos, or of folders of frames; a .npy or .npz file with uint8
        [N, T, H, W, 3]; or the name and split of a prepared data set, "ucf101/1:test".
      fps: frames per second to read video files at; None is each file's own rate.
      data_dir: folder of prepared data sets.

    Raises:
      ValueError: there is no such set, it is empty, or it has no videos.
      OSError: it cannot be read.
    """
    path = pathlib.Path(os.path.expanduser(name))
    if path.is_dir():
        return _open_folder(path, fps)
    if path.is_file():
        if path.suffix not in (".npy", ".npz"):
            raise ValueError(f"{name}: is a file, wanted a folder, .npy or .npz")
        return ArrayFile(path)
    data_set, _, split = name.partition(":")
    if split and "/" in data_set:
        return RecordVideos(data_set, split, data_dir)
    raise FileNotFoundError(
        2, "no such file or folder, nor a data set's DATASET/CONFIG:SPLIT", name
    )


def _open_folder(path: pathlib.Path, fps: float | None) -> VideoSet:
    endings: dict[str, list[str]] = {"videos": [], "frames": []}
    for name, problem in listing.list_files(path).items():
        ending = os.path.splitext(name)[1].lower()
        if not problem and ending in listing.VIDEO:
            endings["videos"].append(name)
        elif not problem and ending in IMAGES:
            endings["frames"].append(name)
    if endings["videos"] and endings["frames"]:
        found = f"{len(endings['videos'])} videos and {len(endings['frames'])} images"
        raise ValueError(f"{path}: has {found}, wanted one kind")
    if endings["videos"]:
        return VideoFiles(path, endings["videos"], fps)
    if endings["frames"]:
        return FrameFolders(path, endings["frames"])
    raise ValueError(f"{path}: has no videos and no images")


class VideoFiles:
    """The videos of a folder; see `VideoSet`."""

    kind = "videos"

    def __init__(self, folder: pathlib.Path, names: list[str], fps: float | None):
        self.names, self._folder, self._fps = sorted(names), folder, fps
        self._rates: dict[int, float] = {}

    def where(self, number: int) -> str:
        return os.path.join(self._folder, self.names[number])

    def _rate(self, number: int) -> float:
        if self._fps is not None:
            return self._fps
        if number not in self._rates:  # It reads the whole file.
            self._rates[number] = float(video.frame_rate(self.where(number)))
        return self._rates[number]

    def length(self, number: int) -> tuple[int, float | None]:
        rate = self._rate(number)
        return video.predicted_length(self.where(number), rate), rate

    def frames(self, number: int, start: int) -> Iterator[np.ndarray]:
        return video.rgb_frames(self.where(number), fps=self._rate(number), start=start, threads=1)


class FrameFolders:
    """Folders of images, each a video; see `VideoSet`. Images are ordered by numbers in names."""

    kind = "frames"

    def __init__(self, folder: pathlib.Path, names: list[str]):
        by_video: dict[str, list[str]] = {}
        for name in names:
            by_video.setdefault(os.path.dirname(name), []).append(name)
        self.names, self._folder = sorted(by_video), folder
        self._images = {video: sorted(images, key=_by_number) for video, images in by_video.items()}

    def where(self, number: int) -> str:
        return os.path.join(self._folder, self.names[number])

    def length(self, number: int) -> tuple[int, float | None]:
        return len(self._images[self.names[number]]), None

    def frames(self, number: int, start: int) -> Iterator[np.ndarray]:
        first: tuple[int, ...] = ()
        for name in self._images[self.names[number]][start:]:
            path = os.path.join(self._folder, name)
            image = read_image(path)
            first = first or image.shape
            if image.shape != first:
                sizes = f"{image.shape[1]}x{image.shape[0]}, the first {first[1]}x{first[0]}"
                raise VideoError(path, f"has {sizes} pixels")
            yield image


def _by_number(name: str) -> tuple[list[Any], str]:
    """Orders "frame2.png" before "frame10.png"."""
    parts = re.split(r"(\d+)", os.path.basename(name))
    return [int(part) if part.isdecimal() else part for part in parts], name


def read_image(path: str) -> np.ndarray:
    """Reads an image as uint8 [H, W, 3].

    Raises:
      VideoError: it cannot be read, is transparent, or has more than 8 bits.
    """
    from PIL import Image  # Imported here, since few sets have images.

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise VideoError(path, f"has pixels of more than 8 bits ({image.mode})")
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            if alpha is not None and alpha.getextrema() != (255, 255):
                raise VideoError(path, "has transparent pixels, wanted RGB")
            return np.asarray(image.convert("RGB"))
    except VideoError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"cannot be read as an image: {error}") from None


class Arrays:
    """The videos of an array [N, T, H, W, 3], or with 1 channel or none of grey; see `VideoSet`.

    Args:
      array: the array in memory.
      where: its name, for messages.
    """

    kind = "array"

    def __init__(self, array: np.ndarray, where: str = "videos"):
        self._array = array
        self._set_up(array.shape, array.dtype, where)

    def _set_up(self, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
        what = f"{where}: {dtype} {list(shape)}"
        if len(shape) == 4:
            shape = (*shape, 1)
        if len(shape) != 5 or shape[-1] not in (1, 3) or 0 in shape:
            hint = "; leave out the transparency: videos[..., :3]" if shape[-1:] == (4,) else ""
            raise ValueError(f"{what}, wanted [N, T, H, W, 3], or 1 channel of grey{hint}")
        if dtype != np.uint8 and dtype.kind != "f":
            raise ValueError(f"{what}, wanted {PIXELS}")
        self._shape, self._dtype, self._where = shape, dtype, where
        self.names = [f"{number:09d}" for number in range(shape[0])]

    def where(self, number: int) -> str:
        return f"{self._where}: video {number}"

    def length(self, number: int) -> tuple[int, float | None]:
        return self._shape[1], None

    def frames(self, number: int, start: int) -> Iterator[np.ndarray]:
        for frame in range(start, self._shape[1]):
            image = self._image(number, frame).reshape(self._shape[2:])
            if self._dtype != np.uint8:
                low, high = image.min(), image.max()
                if not (low >= 0 and high <= 1):
                    raise VideoError(self.where(number), _out_of_range(float(low), float(high)))
                image = image.astype(np.float32) * np.float32(255)
            yield np.repeat(image, 3, -1) if image.shape[-1] == 1 else image

    def _image(self, number: int, frame: int) -> np.ndarray:
        return self._array[number, frame]


def _out_of_range(low: float, high: float) -> str:
    # The least and the greatest of numbers with NaN are NaN.
    found = "has NaN" if math.isnan(low) else f"has values from {low:.4g} to {high:.4g}"
    return f"{found}, wanted {PIXELS}"


class ArrayFile(Arrays):
    """The videos of an array in a file, of which only the frames in use are in memory.

    A .npz file must have one array, or one called "videos".
    """

    def __init__(self, path: pathlib.Path):
        self._lock = threading.Lock()
        with contextlib.ExitStack() as stack:
            try:
                self._file, member = _open_array(path, stack)
                shape, by_columns, dtype = _read_header(self._file)
            except (ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
                raise ValueError(f"{path}: cannot be read as an array: {error}") from None
            self._start = self._file.tell()
            if by_columns:
                raise ValueError(f"{path}: is in Fortran order: save np.ascontiguousarray(videos)")
            self._set_up(shape, dtype, f"{path}{member}")
            weakref.finalize(self, stack.pop_all().close)  # Closes the file, when it is not used.

    def _image(self, number: int, frame: int) -> np.ndarray:
        size = math.prod(self._shape[2:]) * self._dtype.itemsize
        with self._lock:
            try:
                self._file.seek(self._start + (number * self._shape[1] + frame) * size)
                data = self._file.read(size)
            except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise VideoError(self.where(number), f"cannot be read: {error}") from None
        if len(data) < size:
            raise VideoError(self.where(number), "is cut off: the file ends within it")
        return np.frombuffer(data, self._dtype)


def _open_array(path: pathlib.Path, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """Opens the file of an array, which the stack will close, and names the array in it."""
    if path.suffix == ".npy":
        return stack.enter_context(path.open("rb")), ""
    archive = stack.enter_context(zipfile.ZipFile(path))
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    name = "videos" if "videos" in names else names[0] if len(names) == 1 else None
    if name is None:
        raise ValueError(f"it has the arrays {', '.join(names)}, wanted one, or videos")
    return stack.enter_context(archive.open(f"{name}.npy")), f": {name}"


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, whether it is in Fortran order, and the type of an array in a file."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of .npy is not known")
    return read[version](file)


class RecordVideos:
    """The videos of a prepared data set; see `VideoSet`."""

    kind = "records"

    def __init__(self, name: str, split: str, data_dir: str | None):
        # Imported here: where videos are only measured, TFDS need not be installed.
        from i3d_jax import datasets

        self._records = datasets.prepared(name, data_dir).records(split)
        self.names = [f"{number:09d}" for number in range(len(self._records))]
        self._where = f"{name}:{split}"

    def where(self, number: int) -> str:
        return f"{self._where}: record {number}"

    def length(self, number: int) -> tuple[int, float | None]:
        return int(self._records[number]["frames"]), float(video.FPS)

    def frames(self, number: int, start: int) -> Iterator[np.ndarray]:
        record = self._records[number]
        return video.rgb_frames(record["video"], start=start, threads=1)
