"""Sensitivity of the predicted probabilities to the input (Jia & Su 2020, sec. 7.1)."""

from __future__ import annotations

from flatminima.estimate import Estimate
from flatminima.measures._measure import measure
from flatminima.statistic import Statistics
from flatminima.statistics import InputJacobian


@measure
def robustness(minimum: Statistics, *, samples: int = 1000, seed: int = 0) -> Estimate:
    """``(1/n) sum_x ||d softmax(f(x)) / dx||_2^2``, the mean squared spectral norm of the input Jacobian.

    Args:
        minimum: a Minimum.
        samples: drawn from the data by seed.
        seed: of the draw.

    Returns:
        Estimate; stderr over samples. Undefined: token inputs, not a classifier.
    """
    return Estimate.mean(minimum[InputJacobian(samples, seed)].square())
