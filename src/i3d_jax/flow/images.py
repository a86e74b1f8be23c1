"""Operations of TV-L1 on images [H, W], as in OpenCV: resizing, differences, medians, warping."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

CUBIC_A = -0.75  # The free parameter of OpenCV's cubic kernel.
MARGIN = 4  # Zeros around a warped image: pixels outside are 0.


def resize(image: jax.Array, size: tuple[int, int], step: float | None = None) -> jax.Array:
    """Resizes bilinearly, with pixel centres at halves and without smoothing.

    Args:
      image: [H, W].
      size: height and width of the result.
      step: pixels of the image per pixel of the result, on both axes; None is the ratio of sizes.
    """
    for axis, (source, target) in enumerate(zip(image.shape, size, strict=True)):
        places = (np.arange(target) + 0.5) * (step or source / target) - 0.5
        floor = np.floor(places)
        before, after = (np.clip(floor + offset, 0, source - 1).astype(int) for offset in (0, 1))
        share = jnp.asarray(places - floor, image.dtype).reshape((-1, 1) if axis == 0 else (1, -1))
        image = (1 - share) * jnp.take(image, before, axis) + share * jnp.take(image, after, axis)
    return image


def central_differences(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """d/dx and d/dy; at the edges half the difference to the only neighbour."""
    wide, high = (jnp.pad(image, pads, "edge") for pads in (((0, 0), (1, 1)), ((1, 1), (0, 0))))
    return (wide[:, 2:] - wide[:, :-2]) / 2, (high[2:] - high[:-2]) / 2


def forward_differences(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """d/dx and d/dy as differences to the next pixel; 0 at the last."""
    x = jnp.pad(image[:, 1:] - image[:, :-1], ((0, 0), (0, 1)))
    y = jnp.pad(image[1:] - image[:-1], ((0, 1), (0, 0)))
    return x, y


def divergence(x: jax.Array, y: jax.Array) -> jax.Array:
    """The negative adjoint of `forward_differences`.

    Args:
      x: field along x; its last column must be 0.
      y: field along y; its last row must be 0.
    """
    return x - jnp.pad(x[:, :-1], ((0, 0), (1, 0))) + y - jnp.pad(y[:-1], ((1, 0), (0, 0)))


def median(images: jax.Array, window: int) -> jax.Array:
    """The median of each window x window neighbourhood, with repeated edges.

    Args:
      images: [..., H, W].
      window: an odd number; 1 changes nothing.
    """
    if window == 1:
        return images
    *batch, height, width = images.shape
    padded = jnp.pad(images, [(0, 0)] * len(batch) + [(window // 2, window // 2)] * 2, "edge")
    values = [
        padded[..., i : i + height, j : j + width] for i in range(window) for j in range(window)
    ]
    for low, high in median_network(window**2):
        values[low], values[high] = (
            jnp.minimum(values[low], values[high]),
            jnp.maximum(values[low], values[high]),
        )
    return values[len(values) // 2]


@functools.cache
def median_network(number: int) -> tuple[tuple[int, int], ...]:
    """A network of comparisons that moves the median of `number` values to the middle.

    It is Batcher's odd-even merge sort without the comparisons that do not affect the middle.

    Returns:
      pairs of places to sort, one after another.
    """
    pairs = []
    # Values beyond `number` count as infinite; they never move.
    power = 2 ** math.ceil(math.log2(number))
    size = 1
    while size < power:
        gap = size
        while gap:
            for start in range(gap % size, power - gap, 2 * gap):
                for low in range(start, min(start + gap, power - gap)):
                    if low // (2 * size) == (low + gap) // (2 * size) and low + gap < number:
                        pairs.append((low, low + gap))
            gap //= 2
        size *= 2
    needed, kept = {number // 2}, []
    for pair in reversed(pairs):
        if needed & set(pair):
            needed |= set(pair)
            kept.append(pair)
    return tuple(reversed(kept))


def warp(images: list[jax.Array], u: jax.Array, v: jax.Array) -> list[jax.Array]:
    """Samples the images at (x + u, y + v) by bicubic interpolation; 0 outside."""
    height, width = u.shape
    # Farther outside, too, every sample is 0.
    x = jnp.clip(jnp.arange(width, dtype=u.dtype)[None] + u, -3, width + 1)
    y = jnp.clip(jnp.arange(height, dtype=v.dtype)[:, None] + v, -3, height + 1)
    left, top = jnp.floor(x), jnp.floor(y)
    across, down = _cubic(x - left), _cubic(y - top)
    stride = width + 2 * MARGIN
    corner = (top.astype(jnp.int32) + MARGIN - 1) * stride + left.astype(jnp.int32) + MARGIN - 1

    def sampled(image: jax.Array) -> jax.Array:
        flat, total = jnp.pad(image, MARGIN).reshape(-1), jnp.zeros_like(u)
        for i in range(4):
            taps = [
                flat.at[corner + i * stride + j].get(mode="promise_in_bounds") for j in range(4)
            ]
            total += down[i] * sum(weight * tap for weight, tap in zip(across, taps, strict=True))
        return total

    return [sampled(image) for image in images]


def _cubic(t: jax.Array) -> list[jax.Array]:
    """The weights of the pixels at -1, 0, 1 and 2 for a position t in [0, 1)."""
    s = 1 - t
    before, here, there = (
        CUBIC_A * t * s * s,
        ((CUBIC_A + 2) * t - (CUBIC_A + 3)) * t * t + 1,
        ((CUBIC_A + 2) * s - (CUBIC_A + 3)) * s * s + 1,
    )
    return [before, here, there, 1 - before - here - there]
