"""The candidate to ship: an answer in one sentence, what it rests on, and who was left out of it and why."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from flatminima.errors import DataError, UsageError
from flatminima.ranking.calibrated import Calibration, nearest
from flatminima.ranking.candidates import Candidate, Look, among, losses_ratio
from flatminima.ranking.loss_kinds import groups_of
from flatminima.ranking.order import Order, order
from flatminima.ranking.paired import Paired, compare_errors, compare_losses
from flatminima.table import MeasureTable

Basis = Literal["errors", "losses", "measures", "none"]

_APART = 0.005  # training errors that differ by more are said to differ
_TRIED = 3.2  # ratio of training losses among the networks that the probabilities were fitted to
_APART_LOSSES = 10.0  # ratio beyond which measures follow the loss
_ENDLESS = 1_000  # times the samples there are, beyond which more of them are no advice
_KERNEL = 3  # dimensions of a convolution's weights, at least
_WIDTH = 80


@dataclass(frozen=True)
class Choice:
    """The answer to "which do I ship?".

    Attributes:
        answer: one sentence.
        basis: what it rests on: held-out "errors" or "losses", "measures", or "none".
        ship: names that the answer allows: one, several that differ insignificantly, or none where nothing is known.
        notes: what a reader of the answer must know.
        candidates: all of them, with training and test errors, and why they were left out.
        pairs: of candidates on the same held-out samples; numbers are places in `candidates`.
        order: by measures, where there are no held-out labels.
        test_samples: held-out samples.
    """

    answer: str
    basis: Basis
    ship: tuple[str, ...]
    notes: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    pairs: tuple[Paired, ...] = ()
    order: Order | None = None
    test_samples: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(dict.fromkeys(self.notes)))

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "answer": self.answer,
            "basis": self.basis,
            "ship": list(self.ship),
            "notes": list(self.notes),
            "candidates": [asdict(c) for c in self.candidates],
            "pairs": [asdict(p) | {"told_apart": p.told_apart} for p in self.pairs],
            "order": None if self.order is None else self.order.to_dict(),
            "test_samples": self.test_samples,
        }

    def __str__(self) -> str:
        from rich.console import Console

        from flatminima.ranking.render import render_choice

        buffer = io.StringIO()
        render_choice(self, Console(file=buffer, width=_WIDTH, force_terminal=False, no_color=True))
        return buffer.getvalue().rstrip()


def choose(
    looks: Sequence[Look],
    tables: Sequence[MeasureTable | None] | None = None,
    measures: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Choice:
    """Compare candidates, by held-out samples where these are, else by measures.

    Args:
        looks: the candidates, of different names.
        tables: of their measures; None where nothing was measured.
        measures: that vote on an order; None: those that did best in the zoo.
        seed: of the order's resamples.

    Returns:
        Choice; without held-out labels its order holds candidates that fit their training data, and no others.

    Raises:
        UsageError: fewer than two candidates, or two of one name.
        DataError: held-out samples that fit none of the candidates which could be compared.
    """
    if len(looks) < 2 or len({one.candidate.name for one in looks}) < len(looks):
        raise UsageError(f"got {len(looks)} candidates; give two or more, of different names")
    candidates = _named_shortly(among(looks))
    compared = [i for i, c in enumerate(candidates) if c.compared]
    refused = next((one.refused for one in looks if one.refused is not None), None)
    if not compared and refused is not None:
        raise DataError(f"the held-out samples do not fit the networks: {refused}")
    if not compared:
        answer = f"Ship none: not one of the {len(looks)} candidates is a trained network on this data"
        return Choice(answer, "none", (), _left_out(candidates), tuple(candidates))
    tested = all(looks[i].test is not None for i in compared)
    by_errors = tested and all(_has_errors(looks[i]) for i in compared)
    groups = _by_loss(looks, compared)
    mixed = _said_of(candidates, looks, groups) if len(groups) > 1 else None
    if mixed is not None and not by_errors:
        if len(groups[0]) == len(groups[1]):
            notes = (*_left_out(candidates), *_cautions(candidates))
            answer = f"{'No answer' if tested else 'No order'}: {mixed}: make every Minimum with one loss"
            return Choice(answer, "none", (), notes, tuple(candidates))
        compared, mixed = groups[0], None
        candidates = _of_most(candidates, looks, groups)
    out = _left_out(candidates) + _seen(candidates, looks, compared)
    if mixed is not None:
        out = (*out, f"Caution: {mixed}: compared by errors, not by losses")
    if tested:
        return _by_test(candidates, looks, compared, out, of_errors=mixed is not None)
    return _by_measures(candidates, looks, tables, measures, out, seed)


def _has_errors(one: Look) -> bool:
    return one.test is not None and one.test.wrong is not None


def _by_loss(looks: Sequence[Look], compared: list[int]) -> list[list[int]]:
    """Places of the candidates that have one loss, the largest group first."""
    known = [(i, kind) for i in compared if (kind := looks[i].kind) is not None]
    return [sorted(known[k][0] for k in group) for group in groups_of([kind for _, kind in known])]


def _loss(one: Look) -> str:
    return "another loss" if one.kind is None else one.kind.said


def _said_of(candidates: list[Candidate], looks: Sequence[Look], groups: list[list[int]]) -> str:
    """What the losses of the candidates are, where they differ."""
    said = "; ".join(f"{_listed([candidates[i].name for i in g])}: {_loss(looks[g[0]])}" for g in groups)
    return f"the candidates have different losses, which are not on one scale ({said})"


def _of_most(candidates: list[Candidate], looks: Sequence[Look], groups: list[list[int]]) -> list[Candidate]:
    """Those of another loss than most left out."""
    usual, out = _loss(looks[groups[0][0]]), list(candidates)
    for i in (i for group in groups[1:] for i in group):
        reason = f"its loss, {_loss(looks[i])}, is not that of most ({usual}): losses of two kinds are not on one scale"
        out[i] = replace(out[i], left_out=reason)
    return out


def _seen(candidates: list[Candidate], looks: Sequence[Look], compared: list[int]) -> tuple[str, ...]:
    """Cautions about held-out samples that are training samples: in one line where they are those of all."""
    every = {looks[i].seen for i in compared}
    if len(every) == 1:
        return tuple(f"Caution: {note}" for note in every.pop())
    return tuple(f"Caution: {candidates[i].name}: {note}" for i in compared for note in looks[i].seen)


# -- with held-out labels --------------------------------------------------------------------------------------------


def _by_test(
    candidates: list[Candidate], looks: Sequence[Look], compared: list[int], out: tuple[str, ...], *, of_errors: bool
) -> Choice:
    """By errors where the losses say that the targets are labels, or where losses cannot be compared."""
    tests = [looks[i].test for i in compared]
    errors = [t.wrong for t in tests if t is not None and t.wrong is not None and (of_errors or t.of_labels)]
    by_errors = len(errors) == len(compared)
    basis: Basis = "errors" if by_errors else "losses"
    score = [_score(candidates[i], by_errors) for i in compared]
    n = len(tests[0].losses) if tests[0] is not None else 0
    notes = out + _cautions(candidates)
    if len(compared) == 1:
        only = candidates[compared[0]]
        answer = f"Only {only.name} can be compared: {_said(score[0], basis)} on {n:,} test samples"
        return Choice(answer, basis, (only.name,), notes, tuple(candidates), test_samples=n)
    found = compare_errors(errors) if by_errors else compare_losses([t.losses for t in tests if t is not None])
    best = min(range(len(compared)), key=lambda k: (score[k], k))
    against = {(p.first if p.second == best else p.second): p for p in found if best in (p.first, p.second)}
    equal = [k for k in against if not against[k].told_apart]
    names = [candidates[i].name for i in compared]
    pairs = tuple(replace(p, first=compared[p.first], second=compared[p.second]) for p in found)
    if not equal:
        second = min(against, key=lambda k: (score[k], k))
        answer = _ship(names, score, best, second, against[second], basis, len(found))
        return Choice(answer, basis, (names[best],), notes, tuple(candidates), pairs, test_samples=n)
    group = sorted([best, *equal])
    answer = _not_apart([names[k] for k in group], [score[k] for k in group], [against[k] for k in equal], basis, n)
    return Choice(answer, basis, tuple(names[k] for k in group), notes, tuple(candidates), pairs, test_samples=n)


def _score(candidate: Candidate, by_errors: bool) -> float:
    found = candidate.test_error if by_errors else candidate.test_loss
    assert found is not None
    return found


def _ship(
    names: list[str], score: list[float], best: int, second: int, pair: Paired, basis: Basis, comparisons: int
) -> str:
    low, high = (pair.low, pair.high) if pair.first == best else (-pair.high, -pair.low)
    unit = "points" if basis == "errors" else "in mean loss"
    scale = 100.0 if basis == "errors" else 1.0
    digits = 1 if basis == "errors" and scale * low >= 0.1 else 2 if basis == "errors" else 3
    ends = " to ".join(f"{scale * v:.{digits}f}" if basis == "errors" else f"{v:.{digits}g}" for v in (low, high))
    all_ = f", {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"Ship {names[best]}: {_said(score[best], basis)} against {_said(score[second], basis, bare=True)} of the "
        f"next, {names[second]} (paired, 95 % interval of the difference {ends} {unit}{all_})"
    )


def _not_apart(names: list[str], score: list[float], pairs: list[Paired], basis: Basis, n: int) -> str:
    low, high = min(score), max(score)
    span = _said(low, basis) if low == high else f"{_said(low, basis, bare=True)} to {_said(high, basis)}"
    said = f"{_listed(names)} cannot be told apart ({span} on the same {n:,} samples)"
    further = [p.further for p in pairs if p.further is not None]
    if not further:
        return f"{said}: they err equally often"
    most = max(further)
    if most > _ENDLESS * n:
        return f"{said}, and no number of samples that one has would change that"
    could = "they could" if len(further) == len(pairs) else "those could that do not err equally often"
    return f"{said}; at {_rounded(most):,} more test samples {could}"


def _said(value: float, basis: Basis, *, bare: bool = False) -> str:
    if basis == "losses":
        return f"{value:.4g}" if bare else f"{value:.4g} test loss"
    return f"{100 * value:.1f} %" if bare else f"{100 * value:.1f} % test error"


def _rounded(count: int) -> int:
    """Up to two digits: more would say more than is known."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


