"""TV-L1 optical flow, the paper's flow, for batches of pairs of images.

C. Zach, T. Pock, H. Bischof, A Duality Based Approach for Realtime TV-L1 Optical Flow, DAGM 2007; as in J. Sánchez,
E. Meinhardt-Llopis, G. Facciolo, TV-L1 Optical Flow Estimation, IPOL 2013, and in OpenCV's DualTVL1OpticalFlow, whose results
these are but for rounding: OpenCV warps by 1/32 of a pixel, here warping is exact.

The flow (u, v) from I0 to I1 minimises, with an auxiliary flow (u', v'),

    E = sum |grad u| + |grad v| + ((u - u')^2 + (v - v')^2) / (2 theta) + lam |rho(u', v')|                   (1)
    rho(u, v) = I1w + I1wx (u - u0) + I1wy (v - v0) - I0                                                       (2)

where I1w, I1wx, I1wy are I1 and its derivatives warped by an earlier estimate (u0, v0). In turns, for given (u, v)

    (u', v') = (u, v) + d (I1wx, I1wy),   d = -rho / |grad I1w|^2, not beyond -lam theta and lam theta         (3)

and, for given (u', v'), by the dual variables p = (p1, p2) of u, and likewise q of v,

    u <- u' + theta div p                                                                                      (4)
    p <- (p + tau/theta grad u) / (1 + tau/theta |grad u|)                                                     (5)

until the mean square of the change in (4) is below epsilon^2; coarse to fine, and warped anew several times per scale.
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

SMALLEST = 16  # Pixels: scales that are smaller are left out.
FLAT = 1e-7  # Squared gradients below it count as this: d is then without effect.


@dataclasses.dataclass(frozen=True)
class TVL1:
    """Parameters; the defaults are OpenCV's.

    Attributes:
      tau: time step of the dual variables; the scheme converges up to 0.25.
      lam: weight of the brightness against smoothness, for grey levels of 0 to 255; less is smoother.
      theta: tightness, how far the auxiliary flow may be from the flow.
      scales: at most; those with a side below 16 pixels are left out.
      scale_step: size of a scale relative to the one before, in (0, 1).
      finest: the scale to stop at, 0 being the images' own; the flow of a coarser one is enlarged.
      warps: per scale.
      epsilon: pixels, the stopping rule: root mean square of an iteration's change; 0: all iterations are made.
      outer: rounds per warp, each of which begins with medians.
      inner: iterations per round, at most.
      median: side of the window in pixels, 1, 3 or 5; 1: no filtering.
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
                (name, _counts(getattr(self, name)), "1 or more")
                for name in ("scales", "warps", "outer", "inner")
            ),
            ("tau", 0 < self.tau <= 0.25, "more than 0 and at most 0.25"),
            ("lam", self.lam > 0, "more than 0"),
            ("theta", self.theta > 0, "more than 0"),
            ("scale_step", 0 < self.scale_step < 1, "between 0 and 1"),
            ("finest", _counts(self.finest, 0) and self.finest < self.scales, "a scale, from 0 on"),
            ("epsilon", self.epsilon >= 0, "0 or more"),
            ("median", _counts(self.median) and self.median in (1, 3, 5), "1, 3 or 5"),
        ):
            if not good:
                raise ValueError(f"TV-L1: {name} is {getattr(self, name)}, wanted {wanted}")


