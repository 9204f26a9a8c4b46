"""Sensitivity of the predicted probabilities to the input (Jia & Su 2020, sec. 7.1)."""

from __future__ import annotations

from flatminima.core.statistic import Statistics
from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, measure, seed_of, until
from flatminima.statistics import InputJacobian


@measure
def robustness(
    minimum: Statistics, *, samples: int = 300, rtol: float | None = None, seed: int | None = None
) -> Estimate:
    """``(1/n) sum_x ||d softmax(f(x)) / dx||_2^2``, the mean squared spectral norm of the input Jacobian.

    Args:
        minimum: a Minimum.
        samples: how many at most, drawn from the data by seed.
        rtol: raise `samples` until the 95% interval is value (1 +- rtol).
        seed: of the draw; None: the Minimum's.

    Returns:
        Estimate; stderr over samples. Undefined: token inputs, not a classifier.

    Raises:
        UsageError: no samples.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 7.1: f are the probabilities, not the logits.
    """
    at_least_one(samples=samples)
    found = seed_of(minimum, seed)
    return until(rtol, samples, lambda n: Estimate.mean(minimum[InputJacobian(n, found)].square()))
