"""Kernel distances of two sets of features: KVD, and JEDi's kernel on these features."""

from typing import NamedTuple

import numpy as np

from i3d_jax.fvd import statistics

BLOCK = 1024  # Features; TensorFlow-GAN's.


class KernelDistance(NamedTuple):
    """A kernel distance.

    Attributes:
      distance: the mean over blocks.
      standard_error: of this mean; None if there is one block.
      blocks: number of blocks.
    """

    distance: float
    standard_error: float | None
    blocks: int


def kernel_distance(
    real: np.ndarray, generated: np.ndarray, block: int = BLOCK, seed: int = 0
) -> KernelDistance:
    """The Kernel Video Distance (Unterthiner et al. 2018): the unbiased squared MMD.

    The kernel is (x . y / D + 1)^3. Sets are shuffled and cut into blocks, and the distance is
    the mean over these, as in TensorFlow-GAN. It is not multiplied by 1,000, as KID often is, and
    may be negative.

    Args:
      real: [N, D], N >= 2.
      generated: [M, D], M >= 2.
      block: most features of a block.
      seed: of the shuffle; a set that fits into one block does not depend on it.

    Raises:
      ValueError: a set has fewer than two features, or values that are not finite.
    """
    sets = [statistics.as_features(each) for each in (real, generated)]
    least = min(map(len, sets))
    if least < 2:
        raise ValueError(f"{least} features have no kernel distance, wanted 2 at least")
    blocks = min(-(-max(map(len, sets)) // block), least // 2)
    rng = np.random.default_rng(seed)
    parts = [np.array_split(each[rng.permutation(len(each))], blocks) for each in sets]
    found = [squared_mmd(x, y) for x, y in zip(*parts, strict=True)]
    error = float(np.std(found, ddof=1) / np.sqrt(blocks)) if blocks > 1 else None
    return KernelDistance(float(np.mean(found)), error, blocks)


def squared_mmd(
    x: np.ndarray,
    y: np.ndarray,
    degree: int = 3,
    offset: float = 1.0,
    unbiased: bool = True,
) -> float:
    """The squared maximum mean discrepancy with the kernel (x . y / D + offset)^degree.

    JEDi (Luo et al. 2024) is 100 times this with degree 2, offset 0 and biased, on its own
    network's features.

    Args:
      x: [N, D].
      y: [M, D].
      degree: of the polynomial.
      offset: of the polynomial.
      unbiased: leaves out the products of a feature with itself.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + offset) ** degree

    def within(a: np.ndarray) -> float:
        products, count = kernel(a, a), len(a)
        if not unbiased:
            return float(products.mean())
        return float((products.sum() - products.trace()) / (count * (count - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())
