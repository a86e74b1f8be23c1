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

    Args:
      names: as in `listing.expand_names`, which also says where files go.
      out: folder for the features; videos in it are left out.
      prefix: that names of features get, unless they have it.

    Raises:
      ValueError: two videos have one target; a folder or a list is empty.
      OSError: a folder or a list cannot be read.
    """
    jobs: dict[str, Job] = {}
    for source, path in listing.expand_names(names, exclude=out):
        stem = path.stem if path.stem.startswith(prefix) else prefix + path.stem
        job = Job(pathlib.Path(source), out / path.parent / stem)
        other = jobs.setdefault(os.path.normpath(job.target), job)
        if os.path.realpath(other.source) != os.path.realpath(source):
            both = f"{other.source} and {source}"
            raise ValueError(f"{job.target}: the features of both {both} would go there")
    return sorted(jobs.values(), key=lambda job: job.target.parts)


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
