"""The largest of many values from some of them: Hill's estimator of the tail, extrapolated (Hill 1975, Weissman 1978).

Above a threshold u that j of k samples exceed, the logarithm of a heavy-tailed constant is exponential,

    P(x > u + t) = (j / k) exp(-t / s),     s the mean excess over u;

the largest of the n - k samples that were not looked at is then Gumbel's. With a prior 1/s the posterior of s is known,
and what is predicted for all n is the larger of the two maxima: the one that was seen, and this.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UPPER = 0.95  # quantile of the prediction: below the least there is nothing, so one side of the interval has all
_GRID = 200  # points of the posterior of s


def predicted_maximum(logs: Tensor, population: int) -> tuple[float, float]:
    """Median and upper quantile of the maximum over the population.

    Args:
        logs (k,): of samples drawn without replacement, k at most `population`.
        population: n.

    Examples:
        >>> predicted_maximum(torch.tensor([0.0, 2.0, 1.0]), 3)
        (2.0, 2.0)
    """
    k = len(logs)
    ordered = logs.double().sort(descending=True).values
    seen = float(ordered[0])
    if k >= population:
        return seen, seen
    if k == 1:
        return seen, math.inf
    j = min(k - 1, max(1, round(2 * math.sqrt(k))))
    threshold = float(ordered[j])
    excess = float((ordered[:j] - threshold).mean())
    if excess == 0:  # the samples agree
        return seen, seen
    probabilities = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    scales = j * excess / _gamma_quantiles(j, probabilities)
    unseen = (population - k) * j / k
    median, upper = (_quantile(q, threshold, scales, unseen) for q in (0.5, UPPER))
    return max(seen, median), max(seen, upper)


def _quantile(q: float, threshold: float, scales: Tensor, expected: float) -> float:
    """Where the mean over scales of exp(-expected exp(-(x - threshold) / scale)) is q, by bisection."""
    low, high = threshold, threshold + float(scales.max()) * (math.log(max(expected, 1.0)) + 50)
    for _ in range(100):
        middle = (low + high) / 2
        below = (-expected * (-(middle - threshold) / scales).exp()).exp().mean()
        low, high = (middle, high) if float(below) < q else (low, middle)
    return (low + high) / 2


def _gamma_quantiles(shape: int, probabilities: Tensor) -> Tensor:
    from scipy.special import gammaincinv

    return torch.from_numpy(gammaincinv(shape, probabilities.numpy()))
