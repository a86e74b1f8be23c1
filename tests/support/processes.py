"""Waits for processes that tests start."""

import os
import time


def wait_until(condition, seconds=60):
    """Waits until a condition holds; fails after a time limit.

    Args:
      condition: function that returns whether it holds.
      seconds: the time limit.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(group):
    """Whether all processes of a group have ended.

    Args:
      group: ID of the process group.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
