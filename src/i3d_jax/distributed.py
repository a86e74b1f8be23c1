"""The processes of one run on several machines: how they find each other, fail together, and stop together."""

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
SHARED = "in_all_processes"  # An attribute of the errors of `run_on_all_processes`.


class ProcessError(ValueError):
    """The processes of a run cannot be joined, or another one of them cannot go on."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
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
        jax.distributed.initialize(
            *given, heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=heartbeat
        )
    except (ValueError, RuntimeError) as error:
        if given == (None, None, None) and "coordinator_address should be defined" in str(error):
            return
        hint = "a run on several machines takes --coordinator, --num-processes and --process-id where JAX cannot find them"
        raise ProcessError(f"{' '.join(str(error).split())[:300]}; {hint}") from None


def data_parallel_shardings() -> tuple[NamedSharding, NamedSharding]:
    """How variables and batches lie on all devices: whole on each, and cut along the first axis, process after process."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.array(devices), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(share: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """A batch over the devices of all processes, each of which has its `share` of it."""
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in share.items()}


def is_first_process() -> bool:
    """Whether this is the process that answers for all: it writes logs and weights."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any of the processes, each of which must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def all_gather_text(text: str) -> list[str]:
    """The texts of all processes, in their order; each process must call it."""
    if jax.process_count() == 1:
        return [text]
    # 32 and 8 bits, since processes with and without JAX_ENABLE_X64 would make other programs of 64.
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def check_same(values: dict[str, Any]) -> None:
    """Makes sure that all processes have the same values.

    Args:
      values: by name, values that JSON has, or whose `repr` tells them apart.

    Raises:
      ProcessError: in all processes, if a value differs; it names the value, and says which process has what.
    """
    if jax.process_count() == 1:
        return
    devices = collections.Counter(device.process_index for device in jax.devices())
    found = [
        {"the number of devices": str(devices[process])} for process in range(jax.process_count())
    ]
    if len(set(devices.values())) == 1:  # With other numbers processes cannot exchange anything.
        texts = all_gather_text(json.dumps(values, sort_keys=True, default=repr))
        found = [{name: repr(value) for name, value in json.loads(text).items()} for text in texts]
    names = dict.fromkeys(name for each in found for name in each)
    differing = [name for name in names if len({each.get(name) for each in found}) > 1]
    if differing:
        error = ProcessError(_differences(differing, found))
        setattr(error, SHARED, True)
        raise error


def _differences(names: list[str], found: list[dict[str, str]]) -> str:
    """One line that says which processes have what under the first of some names."""
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
    """Waits until `ready()` in every process, so many seconds at most; returns whether it came to that.

    The processes ask each other all the time, and none is late for a collective.
    """
    until = time.monotonic() + seconds
    while any_process(not ready()):
        if any_process(time.monotonic() > until):
            return False
        time.sleep(0.5)
    return True


def failed_only_here(error: Exception) -> bool:
    """Whether there are other processes, which need not have failed too."""
    if not jax.distributed.is_initialized() or hasattr(error, SHARED):
        return False
    try:
        return jax.process_count() > 1
    except RuntimeError:  # It has no devices.
        return True


def exit_without_waiting(status: int) -> NoReturn:
    """Ends this process for an error that the others do not know of: leaving in order, it would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_on_all_processes(work: Callable[[], Result]) -> Result:
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
    failed = any_process(error is not None)
    if failed and error is None:
        error = ProcessError(
            f"process {jax.process_index()}: another process cannot go on, and says why"
        )
    if error is not None:
        setattr(error, SHARED, True)
        raise error
    return result[0]


def compile_on_all_processes(
    function: jax.stages.Wrapped, *arguments: Any, **static: Any
) -> jax.stages.Compiled:
    """A program that all processes have before any begins: between CPUs, Gloo gives one up that is 30 s late for a collective."""
    return run_on_all_processes(lambda: function.lower(*arguments, **static).compile())


@contextlib.contextmanager
def on_first_process(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """A context that the first process enters for all; they fail together if it cannot."""
    with contextlib.ExitStack() as stack:
        run_on_all_processes(lambda: stack.enter_context(context) if is_first_process() else None)
        yield


_calls = (
    itertools.count()
)  # Processes agree on a call that is to come: one count for all of a process's runs.


@contextlib.contextmanager
def synchronized_stop() -> Iterator[Callable[[], int]]:
    """A function that says by which signal the run was asked to stop, 0: it was not.

    All processes must call it, equally often: they learn at the same call of a SIGTERM that came to any of them. SIGINT stops
    a run of one process in the same way.
    """
    if jax.process_count() == 1:
        with catch_stop_signals() as signals:
            yield lambda: signals[0] if signals else 0
        return
    yield (
        lambda: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_calls)) else 0
    )
