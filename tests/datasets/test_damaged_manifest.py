"""A damaged manifest of a checkpoint gives a line on stderr; the checkpoint before is restored."""

import asyncio
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.training import checkpoints

LEAVES = 120  # Enough that some are still being read when the first one fails.


def test_a_damaged_manifest_is_one_line(tmp_path, capfd):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        f"x{i}": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=sharding)
        for i in range(LEAVES)
    }
    with checkpoints.Checkpoints(tmp_path) as saved:
        for step in 1, 2:
            saved.save(step, {name: np.full(1000, step, np.float32) for name in like})
        saved.wait()
    for path in (tmp_path / "2").rglob("manifest.ocdbt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    capfd.readouterr()
    with checkpoints.Checkpoints(tmp_path) as saved:
        step, state = saved.restore(like)
    assert step == 1 and all((np.asarray(leaf) == 1).all() for leaf in state.values())
    time.sleep(0.5)  # Time for the threads that read the other leaves.
    line, used = capfd.readouterr().err.splitlines()
    assert used.startswith(f"{tmp_path}: goes on from step 1; ") and line.startswith(
        f"{tmp_path}: step 2: cannot be restored: "
    )


def test_what_calls_an_event_loop_of_orbax_after_its_end_is_ignored():
    with checkpoints._lenient_loops():
        loop = asyncio.new_event_loop()
    loop.close()
    raised = []
    thread = threading.Thread(target=lambda: raised.append(loop.call_soon_threadsafe(print)))
    thread.start()
    thread.join()
    assert raised == [None]
