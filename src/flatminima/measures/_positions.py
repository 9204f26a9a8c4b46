"""A mean over the labelled positions of samples, with a standard error over samples.

The value is sum_i s_i / sum_i c_i, s_i the sum over sample i's c_i positions. Positions of one sample are not
independent, so that the error is that of a ratio: residuals s_i - value c_i (Cochran 1977, sec. 2.11).
"""

from __future__ import annotations

from flatminima.estimate import Estimate
from flatminima.statistics import PositionSums


def mean_of_positions(found: PositionSums) -> Estimate:
    """The mean; details: n (samples), positions, unit, error_of.

    Examples:
        >>> import torch
        >>> print(mean_of_positions(PositionSums(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]), "token")))
        1.333 +- 0.22
    """
    share = found.counts.double() / found.counts.double().mean()
    terms = found.sums.double() / found.counts.double().mean()
    value = Estimate.mean(terms)
    if value.value is None:
        return value
    spread = Estimate.mean(terms - value.value * share).stderr
    positions = int(found.counts.sum())
    details = {"n": len(terms), "positions": positions, "unit": found.unit, "error_of": "new data"}
    return Estimate(value.value, spread, details)
