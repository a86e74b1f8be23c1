"""The processes of one run on several machines: how they find each other, fail together, and stop together."""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from i3d_jax.stopping import stopping

Result = TypeVar("Result")
SHARED = "in_all_processes"  # An attribute of the errors of `together`.


class ProcessError(ValueError):
    """The processes of a run cannot be joined, or another one of them cannot go on."""


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, heartbeat: int = 100
) -> None:
    """Joins the processes of a run; comes before anything that makes JAX look for devices.

    JAX finds out for itself what is not given on TPU pods and under SLURM and Open MPI. Outside of these, and with processes=1,
    there is nothing to join: one process is a run of its own.

    Args:
      coordinator: "host:port" of process 0, which all can reach.
      processes: how many there are.
      process: which of them this is, from 0.
      heartbeat: seconds without a sign of life after which a process is taken for dead; the others then end, too.

    Raises:
      ProcessError: something is missing or wrong. If not all processes come within 5 minutes, JAX ends them.
    """
    if processes == 1:
        return
    given = coordinator, processes, process
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ProcessError(f"--process-id: {process}, wanted 0 to {processes - 1}")
    try:
        # With processes that fail one after another there is nothing to wait for at the end.
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        if given == (None, None, None) and "coordinator_address should be defined" in str(error):
            return
        hint = (
            "a run on several machines takes --coordinator, --num-processes and --process-id where JAX cannot find them"
        )
        raise ProcessError(f"{' '.join(str(error).split())[:300]}; {hint}") from None


def is_first() -> bool:
    """Whether this is the process that answers for all: it writes logs and weights."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any of the processes, each of which must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(numbers: list[int], most: int = 1000) -> list[int]:
    """The first process's numbers, at most so many of them, in every process."""
    if jax.process_count() == 1:
        return numbers
    padded = np.full(most, -1)
    padded[: len(numbers)] = numbers[:most]
    return [int(number) for number in multihost_utils.broadcast_one_to_all(padded) if number >= 0]


def is_alone_with(error: Exception) -> bool:
    """Whether there are other processes, which need not have failed too."""
    return jax.distributed.is_initialized() and jax.process_count() > 1 and not hasattr(error, SHARED)


def leave(status: int) -> NoReturn:
    """Ends this process for an error that the others do not know of: leaving in order, it would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def together(work: Callable[[], Result]) -> Result:
    """Does `work` in every process; if it fails in one it fails in all, so that none waits for another in vain.

    Raises:
      ProcessError: it failed in another process.
    """
    result: list[Result] = []
    error: Exception | None = None
    try:
        result.append(work())
    except Exception as raised:  # noqa: BLE001 - it is raised again.
        error = raised
    failed = anywhere(error is not None)
    if failed and error is None:
        error = ProcessError(f"process {jax.process_index()}: another process cannot go on, and says why")
    if error is not None:
        setattr(error, SHARED, True)
        raise error
    return result[0]


def compiled(function: jax.stages.Wrapped, *arguments: Any, **static: Any) -> jax.stages.Compiled:
    """A program that all processes have before any begins: between CPUs, Gloo gives one up that is 30 s late for a collective."""
    return together(lambda: function.lower(*arguments, **static).compile())


@contextlib.contextmanager
def on_first(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """A context that the first process enters for all; they fail together if it cannot."""
    with contextlib.ExitStack() as stack:
        together(lambda: stack.enter_context(context) if is_first() else None)
        yield


_calls = itertools.count()  # Processes agree on a call that is to come: one count for all of a process's runs.


@contextlib.contextmanager
def stopping_together() -> Iterator[Callable[[], int]]:
    """A function that says by which signal the run was asked to stop, 0: it was not.

    All processes must call it, equally often: they learn at the same call of a SIGTERM that came to any of them. SIGINT stops
    a run of one process in the same way.
    """
    if jax.process_count() == 1:
        with stopping() as signals:
            yield lambda: signals[0] if signals else 0
        return
    yield lambda: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_calls)) else 0
