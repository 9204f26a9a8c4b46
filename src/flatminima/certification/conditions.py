"""The nine conditions that a certificate rests on, listed once, each with what was looked at.

A condition that fails is an error that says what to do, or with `score=True` a line of the certificate, which then is
none. One that the library did not see is *stated* where the caller put it in words, and else makes the number a score.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatminima.certification.certificate import (
    COUNT,
    FIXED,
    FRESH,
    HYPER,
    INDEPENDENT,
    LOSS,
    PAID,
    PRIOR,
    ROUNDED,
    Assumption,
)
from flatminima.certification.division.split import Division
from flatminima.certification.pipeline import Confidence
from flatminima.errors import UsageError


@dataclass(frozen=True)
class Condition:
    """One condition, with what to do where it fails.

    Attributes:
        text, holds, evidence, stated: see `Assumption`.
        remedy: what makes it hold.
        refused: whether failing is an error; else the number is given as a score.
    """

    text: str
    holds: bool | None
    evidence: str
    stated: str = ""
    remedy: str = ""
    refused: bool = True

    @property
    def assumption(self) -> Assumption:
        return Assumption(self.text, self.holds, self.evidence, self.stated)


@dataclass(frozen=True)
class Findings:
    """Facts that a path to a certificate has established itself.

    Attributes:
        prior: where the prior's mean comes from, by `provenance`.
        n: samples of the bound, `of` all that were given.
        independent: what was found of copies and groups.
        fixed: whether anything but the weights is random or shaped by the bound's samples.
        hyper: how the prior's standard deviation was fixed, and what is random.
        p_min: clamp of the cross-entropy.
    """

    prior: Condition
    n: int
    of: int
    independent: Condition
    fixed: Condition
    hyper: str
    p_min: float


def conditions_of(found: Findings, confidence: Confidence) -> tuple[Condition, ...]:
    """All of them, those of the bound's theorem in its order."""
    return (
        Condition(LOSS, True, f"0-1 error; cross-entropy clamped at p_min = {found.p_min:g}"),
        found.prior,
        Condition(COUNT, True, f"n = {found.n} of {found.of}"),
        found.independent,
        found.fixed,
        Condition(HYPER, True, f"{found.hyper}; other values that could have been given count among the evaluations"),
        Condition(PAID, True, confidence.evidence),
        Condition(FRESH, True, "not about the mean network, whose hold-out bound is given beside it"),
        Condition(ROUNDED, True, "flatminima.bounds"),
    )


def prior_condition(
    holds: bool | None, evidence: str, *, stated: str = "", remedy: str = "", refused: bool = True
) -> Condition:
    """Condition 2, that the prior does not depend on the bound's samples."""
    return Condition(PRIOR, holds, evidence, stated, remedy, refused)


def independence(division: Division, *, refused: bool = True) -> Condition:
    """Condition 4, that the samples are independent draws, by what was found of copies and groups.

    Args:
        refused: whether doubt is an error; else the number is given as a score.
    """
    if division.doubt:
        return Condition(INDEPENDENT, False, division.doubt, remedy=division.remedy, refused=refused)
    found = division.evidence
    evidence = "; ".join(part for part in ("rests on how they were gathered and prepared", found) if part)
    return Condition(INDEPENDENT, None, evidence, division.stated)


def fixed_condition(holds: bool | None, evidence: str, *, stated: str = "", remedy: str = "") -> Condition:
    """Condition 5, that nothing but the weights is random, and nothing else was made from the bound's samples."""
    return Condition(FIXED, holds, evidence, stated, remedy)


def enforce(found: tuple[Condition, ...], score: bool) -> tuple[Assumption, ...]:
    """Refuse what would not be a certificate, unless only a score is asked for.

    Raises:
        UsageError: naming the first condition that fails.
    """
    for condition in found:
        if condition.holds is False and condition.refused and not score:
            raise UsageError(
                f"not a certificate: {condition.text} fails ({condition.evidence}); {condition.remedy}, or ask for "
                "the number as a score with score=True"
            )
    return tuple(c.assumption for c in found)
