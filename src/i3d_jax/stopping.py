"""Stops work in order after Ctrl-C (SIGINT), or SIGTERM, which clusters send."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence


class StoppedError(Exception):
    """Work that was left because of a signal.

    Attributes:
      status: the process's exit status for this signal.
    """

    def __init__(self, signals: Sequence[int], message: str = ""):
        super().__init__(message)
        self.status = 128 + (signals[0] if signals else 0)


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Yields a list that gets the number of the first SIGINT or SIGTERM; a second one acts at once.

    In other threads than the main one no signals can be caught, and the list stays empty.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def stop(number: int, _) -> None:
        stopped.append(number)
        restore()

    before.update(
        {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    )
    try:
        yield stopped
    finally:
        restore()
