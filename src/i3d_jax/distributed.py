"""Runs on several machines: how their processes connect, share data, fail and stop together."""

import collections
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax.stopping import catch_stop_signals

Result = TypeVar("Result")
RAISED_EVERYWHERE = "in_all_processes"  # Attribute of errors that all processes raise together.


class ProcessError(ValueError):
    """The processes of a run cannot be connected, or another one of them failed."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
) -> None:
    """Connects the processes of a run; must come before JAX looks for devices.

    On TPU pods, under SLURM and under Open MPI, JAX finds the arguments by itself. Elsewhere, and
    with processes=1, there is nothing to connect: one process is a whole run.

    Args:
      coordinator: "host:port" of process 0; all processes must be able to reach it.
      processes: number of processes.
      process: number of this process, from 0.
      heartbeat: seconds without a sign of life after which a process counts as dead; the others
        then exit, too.

    Raises:
      ProcessError: an argument is missing or wrong. If some process does not come within 5
        minutes, JAX ends all.
    """
    if processes == 1:
        return
    given = coordinator, processes, process
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ProcessError(f"--process-id: {process}, wanted 0 to {processes - 1}")
    try:
        # If processes fail one after another, there is nothing to wait for at the end.
        jax.distributed.initialize(
            *given, heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=heartbeat
        )
    except (ValueError, RuntimeError) as error:
        if given == (None, None, None) and "coordinator_address should be defined" in str(error):
            return
        hint = (
            "a run on several machines takes --coordinator, --num-processes and --process-id "
            "where JAX cannot find them"
        )
        raise ProcessError(f"{' '.join(str(error).split())[:300]}; {hint}") from None


def data_parallel_shardings() -> tuple[NamedSharding, NamedSharding]:
    """Shardings over all devices: of variables (replicated), and of batches (along axis 0)."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.array(devices), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(share: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Makes a batch over all processes from the share of each.

    Args:
      share: this process's part of each array.
      sharding: of the batch (see `data_parallel_shardings`).
    """
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in share.items()}


def is_first_process() -> bool:
    """Whether this process is the one that writes logs and weights for all."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process. All processes must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def all_gather_text(text: str) -> list[str]:
    """Returns the texts of all processes, in order. All processes must call this."""
    if jax.process_count() == 1:
        return [text]
    # 32 and 8 bits, since processes with and without JAX_ENABLE_X64 differ in 64-bit programs.
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def check_same(values: dict[str, Any]) -> None:
    """Raises a ProcessError in all processes unless they have the same values.

    The error names a value that differs, and says which process has what.

    Args:
      values: by name; values that JSON has, or that differ in their `repr`.
    """
    if jax.process_count() == 1:
        return
    devices = collections.Counter(device.process_index for device in jax.devices())
    found = [
        {"the number of devices": str(devices[process])} for process in range(jax.process_count())
    ]
    # Processes with different numbers of devices cannot exchange anything.
    if len(set(devices.values())) == 1:
        texts = all_gather_text(json.dumps(values, sort_keys=True, default=repr))
        found = [{name: repr(value) for name, value in json.loads(text).items()} for text in texts]
    names = dict.fromkeys(name for each in found for name in each)
    differing = [name for name in names if len({each.get(name) for each in found}) > 1]
    if differing:
        error = ProcessError(_differences(differing, found))
        setattr(error, RAISED_EVERYWHERE, True)
        raise error


def _differences(names: list[str], found: list[dict[str, str]]) -> str:
    """A line about the first of some names: which processes have which value."""
    processes = collections.defaultdict(list)
    for process, each in enumerate(found):
        processes[each.get(names[0], "nothing")].append(process)
    parts = []
    for value, (first, *others) in processes.items():
        value = value if len(value) <= 200 else f"{value[:100]}...{value[-100:]}"
        parts.append(f"{value} in process {first}" + (f" and {len(others)} more" if others else ""))
    more = f" (and {len(names) - 1} more: {', '.join(names[1:4])})" if names[1:] else ""
    return (
        f"{names[0]}: {', but '.join(parts)}; it must be the same in all processes of a run{more}"
    )


def wait_for_all(ready: Callable[[], bool], seconds: float) -> bool:
    """Waits until `ready()` is true in every process.

    The processes ask each other all the time, so that none is late for a collective operation.

    Args:
      ready: the condition.
      seconds: most seconds to wait.

    Returns:
      whether all were ready in time.
    """
    until = time.monotonic() + seconds
    while any_process(not ready()):
        if any_process(time.monotonic() > until):
            return False
        time.sleep(0.5)
    return True


def failed_only_here(error: Exception) -> bool:
    """Whether there are other processes that may not have failed with this error."""
    if not jax.distributed.is_initialized() or hasattr(error, RAISED_EVERYWHERE):
        return False
    try:
        return jax.process_count() > 1
    except RuntimeError:  # There are no devices.
        return True


def exit_without_waiting(status: int) -> NoReturn:
    """Ends this process at once after an error of its own: an orderly exit waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_on_all_processes(work: Callable[[], Result]) -> Result:
    """Calls `work` in every process. If it fails in one, it fails in all, so that none waits.

    Raises:
      ProcessError: it failed in another process.
    """
    result: list[Result] = []
    error: Exception | None = None
    try:
        result.append(work())
    except Exception as raised:  # noqa: BLE001 - it is raised below.
        error = raised
    failed = any_process(error is not None)
    if failed and error is None:
        error = ProcessError(
            f"process {jax.process_index()}: another process failed; see its error"
        )
    if error is not None:
        setattr(error, RAISED_EVERYWHERE, True)
        raise error
    return result[0]


def compile_on_all_processes(
    function: jax.stages.Wrapped, *arguments: Any, **static: Any
) -> jax.stages.Compiled:
    """Compiles a program in all processes before any of them runs it.

    Between CPUs, Gloo gives up on a process that is 30 s late for a collective operation.

    Args:
      function: a jitted function.
      *arguments: its arguments.
      **static: its static arguments.
    """
    return run_on_all_processes(lambda: function.lower(*arguments, **static).compile())


@contextlib.contextmanager
def on_first_process(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters a context on the first process only; all fail together if it cannot be entered."""
    with contextlib.ExitStack() as stack:
        run_on_all_processes(lambda: stack.enter_context(context) if is_first_process() else None)
        yield


# Numbers the calls, so that processes can agree on one to come; counts over all runs.
_sync_calls = itertools.count()


@contextlib.contextmanager
def synchronized_stop() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal that asks the run to stop, or 0.

    All processes must call the function equally often. They learn of a SIGTERM to any of them at
    the same call. A run of one process also catches SIGINT.
    """
    if jax.process_count() == 1:
        with catch_stop_signals() as signals:
            yield lambda: signals[0] if signals else 0
        return
    yield (
        lambda: (
            signal.SIGTERM
            if multihost_utils.reached_preemption_sync_point(next(_sync_calls))
            else 0
        )
    )
