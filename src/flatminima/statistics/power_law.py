"""Maximum-likelihood fit of a power law to a tail whose start is chosen by the Kolmogorov-Smirnov distance.

Clauset, Shalizi & Newman 2009, "Power-law distributions in empirical data", SIAM Review 51. All candidates for the
start at once: cumulative sums give every exponent, one matrix every distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ENTRIES = 1 << 22  # candidates x values at a time


@dataclass(frozen=True)
class PowerLaw:
    """Density (alpha - 1) / x_min (x / x_min)^-alpha for x >= x_min.

    Attributes:
        alpha: exponent.  x_min: start of the tail.  tail: values in it.
        distance: largest distance of the tail's empirical distribution, at the lower side of its steps, from the fit.
        error: standard error (alpha - 1) / sqrt(tail) of alpha, x_min taken as given.
    """

    alpha: float
    x_min: float
    tail: int
    distance: float
    error: float

    @property
    def relative_error(self) -> float:
        """error / (alpha - 1) = 1 / sqrt(tail)."""
        return float(self.tail**-0.5)


def fit_power_law(values: NDArray[np.float64]) -> PowerLaw | None:
    """The power law in the tail of positive `values` (n,); None where fewer than two differ.

    Examples:
        >>> grid = (np.arange(1000) + 0.5) / 1000
        >>> found = fit_power_law((1 - grid) ** (-1 / 1.5))  # quantiles of alpha = 2.5
        >>> round(found.alpha, 1), found.distance < 0.01
        (2.5, True)
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    if n < 2 or x[0] == x[-1]:
        return None
    logs = np.log(x)
    above = np.cumsum(logs[::-1])[::-1]  # sum of ln x_j, j >= i
    tails = n - np.arange(n)
    spread = above - tails * logs  # sum of ln(x_j / x_i)
    new = np.append(True, x[1:] > x[:-1])  # the first of equal values
    starts = np.flatnonzero(new & (spread > 0))
    alphas = 1 + tails[starts] / spread[starts]
    distances = np.empty(len(starts))
    step = max(1, _ENTRIES // n)
    for first in range(0, len(starts), step):
        part = slice(first, first + step)
        distances[part] = _distances(logs, starts[part], alphas[part])
    best = int(distances.argmin())
    start, alpha = int(starts[best]), float(alphas[best])
    tail = n - start
    return PowerLaw(alpha, float(x[start]), tail, float(distances[best]), (alpha - 1) / tail**0.5)


def _distances(logs: NDArray[np.float64], starts: NDArray[np.intp], alphas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kolmogorov-Smirnov distances of the tails from logs[start] on, (len(starts),)."""
    first = int(starts[0])
    position = np.arange(first, len(logs)) - starts[:, None]  # in the tail; negative before it
    ratios = np.maximum(logs[first:] - logs[starts][:, None], 0.0)
    fitted = -np.expm1((1 - alphas[:, None]) * ratios)
    gaps = np.abs(fitted - position / (len(logs) - starts)[:, None])
    gaps[position < 0] = 0.0
    return np.asarray(gaps.max(1))
