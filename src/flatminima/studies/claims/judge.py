"""Judgement of a paper's sentence by the runs of the studies.

Reproduced: the interval lies on the claimed side, and the paper's effect is not excluded. Contradicted: it lies on the
other side. Smaller than claimed: the paper's effect, or the smallest that counts, is excluded. Else not informative. A
sentence about equality, or that something does not predict, is tested for equivalence within its margin, so that a lack
of data never confirms it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from scipy.stats import binom, norm

from flatminima.errors import Undefined
from flatminima.studies import inference
from flatminima.studies.claims.quantities import MOST, Row, alike_in, fits, value
from flatminima.studies.claims.registry import ALONG, BOUNDED, PAIRED, Claim, Trial
from flatminima.studies.inference import LEVEL, Effect
from flatminima.studies.verdict import (
    CONTRADICTED,
    DECIDED,
    REPRODUCED,
    SMALLER,
    UNINFORMATIVE,
    UNMET,
    TrialVerdict,
    Verdict,
)
from flatminima.studies.words import in_words, network_of

WORST_RUN = "worst run"  # what a sentence about every run shows
SHARE = "share of runs"  # what a sentence about most of them shows
_OFTEN = {0.5: "most", 0.9: "nine in ten"}
_ENOUGH = 0.8  # power
_LESS = ("falls", "smaller", "not_rises", "not_larger")
_TOGETHER = ("data", "name")  # in which partners agree, too, unless the groups of a trial differ in it
_NULLS = ("not_rises", "not_falls", "not_larger", "flat", "similar")
_TWO_SIDED_NULLS = ("flat", "similar")


def judge(claim: Claim, runs: Mapping[str, Sequence[Row]]) -> Verdict | None:
    """Judge a claim by the runs of one scale.

    Args:
        claim: of the registry. runs: study to its rows, see `quantities.rows`; an absent study has none.

    Returns:
        The verdict over all trials of which there are runs, the statistic of the weakest; None where no trial has any.
        What is asserted of more than there are runs of, or than there are runs that meet its premise, can be
        contradicted, and not be reproduced.
    """
    tried = [(trial, _by_network(claim, trial, runs.get(trial.study, ()))) for trial in claim.trials]
    found = [verdict for _, verdicts in tried for verdict in verdicts]
    if not found:
        return None
    verdict = replace(_over_all(found), trials=tuple(part for own in found for part in own.trials))
    if verdict.verdict == UNMET:
        return verdict
    untried: dict[str, dict[str, None]] = {"no runs of": {}, "no runs that meet the premise of": {}}
    for trial, verdicts in tried:
        if all(v.verdict == UNMET for v in verdicts):
            of = "no runs that meet the premise of" if verdicts else "no runs of"
            untried[of][trial.said or in_words(trial.y, trial.study)] = None
    missing = [f"{of} {', '.join(names)}" for of, names in untried.items() if names]
    if missing:
        word = UNINFORMATIVE if verdict.verdict == REPRODUCED else verdict.verdict
        verdict = replace(verdict, verdict=word, note="; ".join(part for part in (verdict.note, *missing) if part))
    return verdict


def _by_network(claim: Claim, trial: Trial, rows: Sequence[Row]) -> list[Verdict]:
    """`try_one`, once for each data set and network of the study: what holds of one need not hold of another."""
    apart, groups = _shared(trial), dict[tuple[object, ...], list[Row]]()
    for r in rows:
        groups.setdefault(tuple(r.get(key) for key in apart), []).append(r)
    found = [(own[0], verdict) for own in groups.values() if (verdict := try_one(claim, trial, own)) is not None]
    return [replace(verdict, trials=(_part(trial, apart, row, verdict),)) for row, verdict in found]


def _shared(trial: Trial) -> list[str]:
    """What all rows of a comparison share: data set and network, but for what the trial compares."""
    return [key for key in _TOGETHER if trial.first.get(key) == trial.second.get(key)]


def _part(trial: Trial, apart: Sequence[str], row: Row, verdict: Verdict) -> TrialVerdict:
    data = str(row.get("data") or "") if "data" in apart else ""
    network = network_of(row) if "name" in apart else ""
    told = (verdict.measured, verdict.verdict, verdict.statistic, verdict.low, verdict.high, verdict.p, verdict.note)
    return TrialVerdict(trial.study, data, network, in_words(trial.y, trial.study), *told)


def _over_all(found: Sequence[Verdict]) -> Verdict:
    """The verdict on a sentence by those of its trials, all of which must come out."""
    decided = [v for v in found if v.verdict != UNMET]
    if not decided:
        return found[0]
    against = [v for v in decided if v.verdict == CONTRADICTED]
    p_against = min((len(found) * (v.p or 0.0) for v in against), default=1.0)
    if against and p_against < LEVEL:
        worst = min(against, key=lambda v: v.p or 0.0)
        return replace(worst, p=None if worst.p is None else min(1.0, p_against), note=_together(worst, found))
    less = [v for v in decided if v.verdict == SMALLER and len(found) * (v.p or 0.0) < LEVEL]
    if less:  # what is asserted of all falls short in one, whatever the others would show
        worst = min(less, key=lambda v: v.p or 0.0)
        p_less = None if worst.p is None else min(1.0, len(found) * worst.p)
        return replace(worst, p=p_less, note=_together(worst, found))
    ranks = {UNINFORMATIVE: 0, CONTRADICTED: 0, SMALLER: 1, REPRODUCED: 2}
    worst = min(decided, key=lambda v: (ranks[v.verdict], -(v.p or 0.0)))
    if worst.verdict == CONTRADICTED:
        worst = replace(worst, verdict=UNINFORMATIVE)
    return replace(worst, note=_together(worst, found))


def correct(verdicts: Sequence[Verdict], tests: Sequence[Hashable]) -> list[Verdict]:
    """The verdicts of one paper at one scale after Holm's correction: what it does not keep is not informative.

    Args:
        verdicts: of a family of claims. tests: what each was tried by; sentences that one test decides count once.
    """
    p_values = {test: v.p for v, test in zip(verdicts, tests, strict=True) if v.p is not None and v.verdict != UNMET}
    adjusted = dict(zip(p_values, inference.holm(list(p_values.values())), strict=True))
    found = []
    for verdict, test in zip(verdicts, tests, strict=True):
        if verdict.p is not None and verdict.verdict in DECIDED and adjusted[test] >= LEVEL:
            after = f"{adjusted[test]:.2g} after Holm over {len(adjusted)} tests"
            said = f"{verdict.verdict} at p {verdict.p:.2g} alone, {after}"
            note = "; ".join(n for n in (said, verdict.note) if n)
            hours = _hours_to_keep(verdict, LEVEL * verdict.p / adjusted[test])
            verdict = replace(verdict, verdict=UNINFORMATIVE, note=note, hours=hours)
        found.append(verdict)
    return found


def _hours_to_keep(verdict: Verdict, level: float) -> float | None:
    """Core-hours more after which the same effect has a p below a level, with a chance of 80 %."""
    if verdict.spent is None or not verdict.p:
        return None
    needed, had = norm.isf(level / 2) + norm.isf(1 - _ENOUGH), norm.isf(verdict.p / 2)
    return float(max(0.0, (needed / had) ** 2 - 1) * verdict.spent)


def try_one(claim: Claim, trial: Trial, rows: Sequence[Row]) -> Verdict | None:
    """One trial on the rows of its study; None where none, or none of one group, has what it is about."""
    needed = [trial.y] + ([trial.x] if trial.x else [])
    about = [r for r in rows if fits(r, trial.where)]
    about = [r for r in about if ("tau" in r) == (trial.y == "tau")]  # a tau is of several runs, and no run
    about = [r for r in about if not trial.first or fits(r, trial.first) or fits(r, trial.second)]
    about = [r for r in about if all(value(name, r) is not None for name in needed)]
    groups = (trial.first, trial.second) if trial.first else ({},)
    if not all(any(fits(r, group) for r in about) for group in groups):
        return None
    own, unmet = _premises(claim.premise, trial, about)
    blank = Verdict(
        claim.quote,
        UNINFORMATIVE,
        paper=claim.effect or None,
        id=claim.id,
        where=claim.where,
        premise="; ".join(claim.premise),
        study=trial.study,
        measured=_measured(trial),
        effect=trial.effect if trial.effect is not None else trial.margin,
    )
    if unmet:
        return replace(blank, verdict=UNMET, note=unmet)
    blank = replace(blank, spent=sum(r["seconds"] for r in own) / 3600)
    try:
        if trial.shape in BOUNDED:
            return _bounded(trial, own, blank)
        if trial.shape == "v":
            return _vertex(trial, own, blank)
        return _decided(trial, _effect(trial, own), blank)
    except Undefined as reason:
        again = f"{reason.reason}; an interval takes at least as many runs again"
        return _all_alike(trial, own, blank) or replace(blank, note=again, hours=blank.spent)


def _premises(premises: Sequence[str], trial: Trial, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows that meet them, and why they do not count if too few do."""
    own = list(rows)
    for premise in premises:
        kind, _, number = premise.rpartition(" ")
        bound = float(number)
        if kind == "train losses within a factor of":
            own, unmet = _alike(trial, own, bound)
            if unmet:
                return [], unmet
            continue
        if kind == "train losses within":
            losses = [r["train_loss"] for r in own]
            if max(losses) - min(losses) > bound:
                return [], f"training losses from {min(losses):.3g} to {max(losses):.3g}: not within {number}"
            continue
        sign = -1 if kind.endswith(" at least") else 1
        words = kind.removesuffix(" at most").removesuffix(" at least").replace(" ", "_")
        column = {"outputs equal to": "outputs"}.get(kind, words)
        met = [r for r in own if r.get(column) is not None and sign * r[column] <= sign * bound]
        if len(met) < MOST * len(own):
            return [], f"{premise}: {len(met)} of {len(own)} runs"
        own = met
    return own, ""


