"""Checkpoints of a run: Orbax's, with a checksum per leaf.

Orbax restores damaged files without noticing. A checkpoint here has three items: the state;
"crc32c", the CRC-32C of each of its leaves; and "about", JSON of what made it. Restoring verifies
all of them, and that the state is of the step that the folder is named after.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from i3d_jax import distributed, files
from i3d_jax.inflate import named_leaves

PATIENCE = 90.0  # Seconds.


class DamagedError(ValueError):
    """There are checkpoints, and none of them can be restored."""


class SaveError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class KeepLatestAndBest:
    """Which checkpoints stay when there is a new one: the last `number` and that of step `best`."""

    def __init__(self, number: int):
        self.number, self.best = number, 0

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        latest = LatestN(self.number).should_preserve(checkpoints, context=context)
        return [
            late or each.step == self.best for late, each in zip(latest, checkpoints, strict=True)
        ]


class Checkpoints:
    """The checkpoints in a folder; saves run in the background.

    Args:
      folder: is made, if it is not there.
      max_to_keep: how many are kept, the best one apart.
      about: what made them, JSON.

    Raises:
      DamagedError: what Orbax notes of a step is damaged, so that it can read none.
    """

    def __init__(self, folder: str | os.PathLike, max_to_keep: int = 2, about: dict | None = None):
        self.kept, self.about = KeepLatestAndBest(max_to_keep), about or {}
        options = ocp.CheckpointManagerOptions(preservation_policy=self.kept, create=True)
        with _reported(folder):
            try:
                self.manager = ocp.CheckpointManager(os.path.abspath(folder), options=options)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                reason = " ".join(str(error).split())[-200:]
                raise DamagedError(
                    f"{folder}: cannot be read ({reason}): "
                    "a step's _CHECKPOINT_METADATA is damaged; move the step away"
                ) from None
        # JAX counts how often it is asked for preemption. The run asks; Orbax must not.
        self.manager.reached_preemption = lambda step: False
        self.folder = self.manager.directory

    def keep_best(self, step: int) -> None:
        """Has the checkpoint of `step` stay, from now on."""
        self.kept.best = step

    def save(self, step: int, state: Any) -> None:
        """Starts to save a pytree of arrays as of `step`, when the save before it has ended.

        Raises:
          SaveError: this save, or the one before it, failed: the disk is full, for one.
          RuntimeError: Orbax declined, as it silently does for a step that is there already.
        """
        # From devices Orbax would have each replica write a part, and compile the slicing of it,
        # which takes longer than the first process takes to write all.
        state = jax.tree.map(_on_host, state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            crc32c=ocp.args.JsonSave(leaf_checksums(state)),
            about=ocp.args.JsonSave(self.about),
        )
        with _reported(self.folder):
            distributed.run_on_all_processes(
                lambda: self._check_room(state) if distributed.is_first_process() else None
            )
            saved = self.manager.save(step, args=items)
        if not saved:
            raise RuntimeError(
                f"{self.folder}: step {step} was not saved; "
                f"the last one there is {self.latest_step()}"
            )

    def _check_room(self, state: Any) -> None:
        """Raises an OSError if the state cannot be written; Orbax takes minutes to say so."""
        with tempfile.TemporaryFile(dir=self.folder):
            pass
        needed = 2 * sum(
            leaf.nbytes for leaf in jax.tree.leaves(state)
        )  # Orbax writes it in parts, then whole.
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")

    def wait(self) -> None:
        """Waits until everything is saved; raises what `save` does."""
        with _reported(self.folder):
            self.manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The last step that was saved, or is about to be."""
        return self.manager.latest_step()

    def all_steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def restore(
        self,
        like: Any,
        refuse: Callable[[Any], str | None] = lambda about: None,
        earlier: Any = None,
    ) -> tuple[int, Any] | None:
        """Restores the last checkpoint that is whole, of its folder's step, and not refused.

        Later ones are named on stderr and moved to the folder "set_aside", so that their steps can
        be saved again. If one of several processes cannot read a checkpoint, none uses it.

        Args:
          like: the state as a pytree of `jax.ShapeDtypeStruct`, with shardings. If it has a `step`,
            that is compared with the folder's.
          refuse: takes `about`, and says why a checkpoint is not to be used, or returns None.
          earlier: `like` with the names that earlier versions gave its leaves, in the same order.

        Returns:
          (step, state), or None if there are no checkpoints.

        Raises:
          DamagedError: there are checkpoints, and none of them can be used.
        """
        steps: list[int] = json.loads(distributed.all_gather_text(json.dumps(self.all_steps()))[0])
        self._wait_until_seen(steps)
        for step in reversed(steps):
            state, problem = self._read(step, like, refuse, earlier)
            if problem:
                print(f"{self.folder}: step {step}: {problem}", file=sys.stderr)
            if not distributed.any_process(problem is not None):
                self._set_aside([other for other in steps if other > step], step)
                return step, state
        if steps:
            raise DamagedError(
                f"{self.folder}: none of the steps {steps} can be restored; "
                "move the folder away to start anew"
            )
        return None

    def _wait_until_seen(self, steps: list[int]) -> None:
        """Waits until all processes see the first one's steps: shared storage may be late."""

        def missing() -> list[int]:
            return [step for step in steps if not (self.folder / str(step)).exists()]

        def check() -> None:
            if missing():
                raise DamagedError(
                    f"{self.folder}: process {jax.process_index()} does not see step "
                    f"{missing()[0]}, which the first process does; "
                    "the workdir must be one folder for all"
                )

        distributed.wait_for_all(lambda: not missing(), PATIENCE)
        distributed.run_on_all_processes(check)
        self.manager.reload()

    def _read(
        self, step: int, like: Any, refuse: Callable[[Any], str | None], earlier: Any
    ) -> tuple[Any, str | None]:
        """The state, or what is wrong with it."""
        try:
            with _lenient_loops():
                checksums = ocp.args.Composite(crc32c=ocp.args.JsonRestore())
                wanted = self.manager.restore(step, args=checksums)["crc32c"]
                if not isinstance(wanted, dict):
                    return None, "its checksums are damaged"
                # Names that it has not would be a failure of Orbax's.
                form = (
                    like
                    if earlier is None or set(named_leaves(earlier)) != set(wanted)
                    else earlier
                )
                items = ocp.args.Composite(
                    state=ocp.args.StandardRestore(form), about=ocp.args.JsonRestore()
                )
                restored = self.manager.restore(step, args=items)
        except (MemoryError, PermissionError):
            raise  # Not the checkpoint's fault.
        except Exception as error:  # noqa: BLE001 - whatever Orbax makes of a damaged file.
            return None, f"cannot be restored: {(str(error) or repr(error)).splitlines()[0]}"
        found = leaf_checksums(restored["state"])
        damaged = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        if damaged:
            return None, f"{len(damaged)} leaves are damaged, the first is {damaged[0]}"
        state = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(restored["state"]))
        if (own := int(_on_host(getattr(state, "step", step)))) != step:
            return None, f"is the checkpoint of step {own}, in a folder that was copied or renamed"
        return state, refuse(restored["about"])

    def _set_aside(self, steps: list[int], used: int) -> None:
        """Moves steps that are not used to where they are in nobody's way."""
        if not steps:
            return
        folder = pathlib.Path(self.folder).with_name("set_aside")

        def move() -> None:
            folder.mkdir(exist_ok=True)
            for step in steps:
                (self.folder / str(step)).rename(files.unused_path(folder / str(step)))
            moved = ", ".join(map(str, steps))
            print(
                f"{self.folder}: goes on from step {used}; moved to {folder}: {moved}",
                file=sys.stderr,
            )

        distributed.run_on_all_processes(lambda: move() if distributed.is_first_process() else None)
        self.manager.reload()

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is None:
            with _reported(self.folder):
                self.manager.close()
        elif not issubclass(
            kind, jax.errors.JaxRuntimeError
        ):  # A process that was lost would be waited for.
            with contextlib.suppress(
                Exception
            ):  # What ended the run is told, not what closing makes of it.
                self.manager.close()


