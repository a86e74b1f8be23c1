"""Writes a network as StableHLO: one program for CPUs, NVIDIA GPUs and TPUs, by `jax.export`.

The file is a zip archive without compression: `program.bin` is what `jax.export.deserialize` reads,
and `about.json` the description. The variables are constants of the program.
"""

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from i3d_jax import files, models
from i3d_jax.export.description import (
    SPACE,
    ExportError,
    Source,
    describe,
    has_features,
)
from i3d_jax.models.network import CHANNELS

PLATFORMS = "cpu", "cuda", "tpu"
LAYOUT = "batch time height width channels"
# Of an open height or width. JAX cannot decide whether smaller images leave anything after five
# strides of 2 and a pool without padding.
LEAST_SIDE = 65
PROGRAM, ABOUT = "program.bin", "about.json"


def write(path: pathlib.Path, source: Source) -> dict[str, Any]:
    """Writes a network to a file, atomically; returns its description.

    Args:
      path: the file.
      source: the network.

    Raises:
      ExportError: JAX cannot leave these dimensions open in this network.
      OSError: the file cannot be written.
    """
    about = {**describe(source, LAYOUT), "jax": jax.__version__}
    if {*source.open_dimensions} & {*SPACE}:
        for each in about["inputs"].values():
            each["least_side"] = LEAST_SIDE
    program = bytes(exported(source).serialize())
    with files.atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # Without a time of day, so that equal networks are equal files.
        archive.writestr(zipfile.ZipInfo(PROGRAM), program)
        archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(about, indent=2) + "\n")
    return about


def exported(source: Source) -> export.Exported:
    """The program of a network, for PLATFORMS.

    It has each platform's own forms of the layers. Where these depend on sizes that are open, which
    are height and width, and for ResNet time, it has XLA's own operations on all platforms.

    Raises:
      ExportError: as `write`.
    """
    undecided = (
        jax.errors.InconclusiveDimensionOperation,
        jax.errors.JAXTypeError,
        AssertionError,  # Of JAX, for sizes about which it knows too little.
        ValueError,  # Of networks.
    )
    if not {*source.open_dimensions} & {*SPACE}:
        try:
            return _export(source, _by_platform(source))
        except undecided:
            if "time" not in source.open_dimensions:
                raise
    try:
        return _export(source, _with_forms(source, "tpu"))
    except undecided as error:
        why = str(error).splitlines()[0] if str(error) else "it cannot compare sizes"
        dimensions = ", ".join(source.open_dimensions)
        raise ExportError(
            f"{source.info.model}: JAX cannot leave {dimensions} open together ({why}); leave "
            "fewer open"
        ) from error


def _export(source: Source, run: Callable) -> export.Exported:
    """The program of a function of variables and video, with a network's variables."""

    def network(video: Any) -> dict[str, jax.Array]:
        return run(source.variables, video)

    with _without_locations():
        return export.export(jax.jit(network), platforms=PLATFORMS)(_input(source))


def _with_forms(source: Source, platform: str) -> Callable:
    """A function of variables and video that returns the outputs, in a platform's forms."""

    def run(variables: Any, video: Any) -> dict[str, jax.Array]:
        with models.forms_of(platform):
            found: Any = source.network.apply(variables, video, endpoints=True)
        logits, ends = found
        outputs = {"logits": logits}
        if has_features(source.network):
            outputs["features"] = jnp.squeeze(ends["AvgPool"], (-3, -2)).astype(jnp.float32)
        return outputs

    return run


def _by_platform(source: Source) -> Callable:
    """The same, in the forms of the platform that the program will run on."""
    cpu, cuda, tpu = (_with_forms(source, platform) for platform in PLATFORMS)

    def run(variables: Any, video: Any) -> dict[str, jax.Array]:
        return jax.lax.platform_dependent(variables, video, cpu=cpu, cuda=cuda, tpu=tpu)

    return run


def _input(source: Source) -> Any:
    """The shapes of the input, with symbols for open dimensions."""
    constraints = [f"{name} >= {LEAST_SIDE}" for name in source.open_dimensions if name in SPACE]
    timing = source.network.timing
    (stream, *_) = source.sizes
    if "time" in source.open_dimensions:
        constraints.append(f"time >= {timing.least * timing.frames(stream)}")
    scope = export.SymbolicScope(constraints)
    shapes = {}
    for stream, sizes in source.sizes.items():
        every = {**sizes, "channels": CHANNELS[stream]}
        text = ", ".join(str(every[name] or name) for name in LAYOUT.split() if name in every)
        shape = export.symbolic_shape(text, scope=scope)
        shapes[stream] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return models.as_network_input(shapes)


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Has JAX leave out of programs where in which file each operation was made."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
