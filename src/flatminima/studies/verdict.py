"""Verdict of a study's runs on a sentence: a statistic with its interval, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flatminima.errors import Undefined, UsageError
from flatminima.studies import inference

REPRODUCED, CONTRADICTED, SMALLER = "reproduced", "contradicted", "smaller than claimed"
UNMET, UNINFORMATIVE = "premise not met", "not informative"
VERDICTS = (REPRODUCED, CONTRADICTED, SMALLER, UNMET, UNINFORMATIVE)  # of a paper's sentence
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"  # of one's own
FAILED = (CONTRADICTED, FAILS)
AGAINST = (CONTRADICTED, SMALLER)  # the sentence
DECIDED = (REPRODUCED, *AGAINST)
_FEWEST = 5  # runs: of four, a perfect order has p = 2/4! > 0.05


@dataclass(frozen=True)
class TrialVerdict:
    """Verdict of one trial alone, on one data set and network: before any penalty for how many there are.

    Attributes:
        study, data, network: of its runs; empty where a run does not name one. quantity: in words.
        measured, statistic, low, high, p, verdict, note: as of a `Verdict`.
    """

    study: str
    data: str
    network: str
    quantity: str
    measured: str
    verdict: str
    statistic: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Verdict of the runs on one sentence.

    Attributes:
        claim: the sentence; a paper's as quoted, one's own in plain words.
        verdict: of a paper's sentence one of `VERDICTS`; of one's own "holds", "fails" or "undecided".
        control: True for a comparison beside the paper's; it is never counted.
        measured: what `statistic` is: "slope", "difference", "share", ...
        statistic, low, high: with its 95 % interval; None when undefined.
        paper: what the paper has, as text, where it gives a number.
        note: why nothing is decided, or what the interval is over.
        id, where, premise: of a paper's sentence, in the registry of claims. study: whose runs decide.
        p: two-sided. power: to see `effect`.
        effect: the paper's, or the smallest that counts. spent: hours of a core, by the runs. hours: more of them, that
            would decide it, where nothing is.
        trials: of a paper's sentence, each of which has to come out; the statistic is of the one that decides.
    """

    claim: str
    verdict: str
    control: bool = False
    measured: str = "slope"
    statistic: float | None = None
    low: float | None = None
    high: float | None = None
    paper: str | None = None
    note: str = ""
    id: str = ""
    where: str = ""
    premise: str = ""
    study: str = ""
    p: float | None = None
    power: float | None = None
    effect: float | None = None
    spent: float | None = None
    hours: float | None = None
    trials: tuple[TrialVerdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        return found | {"trials": list(found["trials"])}  # as JSON has them


def trend(
    claim: str,
    x: Sequence[float],
    y: Sequence[float],
    *,
    seeds: Sequence[int] | None = None,
    sign: int = 1,
    control: bool = False,
    paper: str | None = None,
) -> Verdict:
    """Whether y rises with x (`sign` 1) or falls (-1): the slope, each seed with its own level, Student's interval.

    Args:
        claim: in plain words. x, y: one of each a run, finite. seeds: one a run; None: all runs are of one seed.
        sign: the claimed direction. control: beside the paper's own comparison. paper: the paper's number.

    Raises:
        UsageError: lengths differ, or a value that is not finite.

    Examples:
        >>> trend("y rises with x", [1, 2, 3, 4, 5], [2, 4, 6.1, 8, 10]).verdict
        'holds'
    """
    try:
        found = inference.slope(x, y, [0] * len(x) if seeds is None else list(seeds))
        if len(x) < _FEWEST:
            raise Undefined(f"only {len(x)} of {_FEWEST} runs needed")
    except Undefined as reason:
        return Verdict(claim, UNDECIDED, control, "slope", None, None, None, paper, reason.reason)
    return _own(claim, found, sign, control, paper, "slope", "runs")


def compare(
    claim: str,
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    sign: int = -1,
    control: bool = False,
    paper: str | None = None,
) -> Verdict:
    """Whether values lie below (`sign` -1) or above (1) their baseline: mean difference of pairs, Student's interval.

    Args:
        claim: in plain words. values, baseline: pairs, one a seed (or a seed and setting), finite.
        sign: the claimed direction. control: beside the paper's own comparison. paper: the paper's number.

    Raises:
        UsageError: lengths differ, or a value that is not finite.

    Examples:
        >>> compare("lower", [1.0, 1.1, 0.9], [2.0, 2.2, 2.1]).verdict
        'holds'
    """
    try:
        found = inference.difference(values, baseline, range(len(values)))
    except Undefined as reason:
        return Verdict(claim, UNDECIDED, control, "difference", None, None, None, paper, reason.reason)
    return _own(claim, found, sign, control, paper, "difference", "pairs")


def share(claim: str, hits: Sequence[bool], *, control: bool = False, paper: str | None = None) -> Verdict:
    """Whether something is so in every run: holds if in all, fails otherwise; for what a theorem or a picture says.

    Args:
        claim: in plain words. hits: one a run. control: beside the paper's own comparison. paper: the paper's number.
    """
    if not hits:
        return Verdict(claim, UNDECIDED, control, "share", None, None, None, paper, "no runs")
    count = sum(map(bool, hits))
    low, high = inference.proportion(count, len(hits))
    verdict = HOLDS if count == len(hits) else FAILS
    return Verdict(claim, verdict, control, "share", count / len(hits), low, high, paper, f"{len(hits)} cases")


def _own(
    claim: str, found: inference.Effect, sign: int, control: bool, paper: str | None, measured: str, unit: str
) -> Verdict:
    if sign not in (-1, 1):
        raise UsageError(f"got sign={sign}; give 1 for rises or larger, -1 for falls or smaller")
    low, high = found.interval()
    decided = UNDECIDED if low <= 0 <= high else HOLDS if (low > 0) == (sign > 0) else FAILS
    note = f"{found.runs} {unit}, {found.blocks} seeds" if found.varies else f"{found.runs} {unit}"
    return Verdict(claim, decided, control, measured, found.value, low, high, paper, note, p=found.p_value())
