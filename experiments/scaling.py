"""How well training scales, on paper: from the collectives in the compiled step, for links of stated speed.

    python experiments/scaling.py
    python experiments/scaling.py --model two_stream --clips-per-device 6 --clips-per-second 900

Compiles the training step for 8 devices (of the CPU, but with convolutions as accelerators have them: what is sent then does not
depend on the kind of device) at full size without running it, reads what it sends per step out of its HLO, and prints a Markdown
table of the efficiency at 8, 64, 256 and 1,024 devices: the time of a step on one device, divided by that and the time that sending takes, if none of it is hidden behind
arithmetic, and if all is that can be: gradients are sent while those of earlier layers, the backward two thirds of a
step, are computed. Waiting for clips, and for the slowest device, is left out.

All-reduce: a ring within a machine, whose devices then each send a share of the bytes around a ring of the machines;
2 (n - 1) / n of the bytes each, and 2 log2(n) latencies (trees).
"""

import argparse
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax import models
from i3d_jax.training import optimizers
from i3d_jax.training.step import initial_state, train_step
from i3d_jax.video import planes

DEVICES = 8, 64, 256, 1024
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}


class Links(NamedTuple):
    """Speeds in bytes per second and direction, per device: within a machine of so many devices, and between machines."""

    name: str
    machine: int
    within: float
    between: float
    latency: float = 5e-6


LINKS = (
    Links(
        "8 GPUs with 450 GB/s (NVLink), 50 GB/s each between machines (400 Gb/s InfiniBand per GPU)",
        8,
        450e9,
        50e9,
    ),
    Links(
        "8 GPUs with 450 GB/s, 12.5 GB/s between machines for all 8 (one 100 Gb/s port)",
        8,
        450e9,
        12.5e9 / 8,
        20e-6,
    ),
    Links(
        "8 GPUs with 32 GB/s (PCIe 4), 3.1 GB/s between machines for all 8 (25 Gb/s)",
        8,
        32e9,
        3.125e9 / 8,
        20e-6,
    ),
    Links(
        "TPU slice, 100 GB/s per chip to its neighbours, all one machine", 1024, 100e9, 100e9, 1e-6
    ),
)


def collectives(text: str) -> list[tuple[str, int]]:
    """(kind, bytes of its result) of every collective in a compiled program's text."""
    kinds = (
        "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    )
    found = []
    for shapes, kind in re.findall(
        rf"^ *(?:ROOT )?%?\S+ = (.*?) ({kinds})(?:-start)?\(", text, re.MULTILINE
    ):
        sizes = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        found.append(
            (
                kind,
                sum(
                    BYTES[t] * math.prod(map(int, filter(None, dims.split(","))))
                    for t, dims in sizes
                ),
            )
        )
    return found


def compiled_step(name: str, clips_per_device: int, devices: int) -> str:
    """The text of a full-size training step, compiled for so many devices, in the form that accelerators run."""
    entry = models.MODELS[name]
    batch_size = clips_per_device * devices
    network = models.build(name, num_classes=400, norm_group_size=clips_per_device)
    tx, _ = optimizers.sgd(lr=0.1)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def shaped(sharding, tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    example = jax.tree.map(
        lambda x: jnp.zeros(x.shape), models.input_shapes(entry.train, entry.crop)
    )
    state = jax.eval_shape(lambda: initial_state(network.init(jax.random.key(0), example), tx))
    batch = {
        stream: jax.ShapeDtypeStruct(
            (batch_size, frames, *planes.packed_shape(stream, entry.crop)), jnp.uint8
        )
        for stream, (frames, _) in entry.train.items()
    }
    batch |= {
        "corner": jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
        "mirrored": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    step = jax.jit(
        functools.partial(train_step, model=network, tx=tx), out_shardings=whole, donate_argnums=0
    )
    # What a CPU's form of large convolutions sends is up to twice their gradients.
    with models.forms_of("plain"):
        lowered = step.lower(shaped(whole, state), shaped(cut, batch), jax.random.key(0))
    return lowered.compile().as_text()


def seconds_to_send(size: float, devices: int, links: Links) -> float:
    """Of an all-reduce of so many bytes."""
    inside = min(devices, links.machine)
    machines = devices // inside
    seconds = 2 * (inside - 1) / inside * size / links.within
    if machines > 1:
        seconds += 2 * (machines - 1) / machines * size / inside / links.between
    return seconds + 2 * math.log2(devices) * links.latency


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="i3d", choices=sorted(models.MODELS), help="default: i3d"
    )
    parser.add_argument("--clips-per-device", type=int, default=6, help="default: 6, the release's")
    parser.add_argument(
        "--clips-per-second",
        type=float,
        default=500.0,
        help="that one device trains on; measure it (default: 500)",
    )
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    found = collectives(compiled_step(flags.model, flags.clips_per_device, 8))
    size = sum(size for _, size in found)
    step = flags.clips_per_device / flags.clips_per_second
    kinds = {kind: [size for of, size in found if of == kind] for kind, _ in found}
    print(
        f"{flags.model}, {flags.clips_per_device} clips per device, {step * 1e3:.1f} ms a step on one device "
        f"({flags.clips_per_second:.0f} clips/s, assumed). Sent per step: "
        + ", ".join(
            f"{len(sizes)} {kind} of {sum(sizes) / 1e6:.1f} MB in all"
            for kind, sizes in kinds.items()
        )
        + f" (jax {jax.__version__}).\n"
    )
    print("| links | " + " | ".join(f"{devices:,} devices" for devices in DEVICES) + " |")
    print("|---|" + "---|" * len(DEVICES))
    for links in LINKS:
        cells = []
        for devices in DEVICES:
            sending = seconds_to_send(size, devices, links)
            hidden = max(0.0, sending - step * 2 / 3)
            cells.append(f"{step / (step + sending):.0%} to {step / (step + hidden):.0%}")
        print(f"| {links.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
