"""`certify_around`: a certificate for the network that draws its weights around an existing minimum.

Q is shaped by the minimum's geometry, which the data may decide; P is not, and what Q may be chosen from is paid for
only where it is P that varies. Everything ends in the one pipeline of two kl inverses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flatminima import bounds
from flatminima.certification.centre import Centre
from flatminima.certification.certificate import Certificate
from flatminima.certification.conditions import conditions, enforce
from flatminima.certification.divide import FEWEST, refuse_shared
from flatminima.certification.draws import by_batch, mistakes_at, risk_of
from flatminima.certification.families import Curvature, Family, family
from flatminima.certification.gaussian import Union
from flatminima.certification.learned import split_delta
from flatminima.certification.posteriors import Posterior
from flatminima.certification.scales import DEFAULT, Scales
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Relative, mix
from flatminima.core.samples import as_samples
from flatminima.errors import UsageError

_PILOT_DRAWS, _PILOT_SAMPLES = 32, 32  # of each posterior that is tried, before one is frozen
_TEST_DRAWS = 500


@dataclass(frozen=True)
class _Choice:
    """A posterior that was picked, and the scale of the prior that it is against."""

    posterior: Posterior
    eta: float
    penalty: float


def certify_around(
    minimum: Minimum,
    posterior: str = "gaussian",
    *,
    prior: nn.Module | Callable[[], nn.Module] | str,
    prior_data: Any = None,
    prior_seed: int = 0,
    scales: Scales | float | Sequence[float] = DEFAULT,
    etas: Sequence[float] | None = None,
    delta: float = 0.05,
    delta_mc: float | None = None,
    draws: int = 2_000,
    batch_size: int = 64,
    p_min: float = 1e-5,
    curvature: Curvature = "gauss_newton",
    curvature_samples: int | None = None,
    kappa: Relative | None = None,
    rho: float = 0.0,
    box: float = math.inf,
    union: Union | None = None,
    test_data: Any = None,
    score: bool = False,
    seed: int = 0,
) -> Certificate:
    """Bound the error of the network with weights w + u, u from a posterior around the minimum's w.

    R = kl^-1(kl^-1(p, ln(1/delta_mc)/draws), (KL(Q||P) + ln(1/p_j) + ln(2 sqrt(n)/(delta - delta_mc)))/n), p the error
    of fresh draws on the n samples and p_j the share of the prior's scale.

    Args:
        minimum: classifier and the n samples of the bound. The classifier may have been trained on them and on others.
        posterior: its shape, with sigma or eta chosen on the samples, which costs nothing.
            "gaussian"            N(w, (r s)^2 I)
            "diagonal_laplace"    N(w, diag (eta h_i + 1/s^2)^-1)
            "fisher_laplace"      N(w, (eta F + I/s^2)^-1), F from `curvature_samples` samples, not only its diagonal
            "uniform"             U(w_i +- sigma_i), Wang et al.'s sigma; the prior is a box of half-width `scales`
            "truncated_gaussian"  Wang et al.'s, cut at kappa_i
        prior: network at its centre: an initialisation (better: a function that makes one, called under `prior_seed`),
            one trained on `prior_data`, or "zero".
        prior_data: samples that `prior` was trained on, none of them the bound's; a text names samples not at hand.
        scales: standard deviations s of the prior, all fixed before; the choice among them is paid for.
        etas: to try; by default n times 1e-3 .. 10 (of "gaussian", r from 1 to 1/8).
        delta: failure probability of the whole statement, `delta_mc` of it for the draws (a fifth by default).
        draws: of the weights, at least; rounded up to whole passes over the samples.
        batch_size: samples a draw, where weights cannot be drawn for each example.
        p_min: clamp of the cross-entropy, whose bound stands beside that of the error.
        curvature: "gauss_newton" or "fisher" (empirical; it vanishes where all labels are fitted).
        curvature_samples: drawn for it; None for all, of fisher_laplace for 100.
        kappa, rho, box: of "uniform" and "truncated_gaussian", see `families.family`.
        union: other centres and other certificates that this one was chosen from.
        test_data: only to report the error on it in `details`; refused where it is the bound's.
        score: give the number also where a condition fails; the result then is no certificate.
        seed: of the draws and of the curvature's samples.

    Returns:
        Certificate; where the prior was trained, the hold-out bound of its own network beside it.

    Raises:
        UsageError: an argument out of range, a loss without class labels, a condition that fails, or a posterior that
            leaves the prior's box whatever its scale.

    Source: sec. 2.1 and 1.4 of formulas.md; Langford & Caruana (2002), Maurer (2004), W1 Lemmas 3 and 4.

    Examples:
        >>> x = torch.randn(64, 2); y = (x[:, 0] > 0).long()
        >>> net = nn.Linear(2, 2); _ = torch.nn.init.eye_(net.weight)
        >>> certificate = certify_around(Minimum(net, (x, y)), prior="zero", draws=64)
        >>> certificate.is_certificate, 0 <= certificate.empirical_risk <= certificate.risk_bound <= 1
        (True, True)
    """
    delta, delta_mc = split_delta(delta, delta_mc)
    union = union or Union()
    _check(minimum, draws, batch_size, p_min, box)
    test = None if test_data is None else _test_minimum(minimum, test_data)
    grid = Scales.of(scales)
    centre = Centre.of(prior, prior_data, minimum, prior_seed)
    wrong = mistakes_at(minimum, centre.weights)
    found = conditions(minimum, centre, wrong, grid, union, p_min)
    enforce(found, score)
    shape = family(
        posterior,
        minimum,
        minimum.parameters.flat(torch.float64).cpu() - centre.weights,
        curvature=curvature,
        curvature_samples=curvature_samples,
        kappa=kappa,
        rho=rho,
        box=box,
        seed=seed,
    )
    choice = _choose(minimum, shape, grid, tuple(etas or shape.etas), delta / union.candidates, p_min, seed)
    risk = risk_of(  # fresh draws, after the posterior was frozen
        minimum, choice.posterior, draws=draws, batch_size=batch_size, p_min=p_min, seed=mix(seed, 1)
    )
    n, q = len(minimum.samples), choice.posterior
    details: dict[str, Any] = {"posterior": posterior, "eta": choice.eta, "seed": seed} | shape.details
    details["fingerprint"] = minimum.samples.fingerprint
    if test is not None:
        details["test"] = _on_test(test, q, p_min, seed)
    uppers = [
        float(bounds.monte_carlo_risk(r, risk.draws, delta_mc / union.evaluations))
        for r in (risk.error, risk.cross_entropy)
    ]
    bound, ce_bound = (
        float(bounds.pac_bayes_kl(upper, q.kl + choice.penalty, n, delta / union.candidates)) for upper in uppers
    )
    holdout = None
    if centre.data is not None:
        holdout = float(bounds.binomial_tail_inverse(wrong, n, (delta + delta_mc) / union.candidates))
    return Certificate(
        risk_bound=bound,
        empirical_risk=risk.error,
        monte_carlo_upper=uppers[0],
        kl=q.kl,
        sigma=q.scale,
        n=n,
        draws=risk.draws,
        delta=delta,
        delta_mc=delta_mc,
        candidates=union.candidates,
        evaluations=union.evaluations,
        holdout_bound=holdout,
        holdout_network="prior's mean network",
        prior=centre.text,
        assumptions=tuple(c.assumption for c in found),
        penalty=choice.penalty,
        draws_by=risk.by,
        cross_entropy_bound=ce_bound,
        cross_entropy=risk.cross_entropy,
        p_min=p_min,
        objective=f"{posterior} around an existing minimum",
        details=details,
    )


def _choose(
    minimum: Minimum, shape: Family, grid: Scales, etas: tuple[float, ...], delta: float, p_min: float, seed: int
) -> _Choice:
    """The scale and eta with the least bound in a pilot; draws of their own, so that the final ones are fresh.

    Raises:
        UsageError: every posterior leaves the prior's support.
    """
    n = len(minimum.samples)
    tried = [_Choice(shape.at(s, eta), eta, grid.penalty(s)) for s in grid.values for eta in etas]
    finite = [(c.posterior.kl + c.penalty, i) for i, c in enumerate(tried) if c.posterior.kl < math.inf]
    if not finite:
        reach = float(tried[0].posterior.distance.abs().max())
        raise UsageError(
            f"KL is infinite: the minimum lies up to {reach:.3g} from the prior's centre in a weight, and its noise "
            f"leaves the prior's box of half-width {max(grid.values):g}; fix wider scales (or a wider box) in advance"
        )
    if len(finite) == 1:
        return tried[finite[0][1]]
    order = minimum.samples.order(seed)
    positions = torch.arange(_PILOT_DRAWS * _PILOT_SAMPLES) % n
    blocks = list(order[positions].split(_PILOT_SAMPLES))
    best, least = tried[finite[0][1]], math.inf
    for kl, i in sorted(finite):
        if float(bounds.pac_bayes_kl(0.0, kl, n, delta)) >= least:
            break  # without a single error it would not be better
        pilot = by_batch(minimum, tried[i].posterior, blocks, p_min=p_min, seed=mix(seed, 0), task="pilot")
        bound = float(bounds.pac_bayes_kl(pilot.error, kl, n, delta))
        if bound < least:
            best, least = tried[i], bound
    return best


def _test_minimum(minimum: Minimum, test_data: Any) -> Minimum:
    others = as_samples(test_data)
    refuse_shared(minimum.samples, others, "also in the test data", "give two different splits")
    return Minimum(copy.deepcopy(minimum.model).eval(), others, minimum.loss, batch_size=minimum.batch_size)


def _on_test(test: Minimum, posterior: Posterior, p_min: float, seed: int) -> dict[str, float]:
    """What the stochastic network, and the mean network, do on samples that nothing was made from."""
    n = len(test.samples)
    risk = risk_of(test, posterior, draws=_TEST_DRAWS, batch_size=_PILOT_SAMPLES, p_min=p_min, seed=mix(seed, 2))
    return {"n": n, "error": risk.error, "mean_network_error": mistakes_at(test, test.parameters.flat()) / n}


def _check(minimum: Minimum, draws: int, batch_size: int, p_min: float, box: float) -> None:
    n = len(minimum.samples)
    if n < FEWEST:
        raise UsageError(f"got {n} samples for the bound; the PAC-Bayes-kl bound needs at least {FEWEST}")
    if not minimum.loss.labels:
        raise UsageError(
            f"got a Minimum with loss {minimum.loss.name!r}, which is unbounded; certificates are about the 0-1 error "
            "and the clamped cross-entropy of a classifier: use loss='cross_entropy'"
        )
    if draws < 1 or batch_size < 1:
        raise UsageError(f"got draws={draws!r}, batch_size={batch_size!r}; at least one each is needed")
    if not 0 < p_min < 1:
        raise UsageError(f"got p_min={p_min!r}; expected a clamp in (0, 1), e.g. 1e-5")
    if not box > 0:
        raise UsageError(f"got box={box!r}; the prior's half-width must be positive, or inf")
