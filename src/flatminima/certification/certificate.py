"""`Certificate`: a risk bound together with every condition it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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

    @property
    def is_certificate(self) -> bool:
        """Whether no condition fails; derived, never set."""
        return bool(self.assumptions) and all(a.holds is not False for a in self.assumptions)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self) | {"is_certificate": self.is_certificate}

    def __str__(self) -> str:
        what = "Certificate" if self.is_certificate else "Score, not a certificate"
        confidence = 1 - self.delta - self.delta_mc
        lines = [
            f"{what}: error on new samples at most {self.risk_bound:.4f},",
            f"with probability {confidence:.3g} over the draw of the samples, for the network",
            "that draws fresh weights from Q at each prediction.",
            f"  error on the bound's {self.n} samples  {self.empirical_risk:.4f} "
            f"({self.draws} draws; at most {self.monte_carlo_upper:.4f})",
            f"  KL(Q||P)                        {self.kl:.2f} nats, sigma {self.sigma:g}",
            f"  prior                           {self.prior}",
        ]
        if self.holdout_bound is not None:
            lines.append(f"  hold-out bound, same samples    {self.holdout_bound:.4f} ({self.holdout_network})")
        lines += [f"  FAILS: {a.text} ({a.evidence})" for a in self.assumptions if a.holds is False]
        return "\n".join(lines)
