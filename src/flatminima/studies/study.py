"""A study: a list of runs, each a pure function of its configuration, and the claims that their results decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flatminima.errors import UnknownName
from flatminima.ranking import kendall

Config = dict[str, Any]
Result = dict[str, Any]
SCALES = ("smoke", "cpu", "paper")
_FEWEST = 5  # runs: of four, a perfect order has p = 2/4! > 0.05, while its bootstrap interval is a point


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one sentence of a paper.

    Attributes:
        claim: the trend in plain words. control: True for our own comparison beside the paper's.
        statistic, low, high: Kendall's tau-b and its 95 % bootstrap interval; None when undefined.
        verdict: "holds", "fails" or "undecided" (zero in the interval, none, or under five runs).
    """

    claim: str
    control: bool
    statistic: float | None
    low: float | None
    high: float | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Study:
    """One figure or table of a paper.

    Args:
        id: name on the command line. paper: figure and paper. title: one line.
        configurations: (scale, data source) to configurations that JSON can hold.
        run: one configuration to numbers; pure, and importable by name, so that another process can call it.
        claims: results of all runs that succeeded to verdicts.
        reduction: how each scale differs from the paper, in plain words.
    """

    id: str
    paper: str
    title: str
    configurations: Callable[[str, str], list[Config]]
    run: Callable[[Config], Result]
    claims: Callable[[Sequence[Result]], list[Verdict]]
    reduction: dict[str, str]

    def list_runs(self, scale: str, data: str) -> list[Config]:
        """The configurations at a scale.

        Raises:
            UnknownName: no such scale.
        """
        if scale not in SCALES:
            raise UnknownName("scale", scale, SCALES)
        return self.configurations(scale, data)


def trend(claim: str, x: Sequence[float], y: Sequence[float], *, sign: int = 1, control: bool = False) -> Verdict:
    """Whether y rises with x (`sign` 1) or falls (-1): Kendall's tau-b with an interval over runs.

    Args:
        claim: in plain words. x, y: one of each a run. sign: the claimed direction. control: not the paper's own.

    Example:
        >>> trend("y rises with x", [1, 2, 3, 4, 5], [2, 4, 6, 8, 10]).verdict
        'holds'
    """
    found = kendall(x, y)
    low, high = found.low, found.high
    if low is None or high is None or low <= 0 <= high or found.networks < _FEWEST:
        verdict = "undecided"
    else:
        verdict = "holds" if sign * low > 0 else "fails"
    return Verdict(claim, control, found.tau, low, high, verdict)
