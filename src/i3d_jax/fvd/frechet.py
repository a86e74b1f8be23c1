"""The Fréchet distance of two sets of features (Heusel et al. 2017; Unterthiner et al. 2018).

It is |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), with the sets' means m and covariances C.
If F1 and F2 are factors of the covariances, F.T @ F = C, the last trace is the nuclear norm of
F1 @ F2.T: the sum of its singular values. No matrix root is taken, and nothing is squared twice.
All of it is float64.
"""

from typing import NamedTuple

import numpy as np

from i3d_jax.fvd import statistics
from i3d_jax.fvd.statistics import Statistics

Set = np.ndarray | Statistics


class Terms(NamedTuple):
    """A Fréchet distance, and its two terms.

    Attributes:
      distance: the sum of the terms.
      means: the squared distance of the means.
      covariances: the term of the covariances.
    """

    distance: float
    means: float
    covariances: float


def distance(real: Set, generated: Set, ddof: int = 1) -> float:
    """The Fréchet distance of two sets of features.

    Args:
      real: [N, D], or `Statistics`. FVD takes the logits of `fvd.features`.
      generated: [M, D], or `Statistics`.
      ddof: 1 divides covariances by N - 1, as the reference does; 0 by N.

    Raises:
      ValueError: a set has fewer than two features, values that are not finite, or another number
        of dimensions; or `ddof` is neither 0 nor 1.
    """
    return terms(real, generated, ddof).distance


def terms(real: Set, generated: Set, ddof: int = 1) -> Terms:
    """The distance with its terms; see `distance`."""
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof!r}, wanted 0 or 1")
    (mean1, factor1), (mean2, factor2) = (
        _mean_and_factor(each, ddof) for each in (real, generated)
    )
    if mean1.size != mean2.size:
        raise ValueError(f"features of {mean1.size} and of {mean2.size} dimensions")
    means = float(((mean1 - mean2) ** 2).sum())
    root = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    traces = (factor1**2).sum() + (factor2**2).sum()
    # Rounding must not make it negative.
    covariances = max(0.0, float(traces - 2 * root))
    return Terms(means + covariances, means, covariances)


def _mean_and_factor(features: Set, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D], and a factor F [R, D] of the covariance, F.T @ F, with R up to D."""
    if not isinstance(features, Statistics):
        features = statistics.as_features(features)
    count = features.number if isinstance(features, Statistics) else len(features)
    if count < 2:
        raise ValueError(f"{count} features have no covariance, wanted 2 at least")
    if isinstance(features, Statistics):
        return features.mean, _factor(features.covariance(ddof))
    mean = features.mean(0)
    rest = (features - mean[None]) / np.sqrt(count - ddof)
    # The triangular factor of a QR decomposition has the same product, and is no larger than D.
    return mean, rest if count <= mean.size else np.asarray(np.linalg.qr(rest, mode="r"))


def _factor(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    # The eigenvalues of a singular covariance are rounding errors, whose roots would not be small.
    tiny = values[-1] * len(values) * np.finfo(np.float64).eps
    return np.sqrt(np.where(values > tiny, values, 0))[:, None] * vectors.T
