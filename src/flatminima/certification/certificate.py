"""`Certificate`: a risk bound together with every condition it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from flatminima import bounds
from flatminima.errors import UsageError


@dataclass(frozen=True)
class Assumption:
    """One condition of a certificate.

    Attributes:
        text: the condition.
        holds: True where checked or made so by construction; False where it fails; None where it cannot be checked
            here and rests on whoever gathered the data.
        evidence: what was looked at.
    """

    text: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True)
class Certificate:
    """With probability 1 - delta - delta_mc over the samples and the draws, the stochastic network's error is below.

    The network certified draws fresh weights from Q for each prediction; it is not the mean network.

    Attributes:
        risk_bound: upper bound on E_Q of the 0-1 error on new samples.
        empirical_risk: Monte-Carlo mean of the 0-1 error on the bound's samples.
        monte_carlo_upper: kl^-1(empirical_risk, ln(k_mc / delta_mc) / draws).
        kl: KL(Q || P) in nats.
        sigma: standard deviation of every weight under P and Q.
        n: samples of the bound.
        draws: independent draws of the weights.
        delta, delta_mc: failure probabilities of the PAC-Bayes and the Monte-Carlo step, before the union bounds.
        candidates, evaluations: union bounds: priors that could have been used, and certificates computed of which this
            is one; delta is divided by the first, delta_mc by the second.
        holdout_bound: exact binomial bound on the 0-1 error of `holdout_network`, from the same samples; or None.
        holdout_network: the deterministic network that the hold-out bound is about.
        prior: where the prior's mean comes from.
        assumptions: the conditions, each with its evidence.
        penalty: nats added to KL for a sigma of the prior that was chosen after seeing the samples.
        draws_by: what shares a draw of the weights, "example" or "batch".
        cross_entropy_bound, cross_entropy: the same bound for the cross-entropy clamped at `p_min` and scaled into
            [0, 1], and its Monte-Carlo mean. Each bound holds with the stated probability, on its own.
        objective: what chose the posterior.
        details: whatever else was recorded: the command, fingerprints, times, test error.
    """

    risk_bound: float
    empirical_risk: float
    monte_carlo_upper: float
    kl: float
    sigma: float
    n: int
    draws: int
    delta: float
    delta_mc: float
    candidates: int
    evaluations: int
    holdout_bound: float | None
    holdout_network: str
    prior: str
    assumptions: tuple[Assumption, ...]
    penalty: float = 0.0
    draws_by: str = "batch"
    cross_entropy_bound: float | None = None
    cross_entropy: float | None = None
    p_min: float | None = None
    objective: str = "given"
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_certificate(self) -> bool:
        """Whether no condition fails; derived, never set."""
        return bool(self.assumptions) and all(a.holds is not False for a in self.assumptions)

    def terms(self) -> dict[str, float]:
        """The bound as a sum: what each step of the pipeline adds, in the order in which they are taken.

        Returns:
            "errors seen", "Monte Carlo", "confidence" (the bound if KL were 0) and "divergence"; their sum is
            `risk_bound`.
        """
        delta = self.delta / (self.candidates * self.evaluations)
        free = float(bounds.pac_bayes_kl(self.monte_carlo_upper, 0.0, self.n, delta))
        return {
            "errors seen": self.empirical_risk,
            "Monte Carlo": self.monte_carlo_upper - self.empirical_risk,
            "confidence": min(free, self.risk_bound) - self.monte_carlo_upper,
            "divergence": max(self.risk_bound - free, 0.0),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self) | {"is_certificate": self.is_certificate}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`; `is_certificate` is derived again, not read.

        Raises:
            UsageError: something is missing.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        try:
            return cls(**known | {"assumptions": tuple(Assumption(**a) for a in values["assumptions"])})
        except (KeyError, TypeError) as error:
            raise UsageError(f"not a certificate: {error}; expected what Certificate.to_dict wrote") from None

    def __str__(self) -> str:
        what = "Certificate" if self.is_certificate else "Score, not a certificate"
        confidence = 1 - self.delta - self.delta_mc
        lines = [
            f"{what}: error on new samples at most {self.risk_bound:.4f},",
            f"with probability {confidence:.3g} over the draw of the samples, for the network",
            "that draws fresh weights from Q at each prediction.",
            f"  error on the bound's {self.n} samples  {self.empirical_risk:.4f} "
            f"({self.draws} draws; at most {self.monte_carlo_upper:.4f})",
            f"  KL(Q||P)                        {self.kl + self.penalty:.2f} nats, sigma {self.sigma:.4g}",
            f"  prior                           {self.prior}",
        ]
        if self.holdout_bound is not None:
            lines.append(f"  hold-out bound, same samples    {self.holdout_bound:.4f} ({self.holdout_network})")
        if self.cross_entropy_bound is not None:
            lines.append(f"  bound on clamped cross-entropy  {self.cross_entropy_bound:.4f} (p_min {self.p_min:g})")
        lines += [f"  FAILS: {a.text} ({a.evidence})" for a in self.assumptions if a.holds is False]
        return "\n".join(lines)
