"""Selects, per hardware platform, the implementation ("form") of each layer and of optical flow.

All forms of a layer compute the same function, up to rounding. The choice is made when a network
is traced.
"""

import contextlib
from typing import Any

import jax
from jax.extend import backend

PLATFORMS = "cpu", "cuda", "rocm", "tpu", "plain"

# The platform that `forms_of` asks for; None stands for this process's platform.
_requested_platform = jax.make_user_context()
_small_errors = jax.make_user_context(False)


def forms_of(platform: str) -> contextlib.AbstractContextManager[None]:
    """Context in which networks are traced for a given platform, not for this process's.

    Use it to export programs for another machine with `jax.export`, one program per platform, or
    to run on the CPU of a machine that has a GPU.

    "plain" uses XLA's own operation for every layer. It traces faster, and on a CPU it runs
    several times slower. It is the only form with forward-mode AD (`jax.jvp`, `jax.jacfwd`). It
    also has the smallest rounding errors: on a CPU, large convolutions over time (`toom_cook`)
    lose digits in frames next to one that is 10,000 times as bright.

    Args:
      platform: one of PLATFORMS.

    Raises:
      ValueError: no such platform.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"no platform is called {platform!r}; there are {', '.join(PLATFORMS)}")
    return _requested_platform(platform)


def platform() -> str:
    """The platform whose forms are used; "rocm" and "plain" have XLA's own operations."""
    return _requested_platform.value or _process_platform()


def small_rounding_errors() -> contextlib.AbstractContextManager[None]:
    """Context in which networks are traced with smaller rounding errors, on CPUs.

    Errors of convolutions over time (`toom_cook`) are then about a fifth, and networks take about
    1.15 times as long. It is for numbers that are compared with other implementations'.
    """
    return _small_errors(True)


def has_small_rounding_errors() -> bool:
    """Whether `small_rounding_errors` asks for them."""
    return _small_errors.value


def _process_platform() -> str:
    """The platform of this process's devices."""
    name = jax.default_backend()
    if name == "gpu":
        return "rocm" if "rocm" in backend.get_backend().platform_version.lower() else "cuda"
    return name


def check_axes(x: Any, what: str) -> None:
    """Raises a ValueError for an array on a mesh with Explicit axes, as `jax.make_mesh` makes.

    Args:
      x: the array.
      what: what takes it, for the message.
    """
    sharding = jax.typeof(x).sharding
    axes = {
        axis
        for part in sharding.spec
        if part
        for axis in (part if isinstance(part, tuple) else (part,))
    }
    if axes & set(sharding.mesh.explicit_axes):
        raise ValueError(
            f"{what}: got {jax.typeof(x)}, along Explicit axes of a mesh; wanted Auto ones, as "
            'those of jax.sharding.Mesh(devices, ("data",)) or jax.make_mesh(..., '
            "axis_types=(jax.sharding.AxisType.Auto,))"
        )


def compiler_options(platform: str | None = None) -> dict[str, str | int] | None:
    """Options for `jax.jit` that make whole networks fast.

    Args:
      platform: that the program is compiled for; None is that of this process's devices.

    On a CPU, the versions of XLA below use a library whose kernel gradients are up to five times
    slower than before; an experimental option restores the older one. On CUDA, XLA lays videos
    out channels first, which makes 3-D convolutions far slower. It also computes matrix products
    without the sum and ReLU that follow, or merges several into one; the options turn these off.
    On a TPU, XLA cuts the images of small batches into pieces, as if they were more images, and
    copies the edges of each piece to the next one before every layer; the options turn this off.
    Other versions have not been tested and get no options.
    """
    if not (0, 10) <= jax.__version_info__[:2] <= (0, 12):
        return None
    own = platform or _process_platform()
    if own == "tpu":
        return {
            "xla_tpu_run_space_to_batch": False,
            "xla_tpu_run_space_to_batch_on_new_platforms": False,
        }
    if own == "cuda":
        return {
            "xla_gpu_force_conv_nhwc": True,
            "xla_gpu_enable_triton_gemm": False,
            "xla_gpu_dot_merger_threshold_mb": 0,
        }
    if own == "cpu":
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return None
