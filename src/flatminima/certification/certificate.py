"""`Certificate`: a risk bound together with every condition it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from flatminima import bounds
from flatminima.display import ceiled, html, probability, remaining
from flatminima.errors import UsageError

Standing = Literal["certificate", "conditional", "score"]

LOSS = "the loss lies in [0, 1]"
PRIOR = "the prior does not depend on the bound's samples"
COUNT = "n counts the bound's samples only"
INDEPENDENT = "the samples are independent and identically distributed"
FIXED = "no augmentation, dropout or batch statistics on the bound's samples"
HYPER = "the prior's hyper-parameters are fixed before, or paid for"
PAID = "best of several certificates is paid for"
FRESH = "the statement is about fresh weights for each prediction"
ROUNDED = "divergence in float64, kl inverse rounded outward"
CONDITIONS = (LOSS, PRIOR, COUNT, INDEPENDENT, FIXED, HYPER, PAID, FRESH, ROUNDED)

_STANDINGS = {"certificate": "Certificate", "conditional": "Conditional certificate"}


@dataclass(frozen=True)
class Assumption:
    """One condition of a certificate.

    Attributes:
        text: the condition.
        holds: True where the library saw it; False where it fails; None where it was not checked.
        evidence: what was looked at.
        stated: where it is not checked, the caller's own words for it; "" for none.
    """

    text: str
    holds: bool | None
    evidence: str
    stated: str = ""

    @property
    def status(self) -> str:
        """ "met", "fails", "stated" or "not checked"."""
        if self.holds is None:
            return "stated" if self.stated else "not checked"
        return "met" if self.holds else "fails"


@dataclass(frozen=True)
class Certificate:
    """A bound: with probability 1 - delta over the samples and the draws, the stochastic network's error is below it.

    The network certified draws fresh weights from Q for each prediction; it is not the mean network. With k =
    candidates * evaluations,

        L+ = kl^-1(empirical_risk, ln(k / delta_mc) / draws),
        risk_bound = kl^-1(L+, (kl + penalty + ln(2 sqrt(n) k / (delta - delta_mc))) / n).

    Attributes:
        risk_bound: upper bound on E_Q of the 0-1 error on new samples.
        empirical_risk: Monte-Carlo mean of the 0-1 error on the bound's samples.
        monte_carlo_upper: L+, an upper bound on E_Q of the error on the bound's samples.
        kl: KL(Q || P) in nats.
        sigma: standard deviation of every weight under P.
        n: samples of the bound.
        draws: independent draws of the weights.
        delta: total failure probability. delta_mc: the draws' part of it.
        candidates, evaluations: priors that could have been used, and certificates that could have been chosen; delta
            is divided by their product.
        holdout_bound: exact binomial bound on the 0-1 error of `holdout_network`, from the same samples.
        holdout_network: the deterministic network that the hold-out bound is about.
        prior: where the prior's mean comes from.
        assumptions: the conditions, each with its evidence.
        penalty: nats added to KL for what was chosen after seeing the samples.
        draws_by: what shares a draw of the weights, "example" or "batch".
        cross_entropy_bound, cross_entropy: the same bound for the cross-entropy clamped at `p_min` and scaled into
            [0, 1], and its Monte-Carlo mean. Each bound holds with the stated probability, on its own.
        constant_error: what the best constant answer errs on the bound's samples.
        objective: what chose the posterior.
        together: failure probability of all certificates that the process had computed on these samples when this one
            was made, itself included; None where it is no more than `delta`.
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
    holdout_bound: float
    holdout_network: str
    prior: str
    assumptions: tuple[Assumption, ...]
    constant_error: float
    penalty: float = 0.0
    draws_by: str = "batch"
    cross_entropy_bound: float | None = None
    cross_entropy: float | None = None
    p_min: float | None = None
    objective: str = "given"
    together: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def standing(self) -> Standing:
        """Kind of the number, derived from the conditions and never set.

        Returns:
            "score": a condition fails, is left out, or is neither met nor stated. "conditional": all others hold, if
            what the caller stated is so. "certificate": nothing is left but that the samples are independent.
        """
        if sorted(a.text for a in self.assumptions) != sorted(CONDITIONS):
            return "score"
        if any(a.status == "fails" or (a.status == "not checked" and a.text != INDEPENDENT) for a in self.assumptions):
            return "score"
        return "conditional" if any(a.stated for a in self.assumptions) else "certificate"

    @property
    def is_certificate(self) -> bool:
        """Whether nothing is assumed but the independence of the samples; derived, never set."""
        return self.standing == "certificate"

    @property
    def statement(self) -> str:
        """The whole claim in one line: standing, what the caller stated, number, probability and predictor."""
        said = f"probability {probability(self.delta)}"
        if self.together is not None:
            said += f"; {remaining(self.together, 4)} with all others of these samples computed here"
        number = f"error <= {ceiled(self.risk_bound)} ({said}), fresh weights per prediction"
        if self.standing == "score":
            open_ = next((a for a in self.assumptions if a.status == "fails"), None) or next(
                (a for a in self.assumptions if a.status == "not checked" and a.text != INDEPENDENT), None
            )
            reason = (
                "its conditions are incomplete"
                if open_ is None
                else f"{_STATUS[open_.status]}: {printable(open_.text)}"
            )
            return f"Score, not a certificate: {reason} ({number})"
        words = printable("; ".join(dict.fromkeys(a.stated for a in self.assumptions if a.stated)))
        if words:
            return f"{_STANDINGS[self.standing]}: if, as stated, {words}: {number}"
        return f"{_STANDINGS[self.standing]}: {number}"

    def terms(self) -> dict[str, float]:
        """The bound as a sum: what each step of the pipeline adds, in the order in which they are taken.

        Returns:
            "errors seen", "Monte Carlo", "confidence" (the bound if KL were 0) and "divergence"; their sum is
            `risk_bound`.
        """
        delta = (self.delta - self.delta_mc) / (self.candidates * self.evaluations)
        free = float(bounds.pac_bayes_kl(self.monte_carlo_upper, 0.0, self.n, delta))
        return {
            "errors seen": self.empirical_risk,
            "Monte Carlo": self.monte_carlo_upper - self.empirical_risk,
            "confidence": min(free, self.risk_bound) - self.monte_carlo_upper,
            "divergence": max(self.risk_bound - free, 0.0),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, the statement first."""
        derived = {"statement": self.statement, "standing": self.standing, "is_certificate": self.is_certificate}
        return derived | asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`; what is derived is derived again, not read.

        Whether its bounds follow from its counts is not looked at here: see `pipeline.derived`, and `recompute`.

        Raises:
            UsageError: something is missing, or of another type.
        """
        try:
            known = {f.name: _typed(f.name, f.type, values[f.name]) for f in fields(cls) if f.name in values}
            listed = tuple(_assumption(a) for a in values["assumptions"])
            return cls(**known | {"assumptions": listed})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"not a certificate: {error}; expected what Certificate.to_dict wrote") from None

    def _repr_html_(self) -> str:
        return html("certificate", self)

    def __str__(self) -> str:
        paid = next((a.evidence for a in self.assumptions if a.text == PAID), "unknown")
        lines = [
            self.statement,
            f"  its share                       {printable(paid)}",
            f"  error on the bound's {self.n} samples  {self.empirical_risk:.4f} "
            f"({self.draws} draws; at most {ceiled(self.monte_carlo_upper)})",
            f"  KL(Q||P)                        {self.kl + self.penalty:.2f} nats, sigma {self.sigma:.4g}",
            f"  prior                           {printable(self.prior)}",
            f"  hold-out bound, same samples    {ceiled(self.holdout_bound)} (the network itself: "
            f"{printable(self.holdout_network)})",
            f"  a constant answer errs on       {self.constant_error:.4f} of these samples",
        ]
        if self.cross_entropy_bound is not None:
            lines.append(f"  bound on clamped cross-entropy  {ceiled(self.cross_entropy_bound)} (p_min {self.p_min:g})")
        lines += [
            f"  {_STATUS[a.status].upper()}: {printable(a.text)} ({printable(a.evidence)})"
            for a in self.assumptions
            if a.status == "fails" or (a.status == "not checked" and a.text != INDEPENDENT)
        ]
        return "\n".join(lines)


_STATUS = {"fails": "fails", "not checked": "neither checked nor stated"}


def printable(text: str) -> str:
    """Text on one line without control characters, which a terminal would obey.

    Examples:
        >>> printable("one\\nline\\x1b[2J")
        'one line?[2J'
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


_PLAIN: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "str": (str,), "bool": ()}


def _typed(name: str, kind: Any, value: Any) -> Any:
    """A field of a record, refused where it is no such thing: a text of a number would be compared as one."""
    plain, _, none = str(kind).partition(" | ")
    if plain not in _PLAIN or (none and value is None) or (plain == "bool" and isinstance(value, bool)):
        return value
    if not isinstance(value, _PLAIN[plain]) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected {kind}")
    return value


def _assumption(values: Mapping[str, Any]) -> Assumption:
    kinds = {f.name: f.type for f in fields(Assumption)}
    return Assumption(**{name: _typed(name, kinds.get(name), value) for name, value in values.items()})
