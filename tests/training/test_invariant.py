"""A run does not depend on the number of devices, processes and micro-batches."""

import functools
import subprocess
import sys

import numpy as np
import pytest
from support import small_run

# All is float64, parameters included. In float32 rounding flips ReLUs, and gradients of deep layers
# differ in the second digit. The test compares by how much the parameters have moved, which is the
# sum of the gradients: only the order of summation may differ.
PROGRAM = """
import functools, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
name, steps, lr, out, port, processes, process, devices = sys.argv[1:9]
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_enable_x64", True)
if int(processes) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from i3d_jax import models
from i3d_jax.training import optimizers
from i3d_jax.models import layers, pooling
from i3d_jax.training.step import initial_state, runs_per_micro_batch, train_step

from i3d_jax.inflate import named_leaves

steps, lr, batch_size, group, size = int(steps), float(lr), 16, 2, 16
clips = {"rgb": (1, 10), "flow": (4, 1)} if name == "two_stream" else {"rgb": (5, 1)}


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        groups = max(1, len(x) // group) if train else 1
        unit = functools.partial(layers.ConvBN, groups=groups, dtype=jnp.float64)
        x = unit(6, (3, 3, 3), (1, 1, 1), name="a")(x, train)
        x = pooling.max_pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(8, (3, 3, 3), (2, 2, 2), name="b")(x, train).mean((1, 2, 3))
        return nn.Dense(5, name="Logits")(layers.Dropout(0.5)(x, train))


def build():
    if name == "small":
        return Small()
    options = dict(num_classes=5, width=0.05, dropout=0.5, dtype=jnp.float64)
    return models.build(name, norm_group_size=group, snippet=4, **options)


def batch(step):
    rng = np.random.default_rng(step)
    shapes = {"rgb": ((size + 2) * 3 // 2, size + 2), "flow": (2 * size, size)}
    made = {}
    for stream, (frames, _) in clips.items():
        shape = batch_size, frames, *shapes[stream]
        made[stream] = rng.integers(0, 255, shape).astype(np.uint8)
    made["corner"] = rng.integers(0, 2, (batch_size, 2)).astype(np.int32)
    made["mirrored"] = rng.random(batch_size) < 0.5
    return made | {"label": rng.integers(0, 5, batch_size).astype(np.int32)}


def run(devices, parts):
    network = build()
    tx, _ = optimizers.sgd(lr=lr)
    example = jax.tree.map(lambda x: jnp.zeros(x.shape), models.input_shapes(clips, size))
    variables = jax.tree.map(jnp.float64, jax.jit(network.init)(jax.random.key(0), example))
    params = variables["params"]
    state = initial_state(variables, tx)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(state, replicated)
    runs = runs_per_micro_batch(batch_size, parts, group, devices)
    step = functools.partial(train_step, model=network, tx=tx, micro_batches=parts, runs=runs)
    update = jax.jit(step, out_shardings=replicated)
    losses = []
    for step in range(steps):
        clip = jax.device_put(batch(step), NamedSharding(mesh, PartitionSpec("data")))
        state, scalars = update(state, clip, jax.random.key(7))
        losses.append(float(scalars["loss"]))
    ends = jax.device_get((state.params, params))
    moved = jax.tree.map(lambda after, before: (after - before) / lr, *ends)
    stats = jax.device_get(state.batch_stats)
    return {"losses": np.array(losses), **named_leaves({"moved": moved, "stats": stats})}


for layout in sys.argv[9:]:
    found = run(*map(int, layout.split("x")))
    if jax.process_index() == 0:
        np.savez(f"{out}/{processes}-{layout}.npz", **found)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network,steps,lr,one,two",
    [
        ("small", 20, 0.05, "1x1 2x1 4x1 8x1 1x2 2x2 4x2 8x2 1x4 2x4 4x4", "8x1 8x2"),
        ("two_stream", 2, 1e-6, "1x1", "4x2"),
    ],
)
def test_devices_processes_and_micro_batches_make_no_difference(
    network, steps, lr, one, two, tmp_path
):
    """Dropout and augmentation are on.

    In a layout such as 8x2, eight is the number of devices, and two that of micro-batches. The
    devices belong to one process or to two.
    """
    most = max(int(layout[0]) for layout in two.split())
    port = str(small_run.free_port())
    command = [sys.executable, "-c", PROGRAM, network, str(steps), str(lr), str(tmp_path), port]
    for jobs in (
        [["1", "0", "8", *one.split()]],
        [["2", process, str(most // 2), *two.split()] for process in "01"],
    ):
        started = [
            subprocess.Popen([*command, *job], stderr=subprocess.PIPE, text=True) for job in jobs
        ]
        for each in started:
            _, error = each.communicate(timeout=600)
            assert each.returncode == 0, error[-3000:]
    names = [f"1-{layout}" for layout in one.split()] + [f"2-{layout}" for layout in two.split()]
    first, *others = (dict(np.load(tmp_path / f"{name}.npz")) for name in names)
    assert np.ptp(first["losses"]) > 0.01
    for name, found in zip(names[1:], others, strict=True):
        assert found.keys() == first.keys()
        np.testing.assert_allclose(found["losses"], first["losses"], rtol=1e-6, err_msg=name)
        close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4)
        for leaf, value in found.items():
            close(value, first[leaf], err_msg=f"{name}: {leaf}")
