"""Counts to a bound: the one place where a certificate's numbers are put together, whatever path led to them.

delta is the total failure probability. Of k certificates that could have been chosen on the same samples each takes
delta / k, delta_mc / k of it for its draws; the exact hold-out bound beside it takes the same delta / k.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatminima import bounds
from flatminima.certification.arguments import real, whole
from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.gibbs.risk import GibbsRisk
from flatminima.errors import CheckpointError, FlatMinimaError, UsageError
from flatminima.escaping import brief

_DRAWS_SHARE = 5  # a fifth of delta is for the draws, of which more can be had
_MOST = 10**300  # certificates that share one delta
_SAME = 1e-9  # relative; bounds that are computed twice from one record


@dataclass(frozen=True)
class Union:
    """The set that a certificate was chosen from: priors that could have been used, times certificates for each."""

    candidates: int = 1
    evaluations: int = 1

    def __post_init__(self) -> None:
        for name in ("candidates", "evaluations"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        if self.k > _MOST:
            raise UsageError(
                f"got candidates={brief(self.candidates)}, evaluations={brief(self.evaluations)}; expected at most "
                f"{_MOST:.0e} together, beyond which float64 leaves nothing of delta"
            )

    @property
    def k(self) -> int:
        return self.candidates * self.evaluations


@dataclass(frozen=True)
class Confidence:
    """A failure probability, and how it is shared.

    Args:
        delta: total, in (0, 1). delta_mc: the draws' part of it; a fifth by default.
        union: of the certificates that share it.
        source: how it is known that they are no more; for the reader.

    Raises:
        UsageError: one of them outside of its range.

    Examples:
        >>> c = Confidence(0.05, union=Union(evaluations=2))
        >>> c.samples, c.draws, c.each
        (0.02, 0.005, 0.025)
    """

    delta: float
    delta_mc: float | None = None
    union: Union = Union()
    source: str = "by the caller's count"

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", real("delta", self.delta, "0.05"))
        if not 0 < self.delta < 1:
            raise UsageError(f"got delta={self.delta!r}; expected a probability in (0, 1), e.g. 0.05")
        if self.delta_mc is None:
            object.__setattr__(self, "delta_mc", self.delta / _DRAWS_SHARE)
        object.__setattr__(self, "delta_mc", real("delta_mc", self.delta_mc, "0.01"))
        if not 0 < self.for_draws < self.delta:
            raise UsageError(
                f"got delta_mc={self.delta_mc!r}; expected a part of delta={self.delta!r}, in (0, {self.delta!r})"
            )
        if not min(self.samples, self.draws) > 0:
            raise UsageError(
                f"got delta={self.delta!r}, delta_mc={self.delta_mc!r} for {self.union.k:.3g} certificates; float64 "
                "leaves nothing of it for each: expected a larger delta or fewer of them"
            )

    @property
    def for_draws(self) -> float:
        """delta_mc, all of it."""
        assert self.delta_mc is not None
        return self.delta_mc

    @property
    def samples(self) -> float:
        """Share of delta for the PAC-Bayes step of one certificate."""
        return (self.delta - self.for_draws) / self.union.k

    @property
    def draws(self) -> float:
        """Share of delta for the Monte-Carlo step of one certificate."""
        return self.for_draws / self.union.k

    @property
    def each(self) -> float:
        """Share of delta for one certificate."""
        return self.delta / self.union.k

    @property
    def evidence(self) -> str:
        """The sharing of delta, in words for the reader."""
        k = self.union.k
        return f"1/{k:,} of delta, {self.source}" if k > 1 else f"all of delta, {self.source}"


@dataclass(frozen=True)
class Counted:
    """Counts of a certificate, before any probability.

    Attributes:
        risk: of fresh draws on the n samples. kl: KL(Q || P). penalty: nats for choices made after seeing them.
        holdout_errors: of the prior's mean network on the n samples. constant_errors: of the best constant answer.
        sigma: of the prior.
        left_out: samples of the bound that were left out and paid for in `penalty`; no hold-out bound pays for them.
    """

    risk: GibbsRisk
    kl: float
    penalty: float
    n: int
    holdout_errors: int
    constant_errors: int
    sigma: float
    p_min: float
    left_out: int = 0


def assemble(
    counted: Counted,
    confidence: Confidence,
    assumptions: tuple[Assumption, ...],
    *,
    prior: str,
    objective: str,
    details: Mapping[str, Any],
) -> Certificate:
    """The certificate: L+ = kl^-1(p, ln(1/d_mc)/draws), R = kl^-1(L+, (KL + penalty + ln(2 sqrt(n)/d))/n).

    Args:
        prior: where its mean comes from, for the reader. objective: what chose the posterior.

    Source: Langford & Caruana (2002), Maurer (2004), Dziugaite & Roy (2017).
    """
    risk, n = counted.risk, counted.n
    uppers = [float(bounds.monte_carlo_risk(p, risk.draws, confidence.draws)) for p in (risk.error, risk.cross_entropy)]
    nats = counted.kl + counted.penalty
    holdout = 1.0 if counted.left_out else bounds.binomial_tail_inverse(counted.holdout_errors, n, confidence.each)
    bound, ce_bound = (float(bounds.pac_bayes_kl(upper, nats, n, confidence.samples)) for upper in uppers)
    return Certificate(
        risk_bound=bound,
        empirical_risk=risk.error,
        monte_carlo_upper=uppers[0],
        kl=counted.kl,
        sigma=counted.sigma,
        n=n,
        draws=risk.draws,
        delta=confidence.delta,
        delta_mc=confidence.for_draws,
        candidates=confidence.union.candidates,
        evaluations=confidence.union.evaluations,
        holdout_bound=float(holdout),
        holdout_network="prior's mean network",
        prior=prior,
        assumptions=assumptions,
        constant_error=counted.constant_errors / n,
        penalty=counted.penalty,
        draws_by=risk.by,
        cross_entropy_bound=ce_bound,
        cross_entropy=risk.cross_entropy,
        p_min=counted.p_min,
        objective=objective,
        details=dict(details),
    )


def arithmetic(c: Certificate) -> dict[str, float]:
    """The bounds that follow from a certificate's own counts, by name; from nothing but the record."""
    union = Union(c.candidates, c.evaluations)
    confidence, nats = Confidence(c.delta, c.delta_mc, union), c.kl + c.penalty
    upper = float(bounds.monte_carlo_risk(c.empirical_risk, c.draws, confidence.draws))
    out = {"monte_carlo_upper": upper, "risk_bound": float(bounds.pac_bayes_kl(upper, nats, c.n, confidence.samples))}
    if c.cross_entropy is not None:
        upper = float(bounds.monte_carlo_risk(c.cross_entropy, c.draws, confidence.draws))
        out["cross_entropy_bound"] = float(bounds.pac_bayes_kl(upper, nats, c.n, confidence.samples))
    return out | {"holdout_bound": _next_holdout(c.holdout_bound, c.n, confidence.each)}


