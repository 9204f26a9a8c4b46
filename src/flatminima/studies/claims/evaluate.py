"""Every claim of the registry with what the results in a folder say of it, at each scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from flatminima.io import run_key
from flatminima.studies.claims.judge import WORST_RUN, correct, judge
from flatminima.studies.claims.quantities import Row, rows
from flatminima.studies.claims.registry import Claim, claims
from flatminima.studies.verdict import (
    AGAINST,
    CONTRADICTED,
    DECIDED,
    REPRODUCED,
    UNINFORMATIVE,
    UNMET,
    TrialVerdict,
    Verdict,
)

RUNGS = ("paper", "half", "cpu")  # the larger first; smoke decides nothing
CALCULATION = "calculation"
NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Finding:
    """A claim, and its verdict at each scale at which runs tried it ("calculation": no runs but numbers).

    Networks that were trained say more than a calculation on a small one.
    """

    claim: Claim
    verdicts: Mapping[str, Verdict]

    @property
    def scale(self) -> str | None:
        """The largest scale that decides; else the largest that was tried, if it can on runs that meet the premise.

        A scale does not speak for a larger one of which a trial speaks against it, see `_opposes`.
        """
        tried = [scale for scale in (*RUNGS, CALCULATION) if scale in self.verdicts]
        open_ones: list[str] = []
        for scale in tried:
            word = self.verdicts[scale].verdict
            if word in DECIDED and not any(self._opposes(larger, scale) for larger in open_ones):
                return scale
            if word not in (*DECIDED, UNMET):
                open_ones.append(scale)
        return next(iter(open_ones or tried), None)

    def _opposes(self, larger: str, scale: str) -> bool:
        """Whether a trial of the larger, undecided scale speaks against what the smaller one found.

        A sentence that is reproduced asserts all its trials: any on the larger scale that comes out against it counts,
        on whatever network. Else only the same trial does, where it comes out, or where its effect goes the other way
        and leaves out the smaller scale's value.
        """
        ours, word = _parts(self.verdicts[larger]), self.verdicts[scale].verdict
        if word == REPRODUCED and any(part.verdict in AGAINST for part in ours):
            return True
        decisive = [part for part in _parts(self.verdicts[scale]) if part.verdict == word]
        pairs = [(a, b) for b in decisive for a in ours if _same(a, b)]
        return any(_leaves_out(a, b) or (word != REPRODUCED and a.verdict == REPRODUCED) for a, b in pairs)

    @property
    def verdict(self) -> Verdict | None:
        return None if self.scale is None else self.verdicts[self.scale]

    @property
    def test(self) -> str | None:
        """Key of what decides: the same for sentences that the same trials, or the same calculation, decide."""
        if self.scale is None:
            return None
        return self.claim.check if self.scale == CALCULATION else run_key(_test(self.claim))

    @property
    def word(self) -> str:
        """The verdict's word; "not tried", or "stated" where no run can decide it."""
        if self.verdict is not None:
            return self.verdict.verdict
        return "stated" if self.claim.kind == "stated" else NOT_TRIED

    def to_dict(self) -> dict[str, Any]:
        c = self.claim
        told = (
            "id",
            "paper",
            "where",
            "quote",
            "kind",
            "figure",
            "effect",
            "why",
            "reads",
            "note",
            "own_numbers",
            "revised",
            "definition",
        )
        entry = {k: getattr(c, k) for k in told}
        more = {
            "premise": list(c.premise),
            "tried": c.tried,
            "needs": c.needs,
            "verdict": self.word,
            "scale": self.scale,
            "test": self.test,
        }
        return entry | more | {"scales": {scale: v.to_dict() for scale, v in self.verdicts.items()}}


def _parts(verdict: Verdict) -> tuple[TrialVerdict, ...]:
    """The verdicts of its trials; of one that was written before these were kept, its own."""
    own = (verdict.measured, verdict.verdict, verdict.statistic, verdict.low, verdict.high)
    return verdict.trials or (TrialVerdict(verdict.study, "", "", "", *own),)


