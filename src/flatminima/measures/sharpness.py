"""Rise of the loss when the weights are perturbed (Neyshabur et al. 2017, sec. 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from flatminima.bounds import bicriteria_kl
from flatminima.core.perturbation import Gaussian, Perturbation, Relative, Uniform, describe
from flatminima.core.statistic import Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._groups import of_rises, of_search
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.statistics import PerturbedLoss, SampleCount, Weights, WorstCaseLoss


@catalogued_measure
def expected_sharpness(
    minimum: Statistics,
    *,
    alpha: float = 1e-3,
    perturbation: Perturbation | None = None,
    uniform: bool = False,
    draws: int = 100,
    samples: int = 128,
    antithetic: bool = False,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``E_u L(w + u) - L(w)``, u_i ~ N(0, sigma_i^2), sigma_i = alpha (10 |w_i| + 1) (N17, fig. 2).

    Each draw is paired with the unperturbed loss of the same samples.

    Args:
        minimum: a Minimum.
        alpha: scale of the noise.
        perturbation: another distribution of u, in place of alpha.
        uniform: u_i ~ U(-sigma_i, sigma_i) instead.
        draws: of u (the paper: 1,000).
        samples: of the data each draw sees (the paper: 64).
        antithetic: use +u and -u.
        rtol: raise `draws` until the 95% interval is value (1 +- rtol).
        seed: of draws and samples; None: the Minimum's.

    Returns:
        Estimate; stderr over draws of u and of the samples, and never below the rounding of the loss (eps L in the
        weights' dtype: of smaller rises nothing is left); details: n, error_of, distribution, scale.
        Undefined: the perturbed loss overflowed.

    Raises:
        UsageError: alpha or counts outside their range, two distributions of u.

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.2; sigma_i from the caption of fig. 2.
    """
    if perturbation is not None and uniform:
        raise UsageError("got both perturbation and uniform=True; give one of them")
    kind = Uniform if uniform else Gaussian
    noise = perturbation or kind(Relative(alpha, slope=10.0, offset=1.0))

    def estimate(draws: int) -> Estimate:
        found = minimum[PerturbedLoss(noise, draws, samples, antithetic, seed_of(minimum, seed))]
        overflowed = int((~found.values.isfinite()).sum())
        if overflowed:
            return Estimate.missing(f"the loss overflowed in {overflowed} of {draws} draws: use less noise")
        return of_rises(found).with_details(**describe(noise))

    return until(rtol, draws, estimate)


@catalogued_measure
def bicriteria(
    minimum: Statistics,
    *,
    alphas: Sequence[float] = tuple(10 ** (k / 4 - 4) for k in range(11)),
    delta: float = 0.05,
    draws: int = 20,
    samples: int = 512,
    seed: int | None = None,
) -> Estimate:
    """Expected sharpness against divergence over noise scales, and the best trade-off (N17, fig. 1 and 2, App. A).

    For each alpha, with sigma_i = alpha (10 |w_i| + 1): s = ``E_u L(w + u) - L(w)`` and
    KL = ``sum_i w_i^2 / (2 sigma_i^2)``; the value is ``min_alpha max(s, 0) + 4 sqrt((KL + ln(2 n / delta)) / n)``. A
    score: the prior has the posterior's variances, which depend on the weights (erratum N-c).

    Args:
        minimum: a Minimum.
        alphas: scales of the noise, positive; by default 1e-4 to 10^-1.5 in quarters of a decade.
        delta: in (0, 1).
        draws, samples: as for `expected_sharpness`; the same draws for every alpha.
        seed: of draws and samples; None: the Minimum's.

    Returns:
        Estimate, stderr that of s at the best alpha (not of its choice); details: alpha (the best), curve (a list of
        {"alpha", "sharpness", "stderr", "kl"}, the points whose loss overflowed left out).
        Undefined: the loss overflows at every alpha.

    Raises:
        UsageError: alphas that are none or not positive, delta or counts outside their range.

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.2, fig. 1 and 2; eq. 6 for the trade-off; errata N-c, N-d.
    """
    if not alphas or not all(0 < a < math.inf for a in alphas) or not 0 < delta < 1:
        raise UsageError(f"got alphas={alphas!r}, delta={delta!r}; positive finite alphas, delta in (0, 1)")
    seed = seed_of(minimum, seed)
    losses = [PerturbedLoss(Gaussian(Relative(a, slope=10.0, offset=1.0)), draws, samples, False, seed) for a in alphas]
    values: Any = minimum[(Weights(), SampleCount(), *losses)]  # type: ignore[index]
    weights, n, *found = values
    w = weights.values.numpy()
    curve, costs, error_of = [], [], "both"
    for alpha, rises in zip(alphas, found, strict=True):
        rise = of_rises(rises)
        if rise.value is None:
            continue
        kl = float(bicriteria_kl(w, alpha))
        curve.append({"alpha": alpha, "sharpness": rise.value, "stderr": rise.stderr, "kl": kl})
        error_of = rise.details["error_of"]
        costs.append(max(rise.value, 0.0) + 4 * math.sqrt((kl + math.log(2 * n / delta)) / n))
    if not curve:
        return Estimate.missing("the loss overflows at every alpha: use smaller ones")
    best = min(range(len(costs)), key=costs.__getitem__)
    details = {"alpha": curve[best]["alpha"], "curve": curve, "n": draws, "error_of": error_of}
    return Estimate(costs[best], curve[best]["stderr"], details)


