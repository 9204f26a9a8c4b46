"""Curvature of the mean loss in one number."""

from __future__ import annotations

from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, measure, seed_of
from flatminima.statistic import Statistics
from flatminima.statistics import HessianProbes, TopEigenvalues


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


@measure
def hessian_top_eigenvalue(
    minimum: Statistics,
    *,
    samples: int | None = 1000,
    k: int = 1,
    tolerance: float = 1e-3,
    seed: int | None = None,
) -> Estimate:
    """Largest eigenvalue of the loss's Hessian, by implicitly restarted Lanczos (ARPACK).

    Args:
        minimum: a Minimum.
        samples: of the data, drawn by seed; None: all.
        k: how many of the largest to find; the others are in the details.
        tolerance: residual relative to the largest at which an eigenvalue counts as converged, in (0, 1).
        seed: of samples and starting vector; None: the Minimum's.

    Returns:
        Estimate, for the samples looked at (no standard error); details: eigenvalues, residuals, products.
        Undefined: what has not converged is never returned as a number.

    Raises:
        UsageError: k or samples below 1, a tolerance outside (0, 1).

    Source:
        Keskar et al. 2017; in the bound of Wang et al., arXiv 1809.07402, Lemma 5 (eq. 24).
    """
    at_least_one(samples=samples, k=k)
    found = minimum[TopEigenvalues(k, samples, tolerance, seed_of(minimum, seed))]
    details = {"eigenvalues": found.values.tolist(), "residuals": found.residuals.tolist(), "products": found.products}
    return Estimate(float(found.values[0]), details=details)
