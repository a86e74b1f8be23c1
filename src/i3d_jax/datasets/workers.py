"""A pool of processes for work on videos.

The processes end when the one that started them ends. If one dies, an error names the videos that
it may have died of.
"""

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

CONTEXT = multiprocessing.get_context("spawn")  # A process with threads, as JAX has, must not fork.
GRACE_PERIOD = 2.0  # Seconds that a process gets to leave its work, before it is ended.


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
    """Runs jobs in a pool of processes. If anything is raised, the processes end within seconds.

    Args:
      function: called with a job. It asks `stop_requested` from time to time, and raises an error
        if so.
      jobs: the arguments of the calls.
      number: number of processes.
      suspects: called if a process dies, with the indices of the running jobs; returns the videos
        that are being read.
      done: called with a job's index and result, in any order.
      tick: called at least twice a second; may raise, to end the work.
      shared: returned by `shared` in the processes. Shared memory must come from `CONTEXT`.

    Raises:
      DeadWorkerError: a process died.
    """
    stop = CONTEXT.RawValue(ctypes.c_bool, False)  # Without a lock: a process could die with it.
    waiting, running = enumerate(jobs), {}
    try:
        with _Executor(number, CONTEXT, _start_worker, (shared, stop, os.getpid())) as executor:
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
                stop.value = True
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    except concurrent.futures.process.BrokenProcessPool:
        tick()  # A signal to stop may have gone to all processes; then `tick` raises.
        names = ", ".join(suspects(list(running.values())[:number]))
        raise DeadWorkerError(
            "a worker died: it was killed, had no memory left, "
            f"or one of these videos crashes the decoder: {names}"
        ) from None


class _Executor(concurrent.futures.ProcessPoolExecutor):
    def submit(self, *given: Any, **named: Any) -> concurrent.futures.Future:
        # Submitting starts processes, which inherit the signal mask. A terminal sends Ctrl-C to all
        # processes, but only the first one handles it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*given, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shared() -> Any:
    """In a process of a pool: the `shared` argument of `run`."""
    return _shared


def stop_requested() -> bool:
    """In a process of a pool: whether the pool is ending."""
    return _stop is not None and _stop.value


_shared: Any = None
_stop: Any = None


def _start_worker(shared: Any, stop: Any, parent: int) -> None:
    global _shared, _stop
    _shared, _stop = shared, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent and not stop.value:
            time.sleep(0.1)
        if os.getppid() == parent:
            time.sleep(GRACE_PERIOD)
        os._exit(1)  # No one waits for this process any more, and it would wait for ever.

    threading.Thread(target=watch, daemon=True).start()
