"""Curvature of the mean loss in one number."""

from __future__ import annotations

from flatminima.estimate import Estimate
from flatminima.measures._measure import measure
from flatminima.statistic import Statistics
from flatminima.statistics import HessianProbes


@measure
def hessian_trace(minimum: Statistics, *, probes: int = 10, samples: int | None = None, seed: int = 0) -> Estimate:
    """Trace of the loss's Hessian by Hutchinson's estimator, ``mean_k v_k^T H v_k``, v_k of +-1 entries.

    Args:
        minimum: a Minimum.
        probes: how many v_k, one Hessian product each.
        samples: of the data, drawn by seed; None: all.
        seed: of probes and samples.

    Returns:
        Estimate; stderr over probes.
    """
    return Estimate.mean(minimum[HessianProbes(probes, samples, seed)].traces)
