"""Every test runs on two CPU devices, with implicit rank promotion and warnings as errors."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The real checkpoint and clips; see the README."""
    folder = os.environ.get("I3D_JAX_TEST_DATA")
    if not folder:
        pytest.skip("I3D_JAX_TEST_DATA is not set: no real checkpoint, no real clips")
    return pathlib.Path(folder)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
