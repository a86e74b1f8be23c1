"""Being asked to stop, by Ctrl-C or by a cluster that wants its machine back, and leaving in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence


class StoppedError(Exception):
    """Work that was left since a signal asked for it.

    Attributes:
      status: the exit status that says so.
    """

    def __init__(self, signals: Sequence[int], message: str = ""):
        super().__init__(message)
        self.status = 128 + (signals[0] if signals else 0)


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of the first signal to stop, SIGINT or SIGTERM; a second one stops at once."""
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