def _counts(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and value >= least


OPENCV = TVL1()
# A third of the time: 0.05 pixels away from the other's flow in the release's sample, whose mean motion is 0.15, and 0.22 in a
# video of fast motion, 2.41; as near to the release's flow (experiments/benchmarks/flow.py).
FAST = TVL1(scale_step=0.65, warps=2, outer=2, inner=15)
PRESETS = {"opencv": OPENCV, "fast": FAST}
VERSION = 1  # Of the method; another changes flow by more than rounding.


NOTE = "flow.json"  # The file that says, with a recipe, how a folder of flow was made.


def recipe(preset: str) -> dict[str, Any]:
    """How a preset makes flow, as results note it: the method, its version, all parameters."""
    return {
        "method": "TV-L1",
        "version": VERSION,
        "preset": preset,
        **dataclasses.asdict(PRESETS[preset]),
    }


def tv_l1(first: Any, second: Any, settings: TVL1 = OPENCV) -> jax.Array:
    """Returns the optical flow from `first` to `second`: second(x + u, y + v) shows what first(x, y) does.

    A pure function, compiled once per shape; for `jit` (settings static) and `vmap` too. Pairs are independent: each stops by
    itself.

    Args:
      first, second: grey images [..., H, W] of one shape, levels 0 to 255, of any real type.
      settings: parameters.

    Returns:
      f32 [..., H, W, 2], u (to the right) and v (down) in pixels; NaN for pairs in which anything is not finite.

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
    flow = _batched(*(image.reshape(-1, height, width) for image in (first, second)), settings)
    return flow.reshape(*batch, height, width, 2)


@functools.partial(jax.jit, static_argnames="settings")
def _batched(first: jax.Array, second: jax.Array, settings: TVL1) -> jax.Array:
    # A CPU is fastest pair by pair, in its caches, each for as many iterations as it needs. Of two forms both would be traced.
    form = _one_by_one if platforms.platform() == "cpu" else _as_one_batch
    return form(settings, first, second)


def _one_by_one(settings, first, second):
    # Of what several kernels need a CPU stores as little as it can: it waits for memory.
    pair = functools.partial(_pair, settings, stored=lax.optimization_barrier)
    return lax.map(lambda both: pair(*both), (first, second))


def _as_one_batch(settings, first, second):
    return jax.vmap(functools.partial(_pair, settings, stored=lambda x: x))(first, second)


def _pair(settings: TVL1, first: jax.Array, second: jax.Array, stored: Callable) -> jax.Array:
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
            u, v = _scale(settings, firsts[scale], seconds[scale], u, v, stored)
    return jnp.where(bad, jnp.nan, jnp.stack([u, v], -1))


def scale_sizes(size: tuple[int, int], settings: TVL1) -> list[tuple[int, int]]:
    """(height, width) of the scales, from fine to coarse; the first is the images' own, however small."""
    sizes = [size]
    while len(sizes) < settings.scales:
        height, width = sizes[-1]
        smaller = round(height * settings.scale_step), round(width * settings.scale_step)
        if min(smaller) < SMALLEST:
            break
        sizes.append(smaller)
    return sizes


def _scale(settings: TVL1, first, second, u, v, stored) -> tuple[jax.Array, jax.Array]:
    """The flow at one scale, from that at the coarser one."""
    nothing = jnp.zeros_like(u)
    gradient = images.central_differences(second)

    def warped(state, _):
        u, v, *duals = state
        level, x, y = stored(tuple(images.warp([second, *gradient], u, v)))
        # Of rho (2), what does not depend on u and v.
        known = level - x * u - y * v - first
        inverse = 1 / jnp.maximum(x * x + y * y, FLAT)
        return _solve(settings, stored((x, y, known, inverse)), u, v, duals, stored), None

    state, _ = lax.scan(warped, (u, v, *[nothing] * 4), length=settings.warps)
    return state[:2]


def _solve(settings: TVL1, data, u, v, duals, stored):
    """Equations (3) to (5) until the flow moves no more: u, v and the dual variables px, py, qx, qy."""
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

    def moves(most):
        return lambda state: (state[1] > settings.epsilon**2) & (state[2] < most)

    def round_(state):
        (u, v, *duals), change, count = state
        u, v = images.median(jnp.stack([u, v]), settings.median)
        flow, change, _ = lax.while_loop(
            moves(settings.inner), iterate, ((u, v, *duals), change, 0)
        )
        return flow, change, count + 1

    start = (u, v, *duals), jnp.float32(np.inf), 0
    return lax.while_loop(moves(settings.outer), round_, start)[0]
