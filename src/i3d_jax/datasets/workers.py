"""Processes that work on videos: they do not outlive the one that started them, and none dies without a word."""

import concurrent.futures
import concurrent.futures.process
import ctypes
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")  # What has threads, as JAX has, cannot be forked.
PATIENCE = 2.0  # Seconds that a process has to leave its work, when the work of all is to end.


class DeadWorkerError(ValueError):
    """A process died; the message names the videos that it may have died of."""


def run(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    number: int,
    *,
    suspects: Callable[[list[int]], Iterable[str]],
    done: Callable[[int, Any], None] = lambda index, result: None,
    tick: Callable[[], None] = lambda: None,
    shared: Any = None,
) -> None:
    """Works on jobs in a pool of processes. If anything is raised, the processes end within seconds.

    Args:
      function: of a job; asks `leaving` now and then, and raises something if it says so.
      jobs: what it is called with.
      number: of processes.
      suspects: given the numbers of the jobs in work, names the videos that are being read, should a process die.
      done: called with a job's number and result, in any order.
      tick: called twice a second; may raise, to end the work.
      shared: what `shared` gives in the processes: of `CONTEXT`, as others cannot be given to them.

    Raises:
      DeadWorkerError: a process died.
    """
    leave = CONTEXT.RawValue(
        ctypes.c_bool, False
    )  # Without a lock, which a process may hold when it dies.
    waiting, running = enumerate(jobs), {}
    try:
        with _Executor(number, CONTEXT, _begin, (shared, leave, os.getpid())) as executor:
            try:
                while True:
                    for index, job in itertools.islice(waiting, 2 * number - len(running)):
                        running[executor.submit(function, job)] = index
                    if not running:
                        break
                    finished, _ = concurrent.futures.wait(
                        running, 0.5, concurrent.futures.FIRST_COMPLETED
                    )
                    tick()
                    for future in finished:
                        done(running[future], future.result())
                        del running[future]
            except BaseException:
                leave.value = True
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    except concurrent.futures.process.BrokenProcessPool:
        tick()  # All may have been sent the signal that this one is to end by.
        names = ", ".join(suspects(list(running.values())[:number]))
        raise DeadWorkerError(
            f"a worker died: it was killed, had no memory left, or one of these videos brings the decoder down: {names}"
        ) from None


class _Executor(concurrent.futures.ProcessPoolExecutor):
    def submit(self, *given: Any, **named: Any) -> concurrent.futures.Future:
        # It starts processes, which have the mask of whoever starts them: Ctrl-C, which a terminal sends to all of them, is
        # for the first alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*given, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shared() -> Any:
    """In a process of a pool: what was given to all of them."""
    return _shared


def leaving() -> bool:
    """In a process of a pool: whether the work of all is to end."""
    return _leave is not None and _leave.value


_shared: Any = None
_leave: Any = None


def _begin(shared: Any, leave: Any, parent: int) -> None:
    global _shared, _leave
    _shared, _leave = shared, leave
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent and not leave.value:
            time.sleep(0.1)
        if os.getppid() == parent:
            time.sleep(PATIENCE)
        os._exit(1)  # Nobody waits for this process any more, and it would wait for ever.

    threading.Thread(target=watch, daemon=True).start()