def _next_holdout(recorded: float, n: int, delta: float) -> float:
    """The exact hold-out bound of n samples, for some number of errors, that is next above the recorded one."""

    def bound(errors: int) -> float:
        return float(bounds.binomial_tail_inverse(errors, n, delta))

    return bound(min(bisect_left(range(n + 1), recorded * (1 - _SAME), key=bound), n))


def contradiction(c: Certificate) -> str:
    """The first bound of a record that does not follow from its own counts, in words; "" where all do.

    Raises:
        FlatMinimaError, TypeError, ValueError, ArithmeticError: counts that no certificate has.
    """
    for name, value in arithmetic(c).items():
        own = getattr(c, name)
        own = math.nan if own is None else float(own)
        if not math.isclose(value, own, rel_tol=_SAME):
            return f"{name} is {own:.8g}, its own counts give {value:.8g}"
    return ""


def derived(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A record with statement and standing derived from its fields, whatever is written in their place.

    Args:
        document: what `Certificate.to_dict` wrote, with what else was recorded. path: of its file, for messages.

    Raises:
        CheckpointError: no certificate, or one whose bounds do not follow from its own counts.
    """
    try:
        recorded = Certificate.from_dict(document)
        wrong = contradiction(recorded)
    except (FlatMinimaError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is not what this version writes ({error}); run the command again") from None
    if wrong:
        raise CheckpointError(f"{path} is no certificate: {wrong}: it was edited or damaged; run the command again")
    return {**document, **recorded.to_dict()}
