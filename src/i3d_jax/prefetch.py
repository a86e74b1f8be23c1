"""Threads that work ahead of whoever uses what they make."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def usable_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetch(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """Yields `function` of the items in their order, working ahead in threads by one item each."""
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
        pool.shutdown(
            wait, cancel_futures=True
        )  # Whoever stops early does not wait for what is not wanted any more.
