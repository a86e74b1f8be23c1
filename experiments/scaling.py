"""Estimates how well training scales, from the collectives of the compiled step and links' speeds.

    python experiments/scaling.py
    python experiments/scaling.py --model two_stream --clips-per-device 6 --clips-per-second 900
    python experiments/scaling.py --compiled tpu.json

Compiles the full-size training step for 8 devices, does not run it, and reads from its HLO how many
bytes a step sends. The devices are a CPU's, with convolutions in the form that accelerators use;
what is sent then does not depend on the kind of device. With --compiled the training step is one
that `tpu_compile.py --json` compiled for TPUs, with its collectives, clips and predicted speed.

Prints a Markdown table of the efficiency at 8, 64, 256 and 1,024 devices: the time of a step on one
device, divided by the sum of that time and the time of sending. The lower figure assumes that no
sending overlaps with arithmetic. The higher one assumes that all of it does that can: gradients are
sent while those of earlier layers are computed, in the backward two thirds of a step. Both leave
out waiting for clips and for the slowest device.

All-reduce is modelled as a ring within a machine, whose devices then each send a share of the bytes
around a ring of the machines: 2 (n - 1) / n of the bytes each, and 2 log2(n) latencies (trees).
"""

import argparse
import functools
import math
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tpu_program import kept
from tpu_program.hlo import collectives

from i3d_jax import cli, models
from i3d_jax.training import optimizers
from i3d_jax.training.step import initial_state, train_step
from i3d_jax.video import planes

DEVICES = 8, 64, 256, 1024


class Links(NamedTuple):
    """The network of a cluster.

    Attributes:
      name: description.
      machine: devices per machine.
      within: bytes per second, per device and direction, within a machine.
      between: bytes per second, per device and direction, between machines.
      latency: seconds.
    """

    name: str
    machine: int
    within: float
    between: float
    latency: float = 5e-6


LINKS = (
    Links(
        "8 GPUs with 450 GB/s (NVLink), "
        "50 GB/s each between machines (400 Gb/s InfiniBand per GPU)",
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


def compiled_step(name: str, clips_per_device: int, devices: int) -> str:
    """The HLO of a full-size training step, in the form that accelerators run.

    Args:
      name: of the network.
      clips_per_device: batch size of one device.
      devices: number of devices.
    """
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

    shapes = models.input_shapes(entry.train, entry.crop)
    example = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    state = jax.eval_shape(lambda: initial_state(network.init(jax.random.key(0), example), tx))
    batch = {}
    for stream, (frames, _) in entry.train.items():
        shape = batch_size, frames, *planes.packed_shape(stream, entry.crop)
        batch[stream] = jax.ShapeDtypeStruct(shape, jnp.uint8)
    batch |= {
        "corner": jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
        "mirrored": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    step = functools.partial(train_step, model=network, tx=tx)
    step = jax.jit(step, out_shardings=whole, donate_argnums=0)
    # The form of large convolutions for CPUs sends up to twice the bytes of their gradients.
    with models.forms_of("plain"):
        lowered = step.lower(shaped(whole, state), shaped(cut, batch), jax.random.key(0))
    return lowered.compile().as_text()


def seconds_to_send(size: float, devices: int, links: Links) -> float:
    """The time of an all-reduce.

    Args:
      size: bytes.
      devices: number of devices.
      links: between them.
    """
    inside = min(devices, links.machine)
    machines = devices // inside
    seconds = 2 * (inside - 1) / inside * size / links.within
    if machines > 1:
        seconds += 2 * (machines - 1) / machines * size / inside / links.between
    return seconds + 2 * math.log2(devices) * links.latency


def tpu_step(path: pathlib.Path) -> dict[str, Any]:
    """The last training step in a file of `tpu_compile.py` that fits.

    Raises:
      ValueError: it has none, or cannot be read.
    """
    programs = kept.read(path).values()
    rows = [each for each in programs if each["program"] == "train" and each["fits"]]
    if not rows:
        raise ValueError(f"{path}: has no training step that fits (tpu_compile.py --json)")
    return rows[-1]


def main() -> int:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="i3d", choices=sorted(models.MODELS), help="network (default: i3d)"
    )
    parser.add_argument(
        "--clips-per-device",
        type=cli.positive,
        default=6,
        help="default: 6, as the published networks were trained",
    )
    parser.add_argument(
        "--clips-per-second",
        type=float,
        default=500.0,
        help="training speed of one device, as measured (default: 500)",
    )
    parser.add_argument(
        "--compiled", type=pathlib.Path, metavar="FILE", help="of tpu_compile.py, with --json"
    )
    flags = parser.parse_args()
    what, clips, speed, assumed = flags.model, flags.clips_per_device, flags.clips_per_second, True
    if flags.compiled:
        try:
            about = tpu_step(flags.compiled)
        except ValueError as error:
            cli.print_error(error)
            return 2
        what, clips = f"{about['config']} for {about['topology']}", about["clips"]
        speed, assumed = about["clips_per_second"], False
        found = [(kind, size) for kind, size in about["collectives"]]
    else:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        found = collectives(compiled_step(what, clips, 8))
    size = sum(size for _, size in found)
    step = clips / speed
    kinds = {kind: [size for of, size in found if of == kind] for kind, _ in found}
    sent = ", ".join(
        f"{len(sizes)} {kind} of {sum(sizes) / 1e6:.1f} MB in all" for kind, sizes in kinds.items()
    )
    print(
        f"{what}, {clips} clips per device, {step * 1e3:.1f} ms a step on one device "
        f"({speed:.0f} clips/s, {'assumed' if assumed else 'predicted'}). "
        f"Sent per step: {sent} (jax {jax.__version__}).\n"
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
