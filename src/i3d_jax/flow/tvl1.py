"""TV-L1 optical flow, the paper's flow, for batches of pairs of images.

C. Zach, T. Pock, H. Bischof, A Duality Based Approach for Realtime TV-L1 Optical Flow, DAGM 2007.
The details are those of J. Sánchez, E. Meinhardt-Llopis, G. Facciolo, TV-L1 Optical Flow
Estimation, IPOL 2013, and of OpenCV's DualTVL1OpticalFlow. Results equal OpenCV's up to rounding:
OpenCV warps by multiples of 1/32 pixel, and here warping is exact.

The flow (u, v) from I0 to I1 minimises, with an auxiliary flow (u', v'),

    E = sum |grad u| + |grad v| + ((u - u')^2 + (v - v')^2) / (2 theta) + lam |rho(u', v')|  (1)
    rho(u, v) = I1w + I1wx (u - u0) + I1wy (v - v0) - I0                                     (2)

where I1w, I1wx, I1wy are I1 and its derivatives, warped by an earlier estimate (u0, v0). Two steps
alternate. For a given (u, v),

    (u', v') = (u, v) + d (I1wx, I1wy),   d = -rho / |grad I1w|^2, within +-lam theta        (3)

and for a given (u', v'), with the dual variables p = (p1, p2) of u, and likewise q of v,

    u <- u' + theta div p                                                                    (4)
    p <- (p + tau/theta grad u) / (1 + tau/theta |grad u|)                                   (5)

until the mean square of the change in (4) is below epsilon^2. This runs from coarse to fine scales,
with several warps per scale.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from i3d_jax.flow import images
from i3d_jax.models import platforms

MIN_SIDE = 16  # Pixels; smaller scales are left out.
MIN_SQUARED_GRADIENT = 1e-7  # Smaller ones count as this; d then has no effect.


@dataclasses.dataclass(frozen=True)
class TVL1:
    """Parameters of TV-L1; the defaults are OpenCV's.

    Attributes:
      tau: time step of the dual variables; the scheme converges up to 0.25.
      lam: weight of brightness against smoothness, for grey levels of 0 to 255; less is smoother.
      theta: how far the auxiliary flow may be from the flow.
      scales: most scales; those with a side below 16 pixels are left out.
      scale_step: size of a scale relative to the finer one, in (0, 1).
      finest: the scale to stop at; 0 is full size. The flow of a coarser scale is enlarged.
      warps: warps per scale.
      epsilon: iterations stop when the root mean square of a change is below this many pixels; 0
        never stops early.
      outer: most outer iterations per warp; each begins with medians.
      inner: most inner iterations per outer one.
      median: side of the median's window in pixels: 1 (no filter), 3 or 5.
    """

    tau: float = 0.25
    lam: float = 0.15
    theta: float = 0.3
    scales: int = 5
    scale_step: float = 0.8
    finest: int = 0
    warps: int = 5
    epsilon: float = 0.01
    outer: int = 10
    inner: int = 30
    median: int = 5

    def __post_init__(self):
        for name, good, wanted in (
            *(
                (name, _is_integer(getattr(self, name)), "1 or more")
                for name in ("scales", "warps", "outer", "inner")
            ),
            ("tau", 0 < self.tau <= 0.25, "more than 0 and at most 0.25"),
            ("lam", self.lam > 0, "more than 0"),
            ("theta", self.theta > 0, "more than 0"),
            ("scale_step", 0 < self.scale_step < 1, "between 0 and 1"),
            (
                "finest",
                _is_integer(self.finest, 0) and self.finest < self.scales,
                "a scale, from 0 on",
            ),
            ("epsilon", self.epsilon >= 0, "0 or more"),
            ("median", _is_integer(self.median) and self.median in (1, 3, 5), "1, 3 or 5"),
        ):
            if not good:
                raise ValueError(f"TV-L1: {name} is {getattr(self, name)}, wanted {wanted}")


def _is_integer(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and value >= least


OPENCV = TVL1()
# Takes a third of the time. In the release's sample (mean motion 0.15 px) it differs from OPENCV by
# 0.05 px, and in a video of fast motion (2.41 px) by 0.22 px. It is as near to the release's flow
# (experiments/benchmarks/flow.py).
FAST = TVL1(scale_step=0.65, warps=2, outer=2, inner=15)
PRESETS = {"opencv": OPENCV, "fast": FAST}
VERSION = 1  # Of the method; increased when results change by more than rounding.


RECIPE_FILE = "flow.json"  # The file in a folder of flow with its recipe.


def recipe(preset: str) -> dict[str, Any]:
    """How a preset makes flow, for `RECIPE_FILE`: the method, its version, all parameters."""
    return {
        "method": "TV-L1",
        "version": VERSION,
        "preset": preset,
        **dataclasses.asdict(PRESETS[preset]),
    }


def tv_l1(first: Any, second: Any, settings: TVL1 = OPENCV) -> jax.Array:
    """Returns the optical flow from `first` to `second`: second(x + u, y + v) = first(x, y).

    It is a pure function, compiled once per shape; it works under `vmap` and `jit` (with static
    `settings`). Pairs are independent: each stops by itself.

    Args:
      first: grey images [..., H, W], levels 0 to 255, of any real type.
      second: images of the same shape.
      settings: the parameters.

    Returns:
      f32 [..., H, W, 2], u (to the right) and v (down) in pixels; NaN for a pair that has a
      value which is not finite.

    Raises:
      ValueError: the shapes differ, or these are no grey images.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"TV-L1: images of shapes {np.shape(first)} and {np.shape(second)}, wanted the same"
        )
    if np.ndim(first) < 2 or 0 in np.shape(first)[-2:]:
        raise ValueError(f"TV-L1: images of shape {np.shape(first)}, wanted [..., H, W]")
    if jnp.iscomplexobj(first) or jnp.iscomplexobj(second):
        raise ValueError("TV-L1: images of complex numbers, wanted real ones")
    first, second = (jnp.asarray(image, jnp.float32) for image in (first, second))
    for image in first, second:
        platforms.check_axes(image, "TV-L1")
    *batch, height, width = first.shape
    flow = _flow_of_batch(
        *(image.reshape(-1, height, width) for image in (first, second)), settings
    )
    return flow.reshape(*batch, height, width, 2)


