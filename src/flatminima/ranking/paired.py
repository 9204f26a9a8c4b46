"""Candidates compared on the same held-out samples: exact tests of paired errors, intervals of their difference.

McNemar's test (1947) in its exact form; Tango's score interval (1998), whose coverage is near its level where few
samples decide; both at 0.05 over the number of comparisons (Bonferroni), so that naming the best of many is paid for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import UsageError

_LEVEL = 0.05
_POWER = 0.8
_HALVINGS = 100
_FEW = 2


@dataclass(frozen=True)
class Paired:
    """Two candidates on the same samples.

    Attributes:
        first, second: their numbers.
        difference: mean loss (or error) of the second minus that of the first.
        low, high: interval of it, at 1 - 0.05 / comparisons.
        p: of no difference, times the number of comparisons, at most 1.
        only_first, only_second: samples that only the first, only the second gets wrong; None for losses.
        n: samples.
        further: samples more at which the two would be told apart with probability 0.8, if the difference is what it is
            here; 0 where they are told apart, None where there is no difference.
    """

    first: int
    second: int
    difference: float
    low: float
    high: float
    p: float
    only_first: int | None
    only_second: int | None
    n: int
    further: int | None

    @property
    def told_apart(self) -> bool:
        """Both the test and the interval exclude no difference."""
        return self.p < _LEVEL and not self.low <= 0 <= self.high


def compare_errors(wrong: Sequence[NDArray[np.bool_]]) -> list[Paired]:
    """Every pair of candidates by their errors.

    Args:
        wrong: of each candidate, (n,): which samples it gets wrong, in one order.

    Raises:
        UsageError: no samples, or lengths that differ.

    Examples:
        >>> one, other = np.zeros(100, bool), np.arange(100) < 8
        >>> found = compare_errors([one, other])[0]
        >>> round(found.p, 4), found.told_apart, found.difference
        (0.0078, True, 0.08)
    """
    pairs = _pairs(wrong)
    return [_errors(i, j, wrong[i], wrong[j], len(pairs)) for i, j in pairs]


def compare_losses(losses: Sequence[NDArray[np.float64]]) -> list[Paired]:
    """Every pair of candidates by their losses: paired t intervals and tests.

    Args:
        losses: of each candidate, (n,), in one order of the samples.

    Raises:
        UsageError: fewer than two samples, or lengths that differ.
    """
    pairs = _pairs(losses)
    return [_losses(i, j, losses[i], losses[j], len(pairs)) for i, j in pairs]


def _pairs(values: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    if len({len(v) for v in values}) != 1 or not len(values[0]):
        counts = ", ".join(str(len(v)) for v in values)
        raise UsageError(f"got {counts} samples of the candidates; give the same of each")
    return list(itertools.combinations(range(len(values)), 2))


def _errors(i: int, j: int, first: NDArray[np.bool_], second: NDArray[np.bool_], comparisons: int) -> Paired:
    from scipy.stats import binomtest

    n, b, c = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(c, b + c).pvalue) if b + c else 1.0
    alpha = _LEVEL / comparisons
    low, high = tango(c, b, n, alpha)
    found = Paired(i, j, (c - b) / n, low, high, min(1.0, p * comparisons), b, c, n, 0)
    return found if found.told_apart else _with(found, _needed((c - b) / n, (b + c) / n, alpha))


def _losses(i: int, j: int, first: NDArray[np.float64], second: NDArray[np.float64], comparisons: int) -> Paired:
    from scipy.special import ndtri, stdtr, stdtrit

    d, n, alpha = second - first, len(first), _LEVEL / comparisons
    if n < _FEW:
        raise UsageError("got 1 sample; paired losses need two and more")
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
        return Paired(i, j, mean, mean, mean, p, None, None, n, None if mean == 0 else 0)
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * error
    p = min(1.0, 2 * float(stdtr(n - 1, -abs(mean) / error)) * comparisons)
    found = Paired(i, j, mean, mean - half, mean + half, p, None, None, n, 0)
    if found.told_apart:
        return found
    z = float(ndtri(1 - alpha / 2) + ndtri(_POWER))
    return _with(found, None if mean == 0 else math.ceil((z * error * math.sqrt(n) / mean) ** 2))


def _with(found: Paired, needed: int | None) -> Paired:
    further = None if needed is None else max(needed - found.n, 1)
    return Paired(**{**vars(found), "further": further})


def tango(second: int, first: int, n: int, alpha: float) -> tuple[float, float]:
    """Score interval of the difference of two paired shares, (second - first) / n.

    All differences D at which ``|second - first - n D| <= z sqrt(n (2 q + D (1 - D)))``, q the most likely share of the
    samples that only the first gets wrong, given D.

    Args:
        second, first: samples that only the second, only the first gets wrong.
        n: samples. alpha: one minus the level.

    Source:
        Tango 1998 (Statistics in Medicine 17:891), eq. 4 to 6.

    Examples:
        >>> [round(v, 3) for v in tango(150, 86, 1600, 0.05)]
        [0.021, 0.059]
    """
    from scipy.special import ndtri

    z = float(ndtri(1 - alpha / 2))

    def excess(d: float) -> float:
        a, b = 2 * n, -second - first + (2 * n - second + first) * d
        q = (math.sqrt(max(b * b + 4 * a * first * d * (1 - d), 0.0)) - b) / (2 * a)
        spread = n * (2 * q + d * (1 - d))
        left = second - first - n * d
        if spread <= 0:
            return 0.0 if left == 0 else math.copysign(math.inf, left)
        return left / math.sqrt(spread)

    point = (second - first) / n
    return _root(lambda d: excess(d) - z, -1.0, point), _root(lambda d: excess(d) + z, point, 1.0)


def _root(function: Any, low: float, high: float) -> float:
    """Where a falling function crosses 0."""
    if not function(low) > 0:
        return low
    if not function(high) < 0:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def _needed(difference: float, discordant: float, alpha: float) -> int | None:
    """Samples at which McNemar's test at alpha finds the difference with probability 0.8.

    Source: Connor 1987 (Biometrics 43:207): ``n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2``.
    """
    from scipy.special import ndtri

    if difference == 0:
        return None
    z_a, z_b = float(ndtri(1 - alpha / 2)), float(ndtri(_POWER))
    root = z_a * math.sqrt(discordant) + z_b * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil(root**2 / difference**2)
