"""Computes items ahead of their use, in threads."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetch(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """Yields `function(item)` for all items in order, computed ahead in threads.

    Args:
      function: called in the threads.
      items: its arguments, read by the calling thread.
      threads: number of threads, and of results that are ahead.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    running: collections.deque = collections.deque()
    wait = True
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        # A caller that stops early does not wait for results that it does not need.
        pool.shutdown(wait, cancel_futures=True)
