"""Every test runs on two CPU devices, with implicit rank promotion and warnings as errors."""

import atexit
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"  # Also for the processes that tests start.
# Processes that tests start keep no programs: neither in the user's cache, nor half-written where they are killed.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

import jax
import pytest

from i3d_jax import compilation

# Tests compile far longer than they compute: options that make it a fifth of the time, and those that XLA has by itself.
QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": "false"}
AS_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
if jax.__version_info__ >= (0, 11):  # Which may not know the second one any more.
    del QUICK["xla_cpu_use_fusion_emitters"], AS_USERS["xla_cpu_use_fusion_emitters"]
options = (f"--{name}={value}" for name, value in QUICK.items())
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *options])

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests that compile the same program do it once, in whichever of pytest's processes, which have this one's environment.
if "I3D_JAX_TEST_COMPILED" not in os.environ:
    os.environ["I3D_JAX_TEST_COMPILED"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["I3D_JAX_TEST_COMPILED"], ignore_errors=True)
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", os.environ["I3D_JAX_TEST_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
compilation.enable_persistent_cache()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The real checkpoint and clips; see the README."""
    folder = os.environ.get("I3D_JAX_TEST_DATA")
    if not folder:
        pytest.skip("I3D_JAX_TEST_DATA is not set: no real checkpoint, no real clips")
    return pathlib.Path(folder)


@pytest.fixture
def programs(caplog) -> Iterator[Callable[[], list[str]]]:
    """A function that says which programs were compiled so far."""
    compiled = re.compile(r"Finished XLA compilation of (.*) in .* sec")
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        yield lambda: [
            found[1] for record in caplog.records if (found := compiled.match(record.getMessage()))
        ]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
