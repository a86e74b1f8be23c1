"""Processes that work on videos: they do not outlive the one that started them, and none dies without a word."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")  # What has threads, as JAX has, cannot be forked.


class DeadWorkerError(ValueError):
    """A process died; the message names the videos that it may have died of."""


@contextlib.contextmanager
def pool(
    number: int, suspects: Callable[[], Iterable[str]], shared: Any = None
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of so many processes.

    Args:
      suspects: names the videos that are being read, should a process die.
      shared: what `shared` gives in the processes: of `CONTEXT`, as others cannot be given to them.

    Raises:
      DeadWorkerError: a process died.
    """
    try:
        with concurrent.futures.ProcessPoolExecutor(number, CONTEXT, _begin, (shared, os.getpid())) as executor:
            yield executor
    except concurrent.futures.process.BrokenProcessPool:
        raise DeadWorkerError(
            "a worker died: it was killed, had no memory left, or one of these videos brings the decoder down: "
            f"{', '.join(suspects())}"
        ) from None


def shared() -> Any:
    """In a process of a pool: what was given to all of them."""
    return _shared


_shared: Any = None


def _begin(shared: Any, parent: int) -> None:
    global _shared
    _shared = shared

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # Nobody waits for this process any more, and it would wait for ever.

    threading.Thread(target=watch, daemon=True).start()
