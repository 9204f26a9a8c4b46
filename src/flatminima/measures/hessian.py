"""Curvature of the mean loss in one number."""

from __future__ import annotations

import math
from typing import Literal, get_args

from flatminima.core.statistic import Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._groups import error_of, groups_of_layers, mean_of_groups, of_repeats, traces_of_layers
from flatminima.measures._layers import with_layers, without_error
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.statistics import Curvature, ExactTraces, GroupTraces, HessianProbes, SketchedTraces, TopEigenvalues

TraceEstimator = Literal["hutchinson", "hutch++", "xtrace", "exact"]


@catalogued_measure
def hessian_trace(
    minimum: Statistics,
    *,
    curvature: Curvature = "hessian",
    estimator: TraceEstimator = "hutchinson",
    probes: int = 2,
    groups: int = 50,
    samples: int | None = 1000,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """Trace of the loss's Hessian, by default from Hutchinson's ``v^T C_g v`` over groups g of samples.

    v has +-1 entries, C_g is the curvature of group g's mean loss. Traces add over samples, so probes of its own for
    each group cost what shared ones cost and vary less.

    Args:
        minimum: a Minimum.
        curvature: "hessian", or "gauss_newton" (J^T H J, never negative; equal for piecewise-linear networks).
        estimator: "hutchinson"; "hutch++" and "xtrace" (probes >= 6 products a group; exact where few eigenvalues are
            not 0, worth it for few groups); "exact", sample by sample in one backward pass a class, of "gauss_newton",
            or of "hessian" for piecewise-linear networks.
        probes: how many v a group, one product each.
        groups: of (nearly) equal size; 1: the same probes for all samples.
        samples: of the data, drawn by seed; None: all.
        rtol: raise samples and groups, then probes, until the 95% interval is value (1 +- rtol).
        seed: of probes and samples; None: the Minimum's.

    Returns:
        Estimate of the trace over all the data; stderr covers the draw of samples and of probes (None with one probe
        in one group, or one group of part of the data; of xtrace, the groups' spread alone). details: samples, groups,
        layers and layer_stderrs (the trace of each parameter's diagonal block, by name; they add up to the value).
        Undefined: "exact" for the Hessian of a network that is not piecewise linear.

    Raises:
        UsageError: a count below 1, an unknown curvature or estimator, rtol where nothing is drawn.

    Source:
        Hutchinson 1990; Meyer et al. 2021; Epperly, Tropp & Webber 2024; for equal sigma_i the curvature term of Wang
        et al., arXiv 1809.07402, eq. 7.
    """
    at_least_one(probes=probes, groups=groups, samples=samples)
    _check_estimator(estimator, rtol)
    seed, population = seed_of(minimum, seed), math.inf

    def estimate(k: int) -> Estimate:
        nonlocal population
        repeats, wanted, parts = _enlarged(k, probes, groups, samples, population)
        if estimator == "hutch++" or estimator == "xtrace":
            sketched = minimum[SketchedTraces(estimator, repeats, wanted, parts, seed, curvature)]
            population = sketched.population
            return _told(sketched)
        probed = minimum[HessianProbes(repeats, wanted, seed, curvature, parts)]
        population = probed.population
        trace = of_repeats(probed.traces, probed.sizes, probed.population)
        trace = trace.with_details(error_of=error_of(trace, probed.population))
        return with_layers(trace, traces_of_layers(probed))

    if estimator == "exact":
        return _told(minimum[ExactTraces(samples, seed, curvature)], exact=True)
    return until(rtol, groups, estimate)


def _told(found: GroupTraces, exact: bool = False) -> Estimate:
    """The mean of the groups, with that of each parameter's block."""
    trace = mean_of_groups(found.values, found.sizes, found.population, found.variances)
    trace = trace.with_details(error_of=error_of(trace, found.population, exact))
    trace = with_layers(trace, groups_of_layers(found))
    return without_error(trace) if trace.details["error_of"] == "exact" else trace


def _check_estimator(estimator: str, rtol: float | None) -> None:
    if estimator not in get_args(TraceEstimator):
        raise UsageError(f"got estimator={estimator!r}; expected one of {', '.join(get_args(TraceEstimator))}")
    if estimator == "exact" and rtol is not None:
        raise UsageError("got rtol with estimator='exact', which draws no probes: raise samples instead")


def _enlarged(k: int, probes: int, groups: int, samples: int | None, population: float) -> tuple[int, int | None, int]:
    """(probes, samples, groups): k groups while there are samples for them, then more probes in each."""
    if samples is None:
        return math.ceil(probes * k / groups), None, groups
    wanted = samples * k // groups
    if wanted <= population:
        return probes, wanted, k
    most = max(groups, int(groups * population / samples))
    return math.ceil(probes * k / most), None, most


@catalogued_measure
def hessian_top_eigenvalue(
    minimum: Statistics,
    *,
    curvature: Curvature = "hessian",
    samples: int | None = 250,
    k: int = 1,
    tolerance: float = 1e-3,
    seed: int | None = None,
) -> Estimate:
    """Largest eigenvalue of the loss's Hessian, by thick-restart Lanczos with full reorthogonalisation.

    Args:
        minimum: a Minimum.
        curvature: "hessian", or "gauss_newton" (J^T H J).
        samples: of the data, drawn by seed; None: all.
        k: how many of the largest to find; the others are in the details.
        tolerance: residual relative to the largest at which an eigenvalue counts as converged, in (0, 1); float32 takes
            at least 1.2e-5 (100 roundings).
        seed: of samples and starting vector; None: the Minimum's.

    Returns:
        Estimate; stderr over samples to first order, from v^T C_g v of the eigenvector v over groups g of samples (none
        where all were looked at). The largest eigenvalue of a part is larger than that of the whole in the mean.
        details: eigenvalues, residuals (||C v - lambda v||, never assumed), unconverged (how many of the k have no
        number), products. Undefined: the largest has not converged, or is lost in the rounding of larger ones below 0.

    Raises:
        UsageError: k or samples below 1, a tolerance outside (0, 1), an unknown curvature.

    Source:
        Keskar et al. 2017; in the bound of Wang et al., arXiv 1809.07402, Lemma 5 (eq. 24).
    """
    at_least_one(samples=samples, k=k)
    found = minimum[TopEigenvalues(k, samples, tolerance, seed_of(minimum, seed), curvature)]
    spread = mean_of_groups(found.forms, found.sizes, found.population, found.forms * 0)
    whole = int(found.sizes.sum()) == found.population
    return Estimate(
        float(found.values[0]),
        None if whole else spread.stderr,
        details={
            "error_of": "exact" if whole else "data",
            "eigenvalues": found.values.tolist(),
            "residuals": found.residuals.tolist(),
            "unconverged": len(found.missing),
            "products": found.products,
            "samples": int(found.sizes.sum()),
        },
    )