@catalogued_measure
def sharpness(
    minimum: Statistics,
    *,
    alpha: float = 5e-4,
    method: Literal["vertex", "ascent"] = "vertex",
    steps: int | None = None,
    samples: int | None = 300,
    seed: int | None = None,
) -> Estimate:
    """``max_nu (L(w + nu) - L(w)) / (1 + L(w))`` over the box ``|nu_i| <= alpha (|w_i| + 1)`` (N17, eq. 4).

    L is the loss of all the data. What a search finds there is a lower bound of the maximum, and at least 0 because
    nu = 0 is in the box. From `samples` of the data it is estimated what the search would find: their gradient at w is
    replaced by that of all the data (one more pass), since the worst direction would follow its sampling noise, and two
    halves of them search apart and judge each other's corner. The estimate's bias falls faster in `samples` than its
    standard error.

    Args:
        minimum: a Minimum.
        alpha: of the box.
        method: "vertex": the corner that the gradient's signs point to, again and again (default); "ascent": the
            paper's projected stochastic ascent, batches of 64, rate 0.01, momentum 0.9.
        steps: gradients; None: 10 for "vertex", the paper's 2,000 for "ascent".
        samples: of the data, drawn by seed, at least 2; None: all.
        seed: of the samples and of the ascent's batches; None: the Minimum's.

    Returns:
        Estimate; stderr over samples where some are left out, else the rounding of the loss; details: loss (of all the
        data), highest, gradients, keskar (100 times the value, in percent, as Keskar et al. print it), samples,
        error_of, and of a draw in_sample and held_out (the rises at a half's own corner and at the other's, whose
        means have the maximum between them). Undefined: the loss overflows within the box, or is at most -1.

    Raises:
        UsageError: alpha or counts outside their range, an unknown method.

    Source:
        Keskar et al. 2017; Neyshabur et al., arXiv 1706.08947, eq. 4. The halves: Mak, Morton & Wood 1999, Oper. Res.
        Lett. 24, sec. 2.
    """
    at_least_one(steps=steps, samples=samples)
    count = steps if steps is not None else (2000 if method == "ascent" else 10)
    found = minimum[WorstCaseLoss(Relative(alpha), method, count, samples, seed_of(minimum, seed))]
    if found.loss <= -1:
        reason = f"1 + loss is not positive (loss {found.loss:.3g}): there is no relative rise"
        return Estimate.missing(reason)
    rise, scale = of_search(found), 1 + found.loss
    if rise.value is None:
        return rise
    value = rise.value / scale
    stderr = None if rise.stderr is None else rise.stderr / scale
    details = {"loss": found.loss, "highest": found.highest, "gradients": found.gradients, "keskar": 100 * value}
    return Estimate(value, stderr, {**rise.details, **details, "method": method, "alpha": alpha})