def _alike(trial: Trial, rows: list[Row], factor: float) -> tuple[list[Row], str]:
    """The rows whose training losses differ by a factor at most, from their partner's or, without pairs, from all."""
    if not trial.first:
        alike = [rows[i] for i in alike_in([_losses([r]) for r in rows], factor)]
        if len(alike) >= MOST * len(rows):
            return alike, ""
        losses = _losses(rows) or [math.nan]
        return [], f"training losses from {min(losses):.3g} to {max(losses):.3g}: not within a factor of {factor:g}"
    pairs = _pairs(trial, rows)
    close = [pair for pair in pairs if len(alike_in([_losses([r]) for r in pair], factor)) == len(pair)]
    if len(close) < MOST * len(pairs):
        return [], f"training losses within a factor of {factor:g}: {len(close)} of {len(pairs)} pairs"
    return [row for pair in close for row in pair], ""


def _losses(rows: Sequence[Row]) -> list[float]:
    """Training losses of the networks behind some rows; a tau is of several, and has the largest and the least."""
    return [r[key] for r in rows for key in ("train_loss", "least_train_loss") if key in r]


def _effect(trial: Trial, rows: Sequence[Row]) -> Effect:
    if trial.shape in ALONG and not trial.first:
        x, y = ([_number(name, r) for r in rows] for name in (trial.x or "", trial.y))
        return inference.slope(x, y, [_block(r) for r in rows])
    pairs = _pairs(trial, rows)
    if not pairs:
        raise Undefined("no pairs")
    if trial.shape in ALONG:  # of what one group has beyond the other
        x = [_number(trial.x or "", a) for a, _ in pairs]
        y = [_number(trial.y, a) - _number(trial.y, b) for a, b in pairs]
        return inference.slope(x, y, [_block(a) for a, _ in pairs])
    settings = [k for k in (*trial.pair, *_TOGETHER) if k != "seed"]
    strata = [tuple(a.get(k) for k in settings) for a, _ in pairs]
    values, baseline = ([_number(trial.y, pair[i]) for pair in pairs] for i in (0, 1))
    return inference.difference(values, baseline, [a["seed"] for a, _ in pairs], strata)


