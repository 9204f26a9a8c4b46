"""Measures of the whole spectrum of the curvature, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flatminima.core.statistic import Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of
from flatminima.statistics import Curvature, SpectralDensity, Spectrum

_POINTS = 201  # of the density's grid
_DROWNED = 1e-3  # of the largest eigenvalue's rounding: a prior below it, and rounding alone decides what is counted
_WIDTH = 0.01  # of its Gaussians, relative to the spectrum's


@catalogued_measure
def effective_dimension(
    minimum: Statistics,
    *,
    prior_precision: float = 1.0,
    curvature: Curvature = "gauss_newton",
    probes: int = 4,
    steps: int = 30,
    samples: int | None = 500,
    seed: int | None = None,
) -> Estimate:
    """Directions that the data determines: ``N_eff = sum_i n lambda_i / (n lambda_i + alpha)``.

    lambda_i are the eigenvalues of the mean loss's curvature (those below 0 count as 0), n the number of samples there
    are, so that n lambda_i are those of the log-likelihood, alpha the precision of a Gaussian prior on the weights.

    Args:
        minimum: a Minimum.
        prior_precision: alpha, positive.
        curvature: "gauss_newton" (no negative eigenvalue) or "hessian".
        probes: random vectors, `steps` + 1 products each.
        steps: of Lanczos; the quadrature is exact for polynomials of degree 2 steps - 1 and too large otherwise.
        samples: of the data, drawn by seed; None: all. The curvature of a part has fewer large eigenvalues than that
            of the whole: compare networks at equal `samples`.
        seed: of samples and probes; None: the Minimum's.

    Returns:
        Estimate; stderr over probes and, to first order, over samples (None for one probe). details: parameters,
        largest and smallest (Ritz values, inside the spectrum), density (grid, values, stderr over probes, width).
        Undefined: alpha / n is far below the rounding of the largest eigenvalue.

    Raises:
        UsageError: a count below 1, alpha not positive, an unknown curvature.

    Source:
        MacKay 1992, Bayesian Interpolation (there gamma); Maddox, Benton & Wilson 2020, arXiv 2003.02139 (N_eff).
    """
    at_least_one(probes=probes, steps=steps, samples=samples)
    if not 0 < prior_precision < math.inf:
        raise UsageError(f"got prior_precision={prior_precision!r}; it must be positive and finite")
    found = minimum[SpectralDensity(probes, steps, samples, seed_of(minimum, seed), curvature)]
    scale = prior_precision / found.population
    if scale < _DROWNED * found.rounding:
        return Estimate.missing(
            f"eigenvalues of alpha/n = {scale:.2g} drown in the rounding of the largest ({found.rounding:.2g}): "
            "measure in float64, with model.double(), or scale the features"
        )

    def determined(x: Tensor) -> Tensor:
        return x.clamp_min(0) / (x.clamp_min(0) + scale)

    def slope(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale / (x.clamp_min(0) + scale).square(), 0.0)

    return _estimate(found, float(found.trace(determined).mean()), found.variances(determined, slope))


@catalogued_measure
def negative_curvature(
    minimum: Statistics,
    *,
    probes: int = 4,
    steps: int = 30,
    samples: int | None = 500,
    seed: int | None = None,
) -> Estimate:
    """Share of the Hessian's spectrum below 0: ``sum_i max(-lambda_i, 0) / sum_i |lambda_i|``, 0 at a minimum.

    Args:
        minimum: a Minimum.
        probes: random vectors, `steps` + 1 Hessian products each.
        steps: of Lanczos.
        samples: of the data, drawn by seed; None: all. A part of the data has more negative curvature than the whole.
        seed: of samples and probes; None: the Minimum's.

    Returns:
        Estimate in [0, 1]; stderr as for `effective_dimension`; details: as there.
        Undefined: all eigenvalues are 0.

    Raises:
        UsageError: a count below 1.

    Source:
        The negative part of the density in Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159; Alain et al. 2018,
        arXiv 1902.02366.
    """
    at_least_one(probes=probes, steps=steps, samples=samples)
    found = minimum[SpectralDensity(probes, steps, samples, seed_of(minimum, seed), "hessian")]
    total = float(found.trace(torch.abs).mean())
    if total == 0:
        return Estimate.missing("the Hessian is 0: no eigenvalue has a sign")
    share = float(found.trace(lambda x: (-x).clamp_min(0)).mean()) / total
    probed, sampled = found.variances(
        lambda x: (-x).clamp_min(0) - share * x.abs(), lambda x: -(x < 0).double() - share * x.sign()
    )
    return _estimate(found, share, (probed / total**2, sampled / total**2))


def _estimate(found: Spectrum, value: float, variances: tuple[float, float]) -> Estimate:
    total = sum(variances)
    return Estimate(
        value,
        None if math.isnan(total) else math.sqrt(total),
        details={
            "n": _freedom(variances, len(found.nodes), len(found.sizes)) + 1,
            "samples": int(found.sizes.sum()),
            "error_of": "draws" if int(found.sizes.sum()) == found.population else "both",
            "parameters": found.parameters,
            "largest": float(_seen(found).max()),
            "smallest": float(_seen(found).min()),
            "density": _density(found),
        },
    )


def _freedom(variances: tuple[float, float], probes: int, groups: int) -> int:
    """Degrees of freedom of the sum of two variances (Satterthwaite 1946)."""
    total = sum(variances)
    if math.isnan(total) or total == 0:
        return probes - 1
    parts = variances[0] ** 2 / (probes - 1) + variances[1] ** 2 / max(groups - 1, 1)
    return max(1, int(total**2 / parts))


def _seen(found: Spectrum) -> Tensor:
    """Nodes that are not there to fill up a row."""
    return found.nodes[found.weights > 0]


def _density(found: Spectrum) -> dict[str, Any]:
    """For a plot: grid, values, stderr, width."""
    low, high = float(_seen(found).min()), float(_seen(found).max())
    width = _WIDTH * max(high - low, abs(high), torch.finfo(torch.float64).tiny)
    grid = torch.linspace(low - 4 * width, high + 4 * width, _POINTS, dtype=torch.float64)
    values, stderr = found.density(grid, width)
    spread = stderr.tolist() if len(found.nodes) > 1 else None
    return {"grid": grid.tolist(), "values": values.tolist(), "stderr": spread, "width": width}
