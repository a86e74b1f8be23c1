"""Computes the features of many videos, with bounded memory, while videos are decoded ahead."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from i3d_jax.features.dense import extract_dense
from i3d_jax.features.task import Extraction, Found
from i3d_jax.features.windowed import extract_windows
from i3d_jax.prefetch import usable_cores


def extract(
    paths: Iterable[str | os.PathLike],
    what: Extraction,
    advance: Callable[[int], None] = lambda frames: None,
) -> Iterator[Found]:
    """Computes the features of videos.

    For example::

        sources = features.load(["rgb_imagenet", "flow_imagenet"])
        how = features.reading_for(sources, fps=None)  # The videos' own rate.
        for path, found in features.extract(["video.mp4"], features.Extraction(sources, how)):
            if isinstance(found, features.Features):
                start, end, centre = found.seconds

    Args:
      paths: of the videos.
      what: to compute.
      advance: called with the number of frames of every batch; may raise.

    Yields:
      a video's path, and its features or a VideoError, in the order in which videos end.

    Raises:
      ValueError: windows do not suit the networks.
    """
    what.check()
    pool = ThreadPoolExecutor(max(4, usable_cores()))
    run = extract_dense if what.windows is None else extract_windows
    try:
        yield from run([os.fspath(path) for path in paths], what, pool, advance)
    finally:
        # A caller that stops early does not wait.
        pool.shutdown(wait=False, cancel_futures=True)
