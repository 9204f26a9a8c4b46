"""What a certificate rests on: the eight conditions of sec. 2.1 of formulas.md, each with what was looked at.

A condition that fails is an error that says what to do, or with `score=True` a line of the certificate, which then is
none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from flatminima.certification.centre import Centre
from flatminima.certification.certificate import Assumption
from flatminima.certification.divide import DUPLICATES, shared
from flatminima.certification.gaussian import Union
from flatminima.certification.scales import DEFAULT, Scales
from flatminima.core.minimum import Minimum
from flatminima.errors import UsageError

_SUSPICIOUS = 0.5  # of a constant guess's error: what hardly a network errs at that no data has touched
_MANY = 8  # classes from which on that is not luck: clusters right by chance are about Poisson(1) many


@dataclass(frozen=True)
class Condition:
    """One condition, with what to do where it fails."""

    text: str
    holds: bool | None
    evidence: str
    remedy: str = ""

    @property
    def assumption(self) -> Assumption:
        return Assumption(self.text, self.holds, self.evidence)


def conditions(
    minimum: Minimum, centre: Centre, prior_mistakes: int, scales: Scales, union: Union, p_min: float
) -> tuple[Condition, ...]:
    """All of them, those of sec. 2.1 of formulas.md in its order.

    Args:
        prior_mistakes: of the prior's mean network on the bound's samples.
    """
    n = len(minimum.samples)
    ours = scales == DEFAULT
    paid = f"{len(scales.values)} scales of the prior, " + ("the default" if ours else "stated to be fixed before")
    return (
        Condition("the loss lies in [0, 1]", True, f"0-1 error; cross-entropy clamped at p_min = {p_min:g}"),
        _independent(minimum, centre, prior_mistakes),
        Condition("n counts the bound's samples only", True, f"n = {n}"),
        Condition("the samples are independent and identically distributed", None, "rests on how they were gathered"),
        Condition(
            "no augmentation, dropout or batch statistics on the bound's samples",
            not centre.differing,
            f"{', '.join(centre.differing[:3])} differ from the prior's network"
            if centre.differing
            else "deterministic in eval mode; buffers and frozen parameters are the prior network's",
            "copy them from the prior's network, where the prior's own samples have made them",
        ),
        Condition(
            "the prior's hyper-parameters are fixed before, or paid for",
            True if ours else None,
            f"{paid}; union over {union.candidates} priors",
        ),
        Condition("best of several certificates is paid for", True, f"union over {union.evaluations} evaluations"),
        Condition("the statement is about fresh weights for each prediction", True, "not about the mean network"),
        Condition("divergence in float64, kl inverse rounded outward", True, "flatminima.bounds"),
    )


@dataclass(frozen=True)
class Start:
    """The network that a prior starts from, before any training.

    Attributes:
        mistakes: on the bound's n samples. guess: those of the best constant answer. classes: that occur.
        batches: that norm statistics have been gathered from.
        stated: where weights that did come from data come from, as the caller says; "" for an untrained network.
    """

    mistakes: int
    guess: int
    classes: int
    batches: int
    stated: str

    def condition(self, n: int, trained_on: int) -> Condition:
        """That the prior does not depend on the bound's samples, given that its training does not."""
        text = "the prior does not depend on the bound's samples"
        part = f", then trained on {trained_on} other samples" if trained_on else ""
        if self.stated:
            return Condition(text, None, f"started from {self.stated}, by the caller{part}")
        remedy = "pass an untrained network, or say where its weights come from"
        if self.batches:
            return Condition(text, False, f"its norm layers hold statistics of {self.batches} batches{part}", remedy)
        if self.classes >= _MANY and self.mistakes < _SUSPICIOUS * self.guess:
            evidence = (
                f"it erred on {self.mistakes} of {n} samples untrained, as no network does that no data has touched"
            )
            return Condition(text, False, evidence, remedy)
        return Condition(text, True, f"untrained, by the {self.mistakes} of {n} samples that it erred on{part}")


def learned_conditions(
    n: int, of: int, trained_on: int, start: Start, sigma: str, layers: str, evaluations: int, p_min: float
) -> tuple[Condition, ...]:
    """Those of a network that `certify` trained.

    Args:
        n: samples of the bound, `of` all that were given; `trained_on` those of the prior, disjoint in content.
        sigma: how the prior's standard deviation was fixed. layers: what is random.
    """
    return (
        Condition("the loss lies in [0, 1]", True, f"0-1 error; cross-entropy clamped at p_min = {p_min:g}"),
        start.condition(n, trained_on),
        Condition("n counts the bound's samples only", True, f"n = {n} of {of}"),
        Condition("the samples are independent and identically distributed", None, "rests on how they were gathered"),
        Condition(
            "no augmentation, dropout or batch statistics on the bound's samples",
            True,
            "two forward passes agree, whatever else is in the batch; norm statistics from the prior's part",
        ),
        Condition("the prior's hyper-parameters are fixed before, or paid for", True, f"{sigma}; {layers}"),
        Condition("best of several certificates is paid for", True, f"union over {evaluations} evaluations"),
        Condition("the statement is about fresh weights for each prediction", True, "not about the mean network"),
        Condition("divergence in float64, kl inverse rounded outward", True, "flatminima.bounds"),
    )


def enforce(found: tuple[Condition, ...], score: bool) -> None:
    """Refuse what would not be a certificate, unless only a score is asked for.

    Raises:
        UsageError: naming the first condition that fails.
    """
    for condition in found:
        if condition.holds is False and not score:
            raise UsageError(
                f"not a certificate: {condition.text} fails ({condition.evidence}); {condition.remedy}, or ask for "
                "the number as a score with score=True"
            )


def _independent(minimum: Minimum, centre: Centre, prior_mistakes: int) -> Condition:
    text = "the prior does not depend on the bound's samples"
    n = len(minimum.samples)
    if centre.data is not None:
        both = shared(minimum.samples, centre.data)
        remedy = "train the prior on samples of its own and make the Minimum of the others"
        allowed = max(1, DUPLICATES * min(n, len(centre.data)))
        return Condition(text, both <= allowed, f"{centre.text}; {both} of {n} equal by content", remedy)
    if centre.origin == "seed":
        return Condition(text, True, centre.text)
    own = minimum.parameters.flat(centre.weights.dtype).cpu()
    if bool((own == centre.weights).all()):
        return Condition(text, False, "its centre is the trained network itself", "pass the initialisation as prior")
    counts = _classes(minimum)
    guess = n - max(counts.values())
    if centre.origin == "stated" and len(counts) >= _MANY and prior_mistakes < _SUSPICIOUS * guess:
        evidence = f"it errs on {prior_mistakes} of {n} samples, as no network does that no data has touched"
        return Condition(text, False, evidence, "pass the samples that it was trained on as prior_data")
    return Condition(text, None, f"{centre.text}, by the caller")


def _classes(minimum: Minimum) -> Counter[int]:
    """How often each label occurs."""
    counts: Counter[int] = Counter()
    for part in torch.arange(len(minimum.samples)).split(minimum.batch_size):
        counts.update(minimum.samples.take(part)[1].tolist())
    return counts
