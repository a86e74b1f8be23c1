"""Every test runs on two CPU devices, with implicit rank promotion and warnings as errors."""

import atexit
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"  # Also for the processes that tests start.
# Processes that tests start keep no compiled programs: the user's cache stays as it is, and none of
# them leaves a half-written program when it is killed.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
# NumPy's library waits for its threads by spinning: several processes on few cores then take many
# times as long.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax
import pytest

from i3d_jax import compilation

# Tests compile far longer than they compute. With QUICK compiling takes a fifth of the time;
# AS_USERS are XLA's defaults.
QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": "false"}
AS_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
if jax.__version_info__ >= (0, 11):  # It may no longer know the second option.
    del QUICK["xla_cpu_use_fusion_emitters"], AS_USERS["xla_cpu_use_fusion_emitters"]
options = (f"--{name}={value}" for name, value in QUICK.items())
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *options])

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests that compile the same program compile it once, in any of pytest's processes, since these
# inherit the environment.
if "I3D_JAX_TEST_COMPILED" not in os.environ:
    os.environ["I3D_JAX_TEST_COMPILED"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["I3D_JAX_TEST_COMPILED"], ignore_errors=True)
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", os.environ["I3D_JAX_TEST_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
compilation.enable_persistent_cache()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of the real checkpoint and clips; see the README."""
    folder = os.environ.get("I3D_JAX_TEST_DATA")
    if not folder:
        pytest.skip("I3D_JAX_TEST_DATA is not set: no real checkpoint, no real clips")
    return pathlib.Path(folder)


@pytest.fixture
def programs(caplog) -> Iterator[Callable[[], list[str]]]:
    """A function that returns the names of the programs compiled so far in the test."""
    compiled = re.compile(r"Finished XLA compilation of (.*) in .* sec")
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        yield lambda: [
            found[1] for record in caplog.records if (found := compiled.match(record.getMessage()))
        ]


@pytest.fixture
def float64():
    """Has JAX compute in float64."""
    with jax.enable_x64(True):
        yield
