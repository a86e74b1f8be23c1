"""Means and covariances of features, in float64, streamed and merged."""

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """The number, mean and scatter of some features [N, D].

    Attributes:
      number: N.
      mean: float64 [D].
      scatter: float64 [D, D], the sum over features of the outer product of what is left after
        the mean has been subtracted. The covariance is scatter / (N - ddof).
    """

    number: int
    mean: np.ndarray
    scatter: np.ndarray

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """The covariance [D, D].

        Args:
          ddof: 1 divides by N - 1, 0 by N.
        """
        return self.scatter / (self.number - ddof)


def empty(dimensions: int) -> Statistics:
    """The statistics of no features."""
    return Statistics(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))


def of(features: np.ndarray) -> Statistics:
    """The statistics of features [N, D]."""
    features = as_features(features)
    mean = features.mean(0)
    rest = features - mean[None]
    return Statistics(len(features), mean, rest.T @ rest)


def merge(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both sets together (Chan, Golub and LeVeque, 1979).

    Raises:
      ValueError: the features have different numbers of dimensions.
    """
    if first.mean.shape != second.mean.shape:
        sizes = f"{first.mean.size} and {second.mean.size}"
        raise ValueError(f"statistics of {sizes} dimensions, wanted the same number")
    count = first.number + second.number
    if count == 0:
        return first
    apart = second.mean - first.mean
    mean = first.mean + apart * (second.number / count)
    between = np.outer(apart, apart) * (first.number * second.number / count)
    return Statistics(count, mean, first.scatter + second.scatter + between)


def as_features(features: np.ndarray) -> np.ndarray:
    """Features as float64.

    Raises:
      ValueError: they are not finite numbers [N, D] with one row at least.
    """
    found = np.asarray(features, np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"features of shape {found.shape}, wanted [N, D], one row at least")
    if not np.isfinite(found).all():
        row = int(np.argmax(~np.isfinite(found).all(1)))
        raise ValueError(f"features: row {row} is not finite")
    return found
