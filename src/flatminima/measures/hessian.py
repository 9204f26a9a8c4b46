"""Curvature of the mean loss in one number."""

from __future__ import annotations

from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, measure, seed_of
from flatminima.statistic import Statistics
from flatminima.statistics import HessianProbes


@measure
def hessian_trace(
    minimum: Statistics, *, probes: int = 10, samples: int | None = None, seed: int | None = None
) -> Estimate:
    """Trace of the loss's Hessian by Hutchinson's estimator, ``mean_k v_k^T H v_k``, v_k of +-1 entries.

    Args:
        minimum: a Minimum.
        probes: how many v_k, one Hessian product each.
        samples: of the data, drawn by seed; None: all.
        seed: of probes and samples; None: the Minimum's.

    Returns:
        Estimate; stderr over probes, for the trace on the samples looked at.

    Raises:
        UsageError: no probes or no samples.

    Source:
        Hutchinson 1990; for equal sigma_i the curvature term of Wang et al., arXiv 1809.07402, eq. 7.
    """
    at_least_one(probes=probes, samples=samples)
    return Estimate.mean(minimum[HessianProbes(probes, samples, seed_of(minimum, seed))].traces)
