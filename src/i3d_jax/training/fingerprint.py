"""What a run's result depends on besides its config: the code, JAX's settings, the data set.

The processes of a run compare these values, and checkpoints have them.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from typing import Any

import jax

from i3d_jax import datasets

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy")
# JAX's settings that make other programs, or other random numbers.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)


def of_code() -> dict[str, Any]:
    """This package's digest, the versions of others that compute, and JAX's settings, by name."""
    found: dict[str, Any] = {
        f"the version of {name}": version for name, version in _versions(PACKAGES).items()
    }
    settings = {
        f"JAX's setting {name}": jax.config.values[name]
        for name in SETTINGS
        if name in jax.config.values
    }
    return found | {"the code of i3d_jax (SHA-256)": source()} | settings


@functools.cache
def source() -> str:
    """The SHA-256 of this package's source files, in short."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(text)} ".encode() + text)
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions of this package, with its commit if that is known, and of those that compute."""
    found = _versions(("i3d-jax-zoo", *PACKAGES))
    repository = pathlib.Path(__file__).parents[3]
    if (repository / ".git").exists():
        command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found["commit"] = subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
    return found


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(
            importlib.metadata.PackageNotFoundError
        ):  # Used without being installed.
            found[name] = importlib.metadata.version(name)
    return found


def of_data_set(builder: datasets.ClipBuilder) -> dict[str, Any]:
    """A prepared data set, wherever it lies.

    Returns:
      its version, classes and streams, and for each split the clips and the sizes of all shards.
    """
    found: dict[str, Any] = {
        "version": str(builder.version),
        "classes": _digest(list(builder.class_names)),
        "streams": builder.streams,
    }
    for name, split in builder.info.splits.items():
        sizes = [pathlib.Path(path).stat().st_size for path in split.filepaths]
        shards = _digest([split.shard_lengths, sizes])
        found[name] = f"{split.num_examples} clips of {sum(sizes)} bytes (shards {shards})"
    return {f"the data set {builder.full_name}, {name}": value for name, value in found.items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
