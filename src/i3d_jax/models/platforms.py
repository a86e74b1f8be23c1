"""What networks and flow are computed on, and in whose forms they are.

A layer is one function in all forms, but for rounding, and so is flow; which one is chosen as they are traced.
"""

import contextlib
from typing import Any

import jax
from jax.extend import backend

PLATFORMS = "cpu", "cuda", "rocm", "tpu", "plain"

# The platform of `forms_of`; None: that of this process.
_asked = jax.make_user_context()


def forms_of(platform: str) -> contextlib.AbstractContextManager[None]:
    """A context in which networks are traced for one of PLATFORMS, and not for what this process computes on.

    It is for programs that are compiled on one machine for another, as `jax.export` makes them (one for each platform: a program for
    several has one's forms), and for a machine's CPU if it has a GPU, too. "plain" is every layer as XLA itself has it, which is
    quicker to trace and on a CPU several times slower to run. It is the only form with forward-mode AD (`jax.jvp`, `jax.jacfwd`).
    It also has the smallest rounding errors: a CPU's large convolutions over time (see `toom_cook`) lose digits in frames that are
    near one 10,000 times as bright.

    Raises:
      ValueError: no such platform.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"no platform is called {platform!r}; there are {', '.join(PLATFORMS)}")
    return _asked(platform)


def platform() -> str:
    """Whose forms layers are to have: "cpu", "cuda", or another name, for which they are XLA's own."""
    return _asked.value or _own()


def _own() -> str:
    """What this process computes on."""
    name = jax.default_backend()
    if name == "gpu":
        return "rocm" if "rocm" in backend.get_backend().platform_version.lower() else "cuda"
    return name


def check_axes(x: Any, what: str) -> None:
    """Raises a ValueError if an array lies along axes of a mesh whose types are Explicit, as `jax.make_mesh` makes them."""
    sharding = jax.typeof(x).sharding
    axes = {
        axis
        for part in sharding.spec
        if part
        for axis in (part if isinstance(part, tuple) else (part,))
    }
    if axes & set(sharding.mesh.explicit_axes):
        raise ValueError(
            f"{what}: got {jax.typeof(x)}, along Explicit axes of a mesh; wanted Auto ones, as those of "
            'jax.sharding.Mesh(devices, ("data",)) or jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,))'
        )


def compiler_options() -> dict[str, str | int] | None:
    """What to compile a whole network with on this process's devices, for `jax.jit`.

    On a CPU, these versions of XLA give convolutions to a library that is up to five times slower at kernel gradients
    than the one before it; the option, experimental by its name, gives them back. On a GPU of CUDA's, XLA by itself lays videos out
    channels first, which 3-D convolutions are far slower in, and has matrix products without the sums and ReLUs after them, or
    several in one. Of other versions nothing is known, not even whether they have the options.
    """
    if not (0, 10) <= jax.__version_info__[:2] <= (0, 12):
        return None
    own = _own()
    if own == "cuda":
        return {
            "xla_gpu_force_conv_nhwc": True,
            "xla_gpu_enable_triton_gemm": False,
            "xla_gpu_dot_merger_threshold_mb": 0,
        }
    if own == "cpu":
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return None
