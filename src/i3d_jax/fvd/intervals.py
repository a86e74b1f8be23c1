"""Error bars of the Fréchet distance, and what it would be for infinitely many videos."""

from typing import NamedTuple

import numpy as np

from i3d_jax.evaluation import metrics
from i3d_jax.fvd import frechet, statistics

REPLICATES = 200


class Interval(NamedTuple):
    """How much a distance varies from one sample of videos to another of the same size.

    Attributes:
      standard_error: the standard deviation of the bootstrap's distances.
      low: lower end of the 95 % interval, distance - 1.96 standard errors; 0 at least.
      high: its upper end.
    """

    standard_error: float
    low: float
    high: float


def bootstrap(
    real: np.ndarray | statistics.Statistics,
    generated: np.ndarray | statistics.Statistics,
    ddof: int = 1,
    *,
    real_videos: np.ndarray | None = None,
    generated_videos: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """A 95 % interval of the Fréchet distance.

    Videos are drawn with replacement, as many as there are, from each set. The interval is
    centred at the distance, since a bootstrap repeats a small sample's bias on top of the
    distance's own. It says how much the distance would be another one for other videos; not how
    far it lies above that of infinitely many.

    Args:
      real: features [N, D]. `Statistics` are taken as they are, as if they had no error.
      generated: as `real`.
      ddof: see `frechet.distance`.
      real_videos: int [N], the number of each feature's video, since clips of one video are
        alike. None: every feature has its own.
      generated_videos: as `real_videos`.
      replicates: number of draws.
      seed: of the draws.

    Raises:
      ValueError: as `frechet.distance`; or both sets are `Statistics`.
    """
    given = (real, real_videos), (generated, generated_videos)
    if all(isinstance(each, statistics.Statistics) for each, _ in given):
        raise ValueError("statistics have no videos to draw from, wanted features of one set")
    value, rng = frechet.distance(real, generated, ddof), np.random.default_rng(seed)
    draws = [_Draws(each, videos, ddof) for each, videos in given]
    found = [_distance(*(each.draw(rng) for each in draws)) for _ in range(replicates)]
    error = float(np.std(found, ddof=1))
    half = metrics.NORMAL_QUANTILE * error
    return Interval(error, max(0.0, value - half), value + half)


SIZES, REPEATS = 8, 4  # Of `extrapolate`: numbers of features, and draws of each.


def extrapolate(real: np.ndarray, generated: np.ndarray, ddof: int = 1, *, seed: int = 0) -> float:
    """The Fréchet distance of infinitely many features, by a line over 1 / N.

    The distance of N features lies above that of infinitely many, by about a constant over N. As
    FVD-infinity this is Chong and Forsyth's FID-infinity (CVPR 2020): the distances of parts of
    the sets, from a quarter of the smaller set's number to all of it, lie on a line over 1 / N,
    which is followed to 0. docs/howto/fvd.md says how well it holds.

    Args:
      real: features [N, D].
      generated: features [M, D].
      ddof: see `frechet.distance`.
      seed: of the parts.

    Raises:
      ValueError: as `frechet.distance`, or a set has fewer than 8 features.
    """
    sets, rng = (
        [statistics.as_features(each) for each in (real, generated)],
        np.random.default_rng(seed),
    )
    number = min(map(len, sets))
    if number < SIZES:
        raise ValueError(f"{number} features, wanted {SIZES} at least")
    sizes = np.linspace(number / 4, number, SIZES).astype(int).repeat(REPEATS)
    found = []
    for size in sizes:
        x, y = (each[rng.permutation(len(each))[:size]] for each in sets)
        found.append(frechet.distance(x, y, ddof))
    return float(np.polyfit(1 / sizes, found, 1)[1])


class _Draws:
    """Draws samples of videos; each is a mean [D] and a covariance [D, D]."""

    def __init__(self, features: np.ndarray | statistics.Statistics, videos, ddof: int):
        self._ddof, self._fixed = ddof, None
        if isinstance(features, statistics.Statistics):
            self._fixed = features.mean, features.covariance(ddof)
            return
        self._features = statistics.as_features(features)
        number = len(self._features)
        _, self._videos = np.unique(
            np.arange(number) if videos is None else videos, return_inverse=True
        )
        if self._videos.shape != (number,):
            raise ValueError(f"{self._videos.size} numbers of videos for {number} features")

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self._fixed is not None:
            return self._fixed
        number = self._videos.max() + 1
        weights = np.bincount(rng.integers(number, size=number), minlength=number)[self._videos]
        chosen = weights > 0
        weights, rows = weights[chosen, None], self._features[chosen]
        total = weights.sum()
        mean = (weights * rows).sum(0) / total
        rest = np.sqrt(weights) * (rows - mean[None])
        return mean, rest.T @ rest / max(1, total - self._ddof)


def _distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """The Fréchet distance, faster than `frechet.distance` and exact to half the digits."""
    (mean1, covariance1), (mean2, covariance2) = first, second
    values, vectors = np.linalg.eigh(covariance1)
    root = vectors * np.sqrt(np.maximum(values, 0))
    squares = np.linalg.eigvalsh(root.T @ covariance2 @ root)
    trace = np.sqrt(np.maximum(squares, 0)).sum()
    return float(
        ((mean1 - mean2) ** 2).sum() + covariance1.trace() + covariance2.trace() - 2 * trace
    )
