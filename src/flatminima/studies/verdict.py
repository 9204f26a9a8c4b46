"""What the runs of a study say of a sentence of a paper: a statistic, its interval over seeds, a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from flatminima.errors import UsageError
from flatminima.ranking import kendall

_FEWEST = 5  # runs: of four, a perfect order has p = 2/4! > 0.05, while its bootstrap interval is a point
_SEEDS = 3  # from which the interval is over seeds
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one sentence of a paper.

    Attributes:
        claim: the sentence in plain words.
        verdict: "holds", "fails" or "undecided" (the claimed value lies in the interval, or too few runs).
        control: True for our own comparison beside the paper's.
        measured: what `statistic` is: "tau", "difference", "share", ...
        statistic, low, high: with its 95 % interval; None when undefined.
        paper: what the paper has, as text, where it gives a number.
        note: why nothing is decided, or what the interval is over.
    """

    claim: str
    verdict: str
    control: bool = False
    measured: str = "tau"
    statistic: float | None = None
    low: float | None = None
    high: float | None = None
    paper: str | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    """Whether y rises with x (`sign` 1) or falls (-1): Kendall's tau-b.

    With at least three seeds the statistic is the mean of each seed's own tau and the interval Student's over seeds, as
    runs of one seed are no independent draws; else tau of all runs with a bootstrap interval over them.

    Args:
        claim: in plain words. x, y: one of each a run, finite. seeds: one a run. sign: the claimed direction.
        control: not the paper's own comparison. paper: the paper's number.

    Raises:
        UsageError: lengths differ, or a value that is not finite.

    Examples:
        >>> trend("y rises with x", [1, 2, 3, 4, 5], [2, 4, 6, 8, 10]).verdict
        'holds'
    """
    if seeds is not None and len(seeds) != len(x):
        raise UsageError(f"got {len(seeds)} seeds for {len(x)} values; give one of each a run")
    whole = kendall(x, y)
    if whole.tau is None or whole.networks < _FEWEST:
        note = whole.undefined or f"only {whole.networks} of {_FEWEST} runs needed"
        return Verdict(claim, "undecided", control, "tau", whole.tau, None, None, paper, note)
    if seeds is not None:
        taus = [kendall(*_of_seed(seed, seeds, x, y)).tau for seed in sorted(set(seeds))]
        defined = [tau for tau in taus if tau is not None]
        if len(defined) >= _SEEDS:
            mean, low, high = _interval(defined)
            low, high = max(low, -1.0), min(high, 1.0)
            note = f"{len(defined)} seeds"
            return Verdict(claim, _decide(sign, low, high), control, "tau", mean, low, high, paper, note)
    note = f"{whole.networks} runs"
    if whole.low is None or whole.high is None:
        return Verdict(claim, "undecided", control, "tau", whole.tau, None, None, paper, note)
    decided = _decide(sign, whole.low, whole.high)
    return Verdict(claim, decided, control, "tau", whole.tau, whole.low, whole.high, paper, note)


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
        sign: the claimed direction. control: not the paper's own comparison. paper: the paper's number.

    Raises:
        UsageError: lengths differ, or a value that is not finite.

    Examples:
        >>> compare("lower", [1.0, 1.1, 0.9], [2.0, 2.2, 2.1]).verdict
        'holds'
    """
    if len(values) != len(baseline):
        raise UsageError(f"got {len(values)} values for {len(baseline)} baselines; give pairs")
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise UsageError("got NaN or Inf among the values to compare; leave such runs out")
    if len(differences) < 2:
        only = differences[0] if differences else None
        note = f"{len(differences)} pairs; an interval needs 2"
        return Verdict(claim, "undecided", control, "difference", only, None, None, paper, note)
    mean, low, high = _interval(differences)
    note = f"{len(differences)} pairs"
    return Verdict(claim, _decide(sign, low, high), control, "difference", mean, low, high, paper, note)


def share(claim: str, hits: Sequence[bool], *, control: bool = False, paper: str | None = None) -> Verdict:
    """Whether something is so in every run: holds if in all, fails otherwise; for what a theorem or a picture says.

    Args:
        claim: in plain words. hits: one a run. control: not the paper's own comparison. paper: the paper's number.
    """
    if not hits:
        return Verdict(claim, "undecided", control, "share", None, None, None, paper, "no runs")
    value = fmean(map(float, hits))
    return Verdict(
        claim, "holds" if all(hits) else "fails", control, "share", value, None, None, paper, f"{len(hits)} cases"
    )


def _of_seed(
    seed: int, seeds: Sequence[int], x: Sequence[float], y: Sequence[float]
) -> tuple[list[float], list[float]]:
    rows = [i for i, s in enumerate(seeds) if s == seed]
    return [x[i] for i in rows], [y[i] for i in rows]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    mean, n = fmean(values), len(values)
    half = float(student.ppf(0.5 + _CONFIDENCE / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def _decide(sign: int, low: float, high: float) -> str:
    if low <= 0 <= high:
        return "undecided"
    return "holds" if (low > 0) == (sign > 0) else "fails"