def _same(a: TrialVerdict, b: TrialVerdict) -> bool:
    """Whether two scales tried the same, be it on another network."""
    return (a.study, a.data, a.quantity, a.measured) == (b.study, b.data, b.quantity, b.measured)


def _leaves_out(ours: TrialVerdict, other: TrialVerdict) -> bool:
    """Whether an effect goes the other way, and its interval leaves out the other's value; a range of runs has none."""
    if ours.measured.endswith(WORST_RUN) or ours.statistic is None or other.statistic is None:
        return False
    if ours.low is None or ours.high is None:
        return False
    return ours.statistic * other.statistic < 0 and not ours.low <= other.statistic <= ours.high


def evaluate(
    documents: Sequence[Mapping[str, Any]], *, paper: str | None = None, study: str | None = None
) -> list[Finding]:
    """Every claim with its verdicts, Holm's correction over the claims of a paper at a scale.

    Args:
        documents: of results.json. paper: only its claims. study: only the claims that it tries.

    Returns:
        In the order of the registry, those nothing tries too.
    """
    runs: dict[str, dict[str, list[Row]]] = {}
    for document in documents:
        runs.setdefault(document["scale"], {})[document["id"]] = rows(document)
    found: dict[str, dict[str, Verdict]] = {}
    for scale in RUNGS:
        for key in dict.fromkeys(claim.paper for claim in claims()):
            for name, verdict in _judged(claims(key), runs.get(scale, {})).items():
                found.setdefault(name, {})[scale] = verdict
    return [
        Finding(claim, MappingProxyType(found.get(claim.id, {}) | _calculated(claim))) for claim in claims(paper, study)
    ]


def of_study(document: Mapping[str, Any]) -> list[Verdict]:
    """The papers' claims that a study's own runs try, as far as they alone decide; none at smoke scale, nor of a
    study that the registry does not know."""
    own: list[Verdict] = []
    name, scale = document["id"], document["scale"]
    for key in dict.fromkeys(claim.paper for claim in claims(study=name)):
        about = [_only(claim, name) for claim in claims(key, name)]
        if scale in RUNGS:
            own += _judged(about, {name: rows(document)}).values()
        else:
            note = f"{scale} scale shows that the study runs, and decides nothing"
            own += [Verdict(c.quote, "", paper=c.effect or None, note=note, id=c.id, where=c.where) for c in about]
    return own


def count(findings: Sequence[Finding]) -> dict[str, int]:
    """Count the findings of each verdict."""
    return dict(Counter(finding.word for finding in findings))


def _only(claim: Claim, study: str) -> Claim:
    return replace(claim, trials=tuple(trial for trial in claim.trials if trial.study == study))


def _judged(about: Sequence[Claim], runs: Mapping[str, Sequence[Row]]) -> dict[str, Verdict]:
    tried = [(claim, verdict) for claim in about if claim.trials and (verdict := judge(claim, runs)) is not None]
    corrected = correct([verdict for _, verdict in tried], [_test(claim) for claim, _ in tried])
    return {claim.id: verdict for (claim, _), verdict in zip(tried, corrected, strict=True)}


def _test(claim: Claim) -> str:
    """The same for claims that the same trials decide."""
    return repr([claim.premise, *(replace(trial, said="", effect=None) for trial in claim.trials)])


def _calculated(claim: Claim) -> dict[str, Verdict]:
    if claim.check is None:
        return {}
    holds, said = _check(claim.check)
    word = UNINFORMATIVE if holds is None else REPRODUCED if holds else CONTRADICTED
    return {
        CALCULATION: Verdict(
            claim.quote,
            word,
            measured=CALCULATION,
            paper=claim.effect or None,
            note=said,
            id=claim.id,
            where=claim.where,
        )
    }


@cache
def _check(name: str) -> tuple[bool | None, str]:
    from flatminima.studies.claims.checks import CHECKS

    return tuple(CHECKS[name]())  # type: ignore[return-value]