@contextlib.contextmanager
def _reported(folder: Any) -> Iterator[None]:
    """Turns Orbax's errors of a full or read-only disk into a SaveError of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "os_error_code" not in str(error):
            raise
        reason = " ".join((str(error) or repr(error)).split())[
            -200:
        ]  # Its end says what the matter was.
        raise SaveError(
            f"{folder}: cannot save a checkpoint: {reason}; those before it are as they were"
        ) from error


class _LenientLoop(asyncio.SelectorEventLoop):
    """An event loop that ignores calls after it was closed.

    Orbax closes its loop at the first leaf that it cannot read. TensorStore's threads, still at the
    others, then call it, and would print a traceback each.
    """

    def call_soon_threadsafe(self, *given: Any, **named: Any) -> Any:
        try:
            return super().call_soon_threadsafe(*given, **named)
        except RuntimeError:
            if not self.is_closed():
                raise


@contextlib.contextmanager
def _lenient_loops() -> Iterator[None]:
    before, asyncio.new_event_loop = asyncio.new_event_loop, _LenientLoop
    try:
        yield
    finally:
        asyncio.new_event_loop = before


def leaf_checksums(state: Any) -> dict[str, int]:
    """The CRC-32C of every leaf, by path."""
    return {
        name: google_crc32c.value(_on_host(leaf).tobytes())
        for name, leaf in named_leaves(state).items()
    }


def _on_host(leaf: Any) -> np.ndarray:
    """Leaves are replicated, so each process has the whole of each."""
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)
