"""Which videos a command names, and where their features go."""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from i3d_jax.video import listing


class Job(NamedTuple):
    """A video, and the path of its features without the ending.

    Attributes:
      source: the video.
      target: where its features go.
    """

    source: pathlib.Path
    target: pathlib.Path


def list_jobs(names: Sequence[str], out: pathlib.Path, prefix: str = "") -> list[Job]:
    """Lists the videos that are named, sorted by their targets.

    Files of a folder keep their paths below it. Single files, and those of lists, keep their
    folders below the longest folder that they share.

    Args:
      names: videos, folders of them, or "@LIST" for a text file with a path per line, which is
        relative to the list's folder.
      out: folder for the features; videos in it are left out.
      prefix: that names of features get, unless they have it.

    Raises:
      ValueError: two videos have one target; a folder or a list is empty.
      OSError: a folder or a list cannot be read.
    """
    single, relative = [], []
    for name in names:
        if name.startswith("@"):
            single += read_list(pathlib.Path(name[1:]))
        elif os.path.isdir(name):
            folder = pathlib.Path(name)
            inside = listing.find_videos(folder, exclude=out)
            relative += [(folder / path, path) for path in inside]
        else:
            single.append(pathlib.Path(name))
    shared = _shared_folder(single)
    relative += [
        (path, pathlib.PurePath(os.path.relpath(os.path.abspath(path), shared))) for path in single
    ]
    jobs: dict[str, Job] = {}
    for source, path in relative:
        stem = path.stem if path.stem.startswith(prefix) else prefix + path.stem
        job = Job(source, out / path.parent / stem)
        other = jobs.setdefault(os.path.normpath(job.target), job)
        if os.path.realpath(other.source) != os.path.realpath(source):
            both = f"{other.source} and {source}"
            raise ValueError(f"{job.target}: the features of both {both} would go there")
    return sorted(jobs.values(), key=lambda job: job.target.parts)


def _shared_folder(paths: list[pathlib.Path]) -> str:
    """The longest folder that files share."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    return os.path.commonpath(folders) if folders else ""


def read_list(path: pathlib.Path) -> list[pathlib.Path]:
    """Reads a list of videos.

    Args:
      path: of the list, a text file with a path per line. Empty lines are left out.

    Returns:
      the paths; relative ones are taken from the list's folder.

    Raises:
      ValueError: the list is empty, or no text.
      OSError: it cannot be read.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text in UTF-8, wanted a path per line") from None
    found = [path.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: is an empty list, wanted a path per line")
    return found


class Shard(NamedTuple):
    """A part of the videos: every `total`-th one.

    Attributes:
      number: of the part, from 1 on.
      total: number of parts.
    """

    number: int
    total: int

    def of(self, jobs: list[Job]) -> list[Job]:
        """The jobs of this part."""
        return jobs[self.number - 1 :: self.total]


def shard(text: str) -> Shard:
    """A shard such as "2/8", as `type=` of an argument."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Shard(int(number), int(count))
    raise argparse.ArgumentTypeError(
        f"{text!r} is no shard, wanted I/N with I from 1 to N, such as 2/8"
    )
