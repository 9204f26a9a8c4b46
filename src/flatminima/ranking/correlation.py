"""Kendall's rank correlation with a bootstrap interval over networks.

tau-b (Kendall 1945): concordant minus discordant pairs over the geometric mean of the pairs untied in each variable.
The bootstrap resamples networks, not pairs; pairs of a network with its own copy are ties in both and drop out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import UsageError

_FEWEST = 3  # networks; two can only agree or disagree
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau-b between two orders of the same networks.

    Attributes:
        tau: in [-1, 1]; None when undefined.
        low, high: percentile bootstrap interval at `confidence`; None when undefined.
        networks: how many pairs of values went in.
        confidence: of the interval.
        undefined: why there is no tau.
    """

    tau: float | None
    low: float | None
    high: float | None
    networks: int
    confidence: float = 0.95
    undefined: str | None = None


def kendall(values: Sequence[float], gaps: Sequence[float], *, seed: int = 0, confidence: float = 0.95) -> Correlation:
    """Kendall's tau-b of `values` and `gaps` with a percentile bootstrap interval.

    Args:
        values, gaps: finite, one of each a network.
        seed: of the 2,000 bootstrap resamples.
        confidence: in (0, 1).

    Returns:
        Correlation; undefined for fewer than 3 networks or where one side is constant.

    Raises:
        UsageError: lengths differ, a value that is not finite, confidence outside (0, 1).

    Examples:
        >>> kendall([1, 2, 3, 4], [1, 2, 4, 3]).tau
        0.6666666666666666
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise UsageError(f"got {x.size} values for {y.size} gaps; give one of each a network")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("got NaN or Inf among values or gaps; leave such networks out")
    if not 0 < confidence < 1:
        raise UsageError(f"got confidence={confidence!r}; it must lie in (0, 1)")
    n = len(x)
    if n < _FEWEST:
        return Correlation(None, None, None, n, confidence, f"{n} networks have a value, {_FEWEST} are needed")
    for name, side in (("values", x), ("gaps", y)):
        if (side == side[0]).all():
            return Correlation(None, None, None, n, confidence, f"all {name} are equal")
    sx, sy = _signs(x), _signs(y)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)  # (resamples, n)
    taus = _tau(counts, sx, sy)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(taus, [tail, 100 - tail])
    tau = float(_tau(np.ones((1, n)), sx, sy)[0])
    return Correlation(tau, float(low), float(high), n, confidence)


def _signs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values[:, None] - values[None, :])


def _tau(counts: NDArray[np.float64], sx: NDArray[np.float64], sy: NDArray[np.float64]) -> NDArray[np.float64]:
    """tau-b of each resample: network i counted counts[r, i] times, so pair (i, j) counts[r, i] counts[r, j] times."""
    agree, untied_x, untied_y = (_pairs(counts, m) for m in (sx * sy, sx * sx, sy * sy))
    scale = np.sqrt(untied_x * untied_y)
    return np.divide(agree, scale, out=np.full_like(agree, np.nan), where=scale > 0)


def _pairs(counts: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(((counts @ matrix) * counts).sum(1))
