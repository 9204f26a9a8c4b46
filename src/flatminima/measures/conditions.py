"""The assumptions and the right-hand side of Theorem 1 of Neyshabur et al. (2017): sharpness of weight noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from flatminima.bounds import neyshabur_score
from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._extremes import predicted_maximum
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.statistics import Conditions, SampleConditions, SampleCount

_NAMES = ("inverse_mu", "c2", "c3", "active")
_SIGMAS = 1.96  # standard errors to the end of a 95% interval
_SCALES = (-30.0, 10.0)  # ln gamma that is searched


@catalogued_measure
def conditions(
    minimum: Statistics, *, samples: int | None = 10, rtol: float | None = None, seed: int | None = None
) -> Estimate:
    """Mean ln(1/mu) of condition C1, and the constants of C2 and C3, of a ReLU network without biases (N17, App. B).

    C1 says that layers act in different directions, ``||D_b W_b ... D_a W_a||_F >= mu / sqrt(h_c)
    ||D_b W_b ... D_{c+1} W_{c+1}||_F ||D_c W_c ... D_a W_a||_F`` for 0 <= a <= c < b <= d, W_0 = x of length 1 (the
    proof needs a <= c where a < c is printed, erratum N-e). C2: at most a share C2 delta of a layer's inputs to units
    is below delta in absolute value (erratum N-f). C3: ``||W_i||_{2,inf}^2 h_i <= C3^2 ||D_i W_i||_F^2``.

    Args:
        minimum: a Minimum.
        samples: drawn by seed, at most; None: all. Each costs d^2 / 2 products of two layers.
        rtol: raise `samples` until the 95% interval is value (1 +- rtol).
        seed: of the samples; None: the Minimum's.

    Returns:
        Estimate of the mean over samples of ln(1/mu), mu the largest that C1 allows (where layers cancel 1/mu has
        no useful mean); stderr over samples; details: n, inverse_mu, c2, c3 (the largest of the samples looked at, at
        most those of all data), c2_mean, c3_mean, widths. Undefined: biases, convolutions, shortcuts or another
        activation; a unit whose input is exactly 0, or a layer without an active unit.

    Raises:
        UsageError: fewer than one sample.

    Source:
        Neyshabur et al., arXiv 1706.08947, App. B; figures 6 to 8.
    """
    at_least_one(samples=samples)
    if samples is None:
        return _mean(_found(minimum, None, seed))
    return until(rtol, samples, lambda k: _mean(_found(minimum, k, seed)))


def _mean(found: SampleConditions) -> Estimate:
    return Estimate.mean(
        found.inverse_mu.log(),
        error_of="new data",
        inverse_mu=float(found.inverse_mu.max()),
        c2=float(found.c2.max()),
        c3=float(found.c3.max()),
        c2_mean=float(found.c2.mean()),
        c3_mean=float(found.c3.mean()),
        widths=list(found.widths),
    )


@catalogued_measure
def perturbation_score(
    minimum: Statistics,
    *,
    gamma: float | None = None,
    delta: float = 0.05,
    lipschitz: float = math.sqrt(2.0),
    samples: int | None = 100,
    seed: int | None = None,
) -> Estimate:
    """Right-hand side of N17's Theorem 1 with its constant taken as 1, at noise of equal relative size in all layers.

    The noise of layer i has ``sigma_i = gamma mu^2 ||D_i W_i||_F / sqrt(h_i h_{i-1})``. A score: the theorem hides a
    constant, and mu, C2, C3 and sigma are read off the data. The conditions are of every sample, so that 1/mu, C2, C3
    are the largest and ||D_i W_i|| the smallest of all; from part of the data they are predicted, by Hill's tail of
    their logarithms.

    Args:
        minimum: a Minimum.
        gamma: the relative size, positive; None: the one that makes the score smallest.
        delta: failure probability, in (0, 1).
        lipschitz: C_L of the loss by the logits; sqrt(2) is the cross-entropy's.
        samples: drawn by seed, at most; None: all. Each costs d^2 / 2 products of two layers.
        seed: of the samples; None: the Minimum's.

    Returns:
        Estimate for all the data: at the median of the constants' prediction, its stderr from their upper 95% quantile
        (what samples leave open of the largest of many lies above); none where all were looked at.
        details: gamma, inverse_mu, c2, c3 (as used), seen (the largest 1/mu of the samples), output_norm (mean ||f(x)||
        of inputs of length 1), n (training samples), samples, error_of. Undefined: as `conditions`, or a score that
        overflows.

    Raises:
        UsageError: gamma, delta, lipschitz or samples outside their range.

    Source:
        Neyshabur et al., arXiv 1706.08947, Theorem 1; errata N-e, N-g, N-h, N-i; the prediction: Hill 1975, Weissman
        1978 (see `_extremes`).
    """
    if not 0 < delta < 1 or (gamma is not None and not 0 < gamma < math.inf) or not 0 < lipschitz < math.inf:
        raise UsageError(f"got gamma={gamma!r}, delta={delta!r}, lipschitz={lipschitz!r}; positive, delta below 1")
    found = _found(minimum, samples, seed)
    n = minimum[SampleCount()]
    if n < 2:
        raise Undefined("the bound needs at least 2 samples")
    output = Estimate.mean(found.outputs)

    def score(constants: _Constants, norm: float, log_gamma: float) -> float:
        sigma = _sigma(log_gamma, 1 / constants.inverse_mu, constants.active, found.widths)
        return neyshabur_score(
            norm, found.frobenius.numpy(), found.widths, sigma.numpy(), 1 / constants.inverse_mu, constants.c2,
            constants.c3, n, delta, lipschitz=lipschitz, active_frobenius=constants.active.numpy(),
        )  # fmt: skip

    def smallest(constants: _Constants, norm: float) -> tuple[float, float]:
        best = math.log(gamma) if gamma is not None else _smallest(lambda t: score(constants, norm, t))
        return score(constants, norm, best), best

    median, upper = _constants(found, n)
    value, best = smallest(median, float(output))
    if not math.isfinite(value):
        raise Undefined("the score overflows: use a smaller gamma")
    whole, error = len(found.inverse_mu) >= n, None
    if not whole:
        higher = [smallest(replace(median, **{name: getattr(upper, name)}), float(output))[0] for name in _NAMES]
        if not all(map(math.isfinite, higher)):
            raise Undefined(f"{len(found.inverse_mu)} samples leave the largest constants of {n} open: look at more")
        moved = score(median, float(output) + (output.stderr or 0.0), best) - value
        error = math.hypot(*((most - value) / _SIGMAS for most in higher), moved)
    details = {
        "gamma": math.exp(best),
        "inverse_mu": median.inverse_mu,
        "c2": median.c2,
        "c3": median.c3,
        "seen": float(found.inverse_mu.max()),
        "output_norm": float(output),
        "n": n,
        "samples": len(found.inverse_mu),
        "error_of": "exact" if whole else "data",
    }
    return Estimate(value, error, details)


@dataclass(frozen=True)
class _Constants:
    inverse_mu: float
    c2: float
    c3: float
    active: Tensor


def _constants(found: SampleConditions, n: int) -> tuple[_Constants, _Constants]:
    """Median and upper quantile of what is predicted for all n samples."""
    logs = [found.inverse_mu.log(), found.c2.log(), found.c3.log(), *(-found.active.log()).unbind(1)]
    quantiles = zip(*(predicted_maximum(each, n) for each in logs), strict=True)
    median, upper = (torch.tensor(q, dtype=torch.float64) for q in quantiles)

    def constants(q: Tensor) -> _Constants:
        inverse_mu, c2, c3 = q[:3].exp().tolist()
        return _Constants(inverse_mu, c2, c3, (-q[3:]).exp())

    return constants(median), constants(upper)


def _found(minimum: Statistics, samples: int | None, seed: int | None) -> SampleConditions:
    at_least_one(samples=samples)
    found, _ = minimum[Conditions(samples, seed_of(minimum, seed)), SampleCount()]
    if not bool(torch.isfinite(torch.stack([found.inverse_mu, found.c2, found.c3])).all()):
        raise Undefined("a unit's input is exactly 0, or a layer has no active unit: no constant satisfies C1 to C3")
    return found


def _sigma(log_gamma: float, mu: float, active: Tensor, widths: tuple[int, ...]) -> Tensor:
    h = torch.tensor(widths, dtype=torch.float64)
    return math.exp(log_gamma) * mu**2 * active / (h[1:] * h[:-1]).sqrt()


def _smallest(score: Callable[[float], float]) -> float:
    """ln gamma of the least score, which first falls and then rises."""

    def log_score(log_gamma: float) -> float:
        value = score(log_gamma)
        return math.log(value) if math.isfinite(value) else math.inf

    grid = torch.linspace(*_SCALES, 81).tolist()
    best = min(grid, key=log_score)
    found = minimize_scalar(log_score, bounds=(best - 0.5, best + 0.5), method="bounded", options={"xatol": 1e-6})
    return float(found.x)