@functools.partial(jax.jit, static_argnames="settings")
def _flow_of_batch(first: jax.Array, second: jax.Array, settings: TVL1) -> jax.Array:
    # A CPU is fastest pair by pair, within its caches, with as many iterations as each pair needs.
    # The choice is made here, since `lax.platform_dependent` would trace both forms.
    form = _one_by_one if platforms.platform() == "cpu" else _as_one_batch
    return form(settings, first, second)


def _one_by_one(settings, first, second):
    # A CPU waits for memory; the barriers make XLA store few intermediate results.
    pair = functools.partial(_flow_of_pair, settings, stored=lax.optimization_barrier)
    return lax.map(lambda both: pair(*both), (first, second))


def _as_one_batch(settings, first, second):
    return jax.vmap(functools.partial(_flow_of_pair, settings, stored=lambda x: x))(first, second)


def _flow_of_pair(
    settings: TVL1, first: jax.Array, second: jax.Array, stored: Callable
) -> jax.Array:
    """The flow of one pair, scale by scale; `stored` marks intermediate results to store."""
    bad = ~jnp.isfinite(first).all() | ~jnp.isfinite(second).all()
    height, width = first.shape
    sizes = scale_sizes((height, width), settings)
    firsts, seconds = ([jnp.where(bad, 0, image)] for image in (first, second))
    for size in sizes[1:]:
        for pyramid in firsts, seconds:
            pyramid.append(images.resize(pyramid[-1], size, 1 / settings.scale_step))
    u = v = jnp.zeros(sizes[-1], jnp.float32)
    for scale in reversed(range(len(sizes))):
        if scale < len(sizes) - 1:
            u, v = (images.resize(each, sizes[scale]) / settings.scale_step for each in (u, v))
        if scale >= min(settings.finest, len(sizes) - 1):
            u, v = _flow_at_scale(settings, firsts[scale], seconds[scale], u, v, stored)
    return jnp.where(bad, jnp.nan, jnp.stack([u, v], -1))


def scale_sizes(size: tuple[int, int], settings: TVL1) -> list[tuple[int, int]]:
    """Height and width of the scales, from fine to coarse; the first is the images' own."""
    sizes = [size]
    while len(sizes) < settings.scales:
        height, width = sizes[-1]
        smaller = round(height * settings.scale_step), round(width * settings.scale_step)
        if min(smaller) < MIN_SIDE:
            break
        sizes.append(smaller)
    return sizes


def _flow_at_scale(settings: TVL1, first, second, u, v, stored) -> tuple[jax.Array, jax.Array]:
    """The flow at one scale, from the flow of the coarser one."""
    nothing = jnp.zeros_like(u)
    gradient = images.central_differences(second)

    def warped(state, _):
        u, v, *duals = state
        level, x, y = stored(tuple(images.warp([second, *gradient], u, v)))
        # The part of rho (2) that does not depend on u and v.
        known = level - x * u - y * v - first
        inverse = 1 / jnp.maximum(x * x + y * y, MIN_SQUARED_GRADIENT)
        return _solve(settings, stored((x, y, known, inverse)), u, v, duals, stored), None

    state, _ = lax.scan(warped, (u, v, *[nothing] * 4), length=settings.warps)
    return state[:2]


def _solve(settings: TVL1, data, u, v, duals, stored):
    """Iterates equations (3) to (5) until the flow converges; returns u, v, px, py, qx, qy."""
    x, y, known, inverse = data
    bound, step, theta = (
        settings.lam * settings.theta,
        settings.tau / settings.theta,
        settings.theta,
    )

    def iterate(state):
        (u, v, px, py, qx, qy), _, count = state
        d = jnp.clip(-(known + x * u + y * v) * inverse, -bound, bound)  # (3)
        new_u = u + d * x + theta * images.divergence(px, py)  # (4)
        new_v = v + d * y + theta * images.divergence(qx, qy)
        change = jnp.square(new_u - u) + jnp.square(new_v - v)
        duals = (*dual(new_u, px, py), *dual(new_v, qx, qy))
        return (new_u, new_v, *duals), change.mean(), count + 1

    def dual(u, px, py):  # (5)
        ux, uy = images.forward_differences(u)
        shrunk = stored(1 / (1 + step * jnp.sqrt(ux * ux + uy * uy)))
        ux, uy = images.forward_differences(stored(u))
        return (px + step * ux) * shrunk, (py + step * uy) * shrunk

    def unconverged(most):
        return lambda state: (state[1] > settings.epsilon**2) & (state[2] < most)

    def outer_iteration(state):
        (u, v, *duals), change, count = state
        u, v = images.median(jnp.stack([u, v]), settings.median)
        flow, change, _ = lax.while_loop(
            unconverged(settings.inner), iterate, ((u, v, *duals), change, 0)
        )
        return flow, change, count + 1

    start = (u, v, *duals), jnp.float32(np.inf), 0
    return lax.while_loop(unconverged(settings.outer), outer_iteration, start)[0]
