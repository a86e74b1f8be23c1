"""One run, whatever it runs on: devices and parts of a batch change nothing but the order of summation."""

import subprocess
import sys

import pytest

# In float64, parameters too: training is chaotic, and rounding of float32 flips ReLUs, which moves gradients of deep layers in
# their second digit. What the parameters have moved is compared, which is the sum of the gradients.
PROGRAM = """
import functools, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from i3d_jax import models, optimizers, train
from i3d_jax.models import layers

name, steps, lr, batch_size, group, size = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), 16, 2, 16
clips = {"rgb": (1, 10), "flow": (4, 1)} if name == "two_stream" else {"rgb": (5, 1)}
layouts = [tuple(map(int, layout.split("x"))) for layout in sys.argv[4:]]


class Small(nn.Module):
    norm_groups: int

    @nn.compact
    def __call__(self, x, train=False):
        unit = functools.partial(layers.ConvBN, groups=self.norm_groups, dtype=jnp.float64)
        x = unit(6, (3, 3, 3), (1, 1, 1), name="a")(x, train)
        x = layers.max_pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(8, (3, 3, 3), (2, 2, 2), name="b")(x, train).mean((1, 2, 3))
        return nn.Dense(5, name="Logits")(layers.Dropout(0.5)(x, train))


def build(norm_groups):
    if name == "small":
        return Small(norm_groups)
    options = dict(num_classes=5, width=0.05, dropout=0.5, dtype=jnp.float64)
    return models.build(name, norm_groups=norm_groups, snippet=4, **options)


def batch(step):
    rng = np.random.default_rng(step)
    shapes = {"rgb": ((size + 2) * 3 // 2, size + 2), "flow": (2 * size, size)}
    made = {s: rng.integers(0, 255, (batch_size, n, *shapes[s])).astype(np.uint8) for s, (n, _) in clips.items()}
    made["corner"] = rng.integers(0, 2, (batch_size, 2)).astype(np.int32)
    made["mirrored"] = rng.random(batch_size) < 0.5
    return made | {"label": rng.integers(0, 5, batch_size).astype(np.int32)}


def run(devices, parts):
    network = build(batch_size // parts // group)
    tx, _ = optimizers.sgd(lr=lr)
    example = jax.tree.map(lambda x: jnp.zeros(x.shape), models.example(clips, size))
    variables = jax.tree.map(jnp.float64, jax.jit(network.init)(jax.random.key(0), example))
    params, stats = variables["params"], variables["batch_stats"]
    state = train.State(jnp.zeros((), jnp.int32), params, stats, tx.init(params), jnp.zeros(2, jnp.int32))
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    cut = parts, train.runs_per_part(batch_size, parts, group, devices)
    update = jax.jit(functools.partial(train.train_step, model=network, tx=tx, parts=cut))
    losses = []
    for step in range(steps):
        clip = jax.device_put(batch(step), NamedSharding(mesh, PartitionSpec("data")))
        state, scalars = update(state, clip, jax.random.key(7))
        losses.append(float(scalars["loss"]))
    moved = jax.tree.map(lambda after, before: (after - before) / lr, jax.device_get(state.params), jax.device_get(params))
    return losses, (moved, jax.device_get(state.batch_stats))


first_losses, first = run(*layouts[0])
assert np.ptp(first_losses) > 0.01, first_losses
for layout in layouts[1:]:
    losses, last = run(*layout)
    np.testing.assert_allclose(losses, first_losses, rtol=1e-6, err_msg=str(layout))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4, err_msg=str(layout))
    jax.tree.map(close, last, first)
print("the same")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network,steps,lr,layouts",
    [
        ("small", 20, 0.05, "1x1 2x1 4x1 8x1 1x2 2x2 4x2 8x2 1x4 2x4 4x4"),
        ("two_stream", 2, 1e-6, "1x1 4x2"),
    ],
)
def test_devices_and_parts_make_no_difference(network, steps, lr, layouts):
    """With dropout and augmentation; 8x2 is two parts on eight devices."""
    command = [sys.executable, "-c", PROGRAM, network, str(steps), str(lr), *layouts.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "the same\n", done.stderr[-3000:]