def _all_alike(trial: Trial, rows: Sequence[Row], blank: Verdict) -> Verdict | None:
    """Pairs that are equal to the last digit, which have no interval: a sign test. None where a pair differs.

    If partners differed by what counts in at least half of the seeds, none of n would with a chance of 2^-n at most.
    """
    if trial.shape not in PAIRED:
        return None
    pairs = _pairs(trial, rows)
    if not pairs or any(_number(trial.y, a) != _number(trial.y, b) for a, b in pairs):
        return None
    seeds = len({_block(a) for a, _ in pairs})
    p, said = 0.5**seeds, f"all {len(pairs)} pairs are equal to the last digit, {seeds} seeds"
    told = replace(blank, statistic=0.0, p=p, note=said)
    if p >= LEVEL / 2:
        more = math.ceil(math.log2(2 / LEVEL)) / seeds - 1
        return replace(told, hours=more * (blank.spent or 0.0))
    return replace(told, verdict=REPRODUCED if trial.shape in _NULLS else SMALLER)


def _pairs(trial: Trial, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    groups = [[r for r in rows if fits(r, group)] for group in (trial.first, trial.second)]
    same = _shared(trial)

    def place(row: Row) -> tuple[object, ...]:
        return *(row[k] for k in trial.pair), *(row.get(k) for k in same)

    partner = {place(r): r for r in groups[1]}
    return [(r, partner[at]) for r in groups[0] if (at := place(r)) in partner]


def _number(name: str, row: Row) -> float:
    found = value(name, row)
    assert found is not None  # `try_one` leaves such rows out
    return found


def _block(row: Row) -> int:
    return int(row.get("seed", 0))


def _decided(trial: Trial, found: Effect, blank: Verdict) -> Verdict:
    low, high = found.interval()
    told = replace(blank, statistic=found.value, low=low, high=high, note=_over(found))
    if trial.shape in _NULLS:
        return _null(trial, found, told)
    sign = -1 if trial.shape in _LESS else 1
    ahead, behind = (low, high) if sign > 0 else (-high, -low)  # the interval, seen in the claimed direction
    claimed = abs(trial.effect) if trial.effect is not None else None
    told = replace(told, p=found.p_value())
    if ahead > 0:
        excluded = claimed is not None and behind < claimed
        return replace(told, verdict=SMALLER if excluded else REPRODUCED)
    if behind < 0:
        return replace(told, verdict=CONTRADICTED)
    counts = claimed if claimed is not None else trial.margin
    if counts is not None:
        p = found.p_above(counts * sign) if sign < 0 else found.p_below(counts)
        if p < LEVEL / 2:
            return replace(told, verdict=SMALLER, p=min(1.0, 2 * p))
    return _open(told, found, counts)


def _null(trial: Trial, found: Effect, told: Verdict) -> Verdict:
    """A sentence that says "no more than"."""
    margin = trial.margin or 0.0
    if trial.shape in _TWO_SIDED_NULLS:
        p = found.equivalent(margin)
        beyond = min(found.p_above(margin), found.p_below(-margin))
    elif trial.shape == "not_falls":
        p, beyond = found.p_above(-margin), found.p_below(-margin)
    else:
        p, beyond = found.p_below(margin), found.p_above(margin)
    if p < LEVEL:
        return replace(told, verdict=REPRODUCED, p=p)
    if beyond < LEVEL / 2:
        return replace(told, verdict=CONTRADICTED, p=2 * beyond)
    return _open(replace(told, p=p), found, margin or None)


def _open(told: Verdict, found: Effect, counts: float | None) -> Verdict:
    """Nothing is decided: with which power, and what would."""
    if counts is None:
        return told
    power = found.power(counts)
    wanted = counts if power < _ENOUGH else counts / 2  # seen, and still between nothing and what counts
    more = max(0.0, (found.detectable() / wanted) ** 2 - 1)
    return replace(told, power=power, hours=more * (told.spent or 0.0))


def _bounded(trial: Trial, rows: Sequence[Row], blank: Verdict) -> Verdict:
    """Of every run, or every pair's difference, which one contradicts; or of a share of them, by its interval."""
    values, of_what = [_number(trial.y, r) for r in rows], "runs"
    if trial.first:
        values, of_what = [_number(trial.y, a) - _number(trial.y, b) for a, b in _pairs(trial, rows)], "pairs"
        if not values:
            raise Undefined("no pairs")
    bound = trial.bound if trial.bound is not None else math.nan
    hits = [v <= bound if trial.shape == "at_most" else v >= bound for v in values]
    worst = max(values) if trial.shape == "at_most" else min(values)
    low, high = inference.proportion(sum(hits), len(hits))
    counted = f"{sum(hits)} of {len(hits)} {of_what}"
    if trial.share == 1:
        word = REPRODUCED if all(hits) else CONTRADICTED
        note = f"{counted} (share {low:.2f} to {high:.2f}); the interval is the range of the {of_what}"
        told = replace(blank, verdict=word, statistic=worst, low=min(values), high=max(values), note=note)
        return told if min(values) < max(values) else replace(told, note=note.split(";")[0])
    found, claimed = sum(hits) / len(hits), _OFTEN.get(trial.share, f"{trial.share:g}")
    as_many, as_few = (binom.sf(sum(hits) - 1, len(hits), trial.share), binom.cdf(sum(hits), len(hits), trial.share))
    told = replace(blank, statistic=found, low=low, high=high, p=min(1.0, 2 * float(min(as_many, as_few))))
    told = replace(told, note=f"{counted}, claimed of {claimed}; {WORST_RUN} {worst:.3g}")
    if not low < trial.share <= high:
        return replace(told, verdict=REPRODUCED if low >= trial.share else CONTRADICTED)
    apart = abs(found - trial.share)
    more = max(1.0, ((high - low) / 2 / apart) ** 2 - 1) if apart else 1.0
    return replace(told, hours=more * (blank.spent or 0.0))


def _vertex(trial: Trial, rows: Sequence[Row], blank: Verdict) -> Verdict:
    x, y = ([_number(name, r) for r in rows] for name in (trial.x or "", trial.y))
    found = inference.two_lines(x, y, [_block(r) for r in rows])
    p = 2 * max(found.before.p_below(), found.after.p_above())
    low, high = found.after.interval()
    said = f"least at {found.place:g} ({found.low:g} to {found.high:g}); slope before it {found.before.value:+.3g}"
    told = replace(blank, statistic=found.after.value, low=low, high=high, p=min(1.0, p), note=said)
    if p < LEVEL:
        if trial.vertex is not None and not found.low <= trial.vertex <= found.high:
            return replace(told, note=f"{said}; the paper's vertex is at {trial.vertex:g}")
        return replace(told, verdict=REPRODUCED)
    wrong = min(found.before.p_above(), found.after.p_below())
    if 4 * wrong < LEVEL:  # either line goes the other way
        return replace(told, verdict=CONTRADICTED, p=4 * wrong)
    return told


def _over(found: Effect) -> str:
    said = f"{found.runs} values, {found.blocks} seed{'s' if found.blocks > 1 else ''}"
    return said + (", whose effects differ" if found.varies else "")


def _together(worst: Verdict, found: Sequence[Verdict]) -> str:
    if len(found) == 1:
        return worst.note
    tally = {v.verdict: sum(other.verdict == v.verdict for other in found) for v in found}
    counts = ", ".join(f"{n} {name}" for name, n in tally.items())
    return f"{worst.note}; of {len(found)} trials {counts}"


def _measured(trial: Trial) -> str:
    """Name the statistic of a trial."""
    said, along = trial.said or in_words(trial.y, trial.study), in_words(trial.x or "", trial.study)
    if trial.shape == "v":
        return f"{said}: slope beyond the vertex, along {along}"
    if trial.shape in ALONG:
        return f"{said}: slope along {along}"
    if trial.shape in BOUNDED and trial.share < 1:
        return f"{said}, {trial.shape.replace('_', ' ')} {trial.bound:g}: {SHARE}"
    return f"{said}: {WORST_RUN if trial.shape in BOUNDED else 'difference'}"