# -- by measures -----------------------------------------------------------------------------------------------------


def _by_measures(
    candidates: list[Candidate],
    looks: Sequence[Look],
    tables: Sequence[MeasureTable | None] | None,
    measures: Sequence[str] | None,
    out: tuple[str, ...],
    seed: int,
) -> Choice:
    fit = [i for i, c in enumerate(candidates) if c.ordered and tables is not None and tables[i] is not None]
    notes = out + _cautions(candidates) + _unlabelled(candidates)
    remedy = "held-out labels (--test-split, test=) would settle it"
    if tables is None or all(t is None for t in tables):
        answer = f"No order: nothing was measured; {remedy}"
        return Choice(answer, "none", (), notes, tuple(candidates))
    if len(fit) < 2:
        who = f"only {candidates[fit[0]].name} fits" if fit else "none of the candidates fits"
        answer = f"No order: {who} its training data as the others do; {remedy}"
        return Choice(answer, "none", tuple(candidates[i].name for i in fit), notes, tuple(candidates))
    try:
        found = order(
            [t for i in fit if (t := tables[i]) is not None], [candidates[i].name for i in fit], measures, seed=seed
        )
    except UsageError as error:
        return Choice(f"No order: {error}; {remedy}", "none", (), notes, tuple(candidates))
    family = nearest(any(len(shape) >= _KERNEL for i in fit for _, shape in looks[i].shapes))
    notes = _worth(family, found) + _training(candidates, fit) + notes
    ratio = losses_ratio([candidates[i] for i in fit])
    if ratio > _TRIED:
        found = replace(found, calibrated=False)
    if ratio > _APART_LOSSES:
        answer = (
            f"No order to trust: training losses differ {ratio:.0f}-fold, and measures follow the training loss first; "
            f"{remedy}"
        )
        return Choice(answer, "none", (), notes, tuple(candidates), order=found)
    first = found.places[0]
    shares = ", ".join(f"{p.name} {p.best:.0%}" for p in found.places[1:4])
    more = ", ..." if len(found.places) > 4 else ""
    answer = (
        f"{first.name} is likeliest to have the smallest gap: {first.best:.0%} ({shares}{more}), by measures alone, "
        f"which is weak evidence; {remedy}"
    )
    if not found.calibrated:
        why = f"training losses differ {ratio:.1f}-fold" if ratio > _TRIED else f"by {', '.join(found.measures)}"
        answer = f"{first.name} comes first by measures, with no probability ({why}, which was never tried); {remedy}"
    return Choice(answer, "measures", (first.name,), notes, tuple(candidates), order=found)


