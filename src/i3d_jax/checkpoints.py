"""Checkpoints of a run: Orbax's, with a CRC per leaf, since Orbax restores damaged files without noticing."""

import os
import sys
from typing import Any

import google_crc32c
import jax
import numpy as np
import orbax.checkpoint as ocp

from i3d_jax.inflate import named_leaves


class DamagedError(ValueError):
    """There are checkpoints, and none of them can be restored."""


def manager(folder: str | os.PathLike, keep: int = 2) -> ocp.CheckpointManager:
    """Opens the checkpoints in `folder`, of which the last `keep` are kept; saves run in the background."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(os.path.abspath(folder), options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Starts to save a pytree of arrays as of `step`.

    Raises:
      RuntimeError: Orbax declined, as it silently does for a step that is there already.
    """
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), crc32c=ocp.args.JsonSave(crcs(state)))
    if not checkpoints.save(step, args=items):
        raise RuntimeError(
            f"{checkpoints.directory}: step {step} was not saved; the last one there is {checkpoints.latest_step()}"
        )


def restore(checkpoints: ocp.CheckpointManager, like: Any) -> tuple[int, Any] | None:
    """Returns (step, state) of the last checkpoint whose every leaf is as it was saved; None if there is none.

    Damaged checkpoints are named on stderr and moved to the folder "damaged", so that their steps can be saved again.

    Args:
      like: the state's pytree of `jax.ShapeDtypeStruct`, with shardings.

    Raises:
      DamagedError: there are checkpoints, and all are damaged or of another model.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    for step in steps:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), crc32c=ocp.args.JsonRestore())
        try:
            restored = checkpoints.restore(step, args=items)
            found, wanted = crcs(restored["state"]), restored["crc32c"]
            damaged = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            if not damaged:
                _set_aside(checkpoints, [other for other in steps if other > step])
                return step, restored["state"]
            problem = f"{len(damaged)} leaves are damaged, the first is {damaged[0]}"
        except (MemoryError, PermissionError):
            raise  # Not the checkpoint's fault.
        except Exception as error:  # noqa: BLE001 - whatever Orbax and its file formats make of a damaged file.
            problem = f"cannot be restored: {(str(error) or repr(error)).splitlines()[0]}"
        print(f"{checkpoints.directory}: step {step}: {problem}", file=sys.stderr)
    if steps:
        raise DamagedError(
            f"{checkpoints.directory}: none of the steps {steps} can be restored; move the folder away to start anew"
        )
    return None


def _set_aside(checkpoints: ocp.CheckpointManager, steps: list[int]) -> None:
    for step in steps:
        folder = checkpoints.directory.with_name("damaged") / str(step)
        folder.parent.mkdir(exist_ok=True)
        if folder.exists():
            folder.rmtree()
        (checkpoints.directory / str(step)).rename(folder)
    if steps:
        checkpoints.reload()


def crcs(state: Any) -> dict[str, int]:
    """The CRC-32C of every leaf, by path; leaves are replicated, so each process has the whole of each."""
    leaves = {
        name: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        for name, leaf in named_leaves(state).items()
    }
    return {name: google_crc32c.value(np.asarray(leaf).tobytes()) for name, leaf in leaves.items()}
