"""TPU chips, and topologies of them that libtpu compiles for on a machine without a TPU."""

import importlib.util
import os
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh


class Chip(NamedTuple):
    """A kind of TPU chip, with its published figures.

    Attributes:
      memory: bytes of a chip's HBM that programs can have, as the compiler says.
      flops: floating-point operations per second of a chip, in bfloat16.
      bandwidth: bytes per second between a chip and its HBM.
      topology: the smallest one of a whole host.
      options: of `get_topology_desc`.
    """

    memory: float
    flops: float
    bandwidth: float
    topology: str
    options: dict[str, str]


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm. A v4 chip's two cores share its
# memory and, as "megacore", are one device to JAX.
CHIPS = {
    "v4": Chip(30.75 * 2**30, 275e12, 1228e9, "v4:2x2x1", {"chip_config_name": "megacore"}),
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, "v5e:2x2", {}),
    "v5p": Chip(95.74 * 2**30, 459e12, 2765e9, "v5p:2x2x1", {}),
    "v6e": Chip(31.25 * 2**30, 918e12, 1640e9, "v6e:2x2", {}),
}
MAX_CHIPS = 256


def prepare_environment() -> None:
    """Makes JAX compute on the CPU, and libtpu look for no TPU. Call it before JAX is used.

    Raises:
      ImportError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError('libtpu is not installed; pip install -e ".[tpu]" installs it')
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Otherwise one process at a time has libtpu, as if it had the TPU.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Any will do. Without one libtpu warns.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    jax.config.update("jax_platforms", "cpu")


def mesh_of(topology: str) -> tuple[Chip, Mesh]:
    """The chip of a topology, and a mesh of one axis, "data", over its devices.

    Args:
      topology: kind and shape, such as "v5e:4x4"; the kind alone is one host.

    Raises:
      ValueError: there is no such topology, or it has too many chips.
    """
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        raise ValueError(f"topology {topology!r}: no chip {kind!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    name = topology if shape else chip.topology
    try:
        found = topologies.get_topology_desc(name, "tpu", **chip.options)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ValueError(f"topology {topology!r}: {str(error).splitlines()[0]}") from None
    devices = sorted(found.devices, key=lambda device: (device.process_index, device.id))
    if len(devices) > MAX_CHIPS:
        raise ValueError(f"topology {topology!r}: {len(devices)} chips, wanted up to {MAX_CHIPS}")
    return chip, Mesh(np.array(devices), ("data",))