def _worth(family: Calibration, found: Order) -> tuple[str, ...]:
    taus = ", ".join(f"{name} {family.taus[name]:+.2f}" for name in found.measures if name in family.taus)
    worth = (
        f"What measures are worth: on the nearest networks tried ({family.name}, {family.networks} of them, all "
        f"trained to one loss) the default votes order {family.right:.0%} of the pairs as their gaps (a coin: 50%)"
    )
    return (f"{worth}; Kendall's tau with the gap: {taus} (docs/which-measure.md)" if taus else worth,)


def _training(candidates: list[Candidate], fit: list[int]) -> tuple[str, ...]:
    errors = [e for i in fit if (e := candidates[i].train_error) is not None]
    if not errors or max(errors) - min(errors) <= _APART:
        return ()
    return (
        f"Training errors differ ({min(errors):.1%} to {max(errors):.1%}): these measures order gaps, not errors; a "
        "smaller gap on top of a larger training error need not be the smaller test error",
    )


def _unlabelled(candidates: list[Candidate]) -> tuple[str, ...]:
    notes = []
    agree = {c.name: c.agreement for c in candidates if c.agreement is not None}
    if agree:
        said = ", ".join(f"{name} {value:.1%}" for name, value in sorted(agree.items(), key=lambda p: -p[1]))
        notes.append(
            f"Agreement with the other candidates on samples without labels: {said}. Near the accuracy where runs of "
            "one recipe are calibrated together (Jiang et al. 2022); wrong where they make the same mistakes"
        )
    sure = {c.name: c.confidence for c in candidates if c.confidence is not None}
    if sure:
        said = ", ".join(f"{name} {value:.1%}" for name, value in sorted(sure.items(), key=lambda p: -p[1]))
        notes.append(
            f"Mean confidence there: {said}. The accuracy of a calibrated network; trained ones are mostly too sure "
            "(Guo et al. 2017)"
        )
    return tuple(notes)


# -- words -----------------------------------------------------------------------------------------------------------


def _left_out(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(f"Left out: {c.name}: {c.left_out}" for c in candidates if c.left_out is not None)


def _cautions(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    said = []
    for c in candidates:
        if not c.compared:
            continue
        if c.unordered is not None:
            said.append(f"Caution: {c.name}: {c.unordered}")
        said += [f"Caution: {c.name}: {f}" for f in c.findings if f.what != c.unordered]
    return tuple(said)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _named_shortly(candidates: list[Candidate]) -> list[Candidate]:
    """Names without the folder that all of them share."""
    names = [c.name for c in candidates]
    short = [os.path.splitext(os.path.basename(name))[0] for name in names]
    if len(set(short)) < len(short):
        short = [os.path.basename(name) for name in names]
    return (
        [replace(c, name=s) for c, s in zip(candidates, short, strict=True)]
        if len(set(short)) == len(short)
        else candidates
    )
