"""A candidate as it is before it is compared: its answers, and what keeps it out of a comparison."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flatminima.core.losses.elementwise import SquaredError
from flatminima.core.minimum import Minimum
from flatminima.core.samples import Samples, as_samples
from flatminima.diagnosis import Finding, batchnorm_findings
from flatminima.errors import DataError, FlatMinimaError
from flatminima.ranking.answers import Answers, answers, unlabelled_answers
from flatminima.ranking.fit import Fit, fit_of
from flatminima.ranking.held_out import in_shape, seen_in_training, unlabelled_in_training, without_targets
from flatminima.ranking.loss_kinds import Kind, kind_of

_BEHIND = 0.05  # training error above the best fitted candidate's
_BEHIND_LOSS = 0.1  # the same of the share of the constant's loss that is left
_ROUNDING = 1e-7  # of a probability of 1 in float32: below, a loss of labels has hardly a gradient
_MANY_TIMES = 100  # as large, that another's loss is
_SMALL = 1e-3  # nats: below, ratios of losses mean little


@dataclass(frozen=True)
class Candidate:
    """One network of a comparison.

    Attributes:
        name: of the network.
        train_error, test_error: shares of wrong answers; None where there are no labels, or no answers.
        train_loss, test_loss: means.
        parameters: how many are trained; None where there is no network.
        left_out: why it is compared with nobody; None where it is.
        unordered: why the measures' order leaves it out, where only that does.
        findings: what else is to be known.
        agreement: mean share of unlabelled samples on which it agrees with the other candidates.
        confidence: mean probability of its answers on unlabelled samples.
    """

    name: str
    train_error: float | None = None
    test_error: float | None = None
    train_loss: float | None = None
    test_loss: float | None = None
    parameters: int | None = None
    left_out: str | None = None
    unordered: str | None = None
    findings: tuple[Finding, ...] = ()
    agreement: float | None = None
    confidence: float | None = None

    @property
    def compared(self) -> bool:
        return self.left_out is None

    @property
    def ordered(self) -> bool:
        return self.compared and self.unordered is None


def failed(name: str, error: FlatMinimaError) -> Candidate:
    """A candidate of which no Minimum can be made."""
    return Candidate(name, left_out=str(error))


def _judge(name: str, minimum: Minimum, train: Answers) -> tuple[Candidate, Fit]:
    """The candidate by its training samples alone.

    Args:
        name: of the network. minimum: it. train: its answers there.
    """
    count = len(minimum.parameters)
    found = Candidate(name, train.error, None, train.loss, None, count)
    weights = all(bool(torch.isfinite(t).all()) for t in minimum.parameters.tensors)
    if not weights or not train.finite:
        return replace(found, left_out=f"its {'outputs' if weights else 'weights'} hold NaN or Inf"), Fit()
    fit = fit_of(minimum, train)
    unordered, findings = fit.unordered, batchnorm_findings(minimum)
    if findings and unordered is None:
        unordered = findings[0].what
    return replace(found, left_out=fit.left_out, unordered=unordered, findings=tuple(findings)), fit


@dataclass(frozen=True)
class Look:
    """A candidate with what a comparison needs of it; the network itself is no longer needed.

    Attributes:
        candidate: as it is alone.
        shapes: names and shapes of its parameters. data: fingerprint of its samples. weights: hash of its parameters.
        test: answers on the held-out samples, or None. unlabelled: on samples without labels, or None.
        share: of the best constant output's training loss that is left, where errors do not say more; None: not known.
        kind: its loss. seen: held-out samples that are training samples too, in words.
        refused: the held-out samples do not fit it.
    """

    candidate: Candidate
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    data: str = ""
    weights: str = ""
    test: Answers | None = None
    unlabelled: Answers | None = None
    share: float | None = None
    kind: Kind | None = None
    seen: tuple[str, ...] = ()
    refused: DataError | None = None


def look(name: str, minimum: Minimum, test: Any = None, unlabelled: Any = None) -> Look:
    """The candidate, its answers, and what tells it from others.

    Args:
        name: of the network. minimum: it. test: held-out samples with labels. unlabelled: samples without; their
            targets are not read.
    """
    train = answers(minimum)
    found, fit = _judge(name, minimum, train)
    held = free = kind = refused = None
    seen: tuple[str, ...] = ()
    if train.finite:
        kind = kind_of(minimum, minimum.samples, train.losses)
        try:
            if test is not None:
                held_out = in_shape(minimum, as_samples(test))
                found, held, seen = _tested(found, minimum, held_out)
                kind = kind if held is None else kind_of(minimum, held_out, held.losses)
            if unlabelled is not None and found.compared:
                found, free, more = _free(found, minimum, without_targets(unlabelled))
                seen += more
        except DataError as error:
            refused, held, free = error, None, None
            found = replace(found, left_out=found.left_out or f"the held-out samples do not fit it: {error}")
    return Look(
        found,
        tuple((n, tuple(p.shape)) for n, p in minimum.parameters),
        minimum.samples.fingerprint,
        _hash(minimum),
        held,
        free,
        fit.share,
        kind,
        seen,
        refused,
    )


def _hash(minimum: Minimum) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in minimum.parameters.tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tested(found: Candidate, minimum: Minimum, test: Samples) -> tuple[Candidate, Answers | None, tuple[str, ...]]:
    """The candidate on the held-out samples."""
    seen = seen_in_training(minimum, test)
    held = answers(minimum, test)
    if not held.finite:
        reason = found.left_out or "its outputs on the held-out samples hold NaN or Inf"
        return replace(found, left_out=reason), None, ()
    if found.train_error is None:
        held = replace(held, wrong=None)
    return replace(found, test_error=held.error, test_loss=held.loss), held, seen


def _free(found: Candidate, minimum: Minimum, samples: Samples) -> tuple[Candidate, Answers | None, tuple[str, ...]]:
    """The candidate on the samples without labels."""
    free = unlabelled_answers(minimum, samples)
    if not free.defined:
        return replace(found, left_out="its outputs on the samples without labels hold NaN"), None, ()
    return found, free, unlabelled_in_training(minimum, samples)


def among(looks: Sequence[Look]) -> list[Candidate]:
    """The candidates with what only a comparison of them shows: fits, architectures, data, copies, agreement."""
    out = [one.candidate for one in looks]
    _behind(out, looks)
    _saturated(out, looks)
    alive = [i for i, c in enumerate(out) if c.compared and looks[i].shapes]
    if not alive:
        return out
    usual_shape = Counter(looks[i].shapes for i in alive).most_common(1)[0][0]
    usual_data = Counter(looks[i].data for i in alive).most_common(1)[0][0]
    for i in alive:
        if looks[i].data != usual_data and out[i].unordered is None:
            out[i] = replace(out[i], unordered="it was measured on other samples than most")
        if looks[i].shapes != usual_shape:
            out[i] = _noted(
                out[i],
                f"another architecture than most ({out[i].parameters:,} parameters)",
                "norms, counts and curvature of different shapes are not on one scale",
            )
        twin = next((j for j in alive if j < i and looks[i].weights == looks[j].weights), None)
        if twin is not None and looks[i].shapes == looks[twin].shapes:
            out[i] = _noted(out[i], f"the same weights as {out[twin].name}", "one of the two is enough")
    return _without_labels(out, looks)


def _without_labels(out: list[Candidate], looks: Sequence[Look]) -> list[Candidate]:
    """Agreement between candidates and mean confidence, on samples without labels."""
    free = {i: u for i, one in enumerate(looks) if (u := one.unlabelled) is not None and u.predicted is not None}
    for i, own in free.items():
        others = [float(np.mean(own.predicted == o.predicted)) for j, o in free.items() if j != i]
        sure = None if own.confidence is None else float(own.confidence.mean())
        out[i] = replace(out[i], agreement=float(np.mean(others)) if others else None, confidence=sure)
    return out


def _behind(out: list[Candidate], looks: Sequence[Look]) -> None:
    """Leave those out of the order whose training error or loss is far from the others'."""
    errors = {i: c.train_error for i, c in enumerate(out) if c.ordered and c.train_error is not None}
    lowest = min(errors.values(), default=0.0)
    for i, error in errors.items():
        if error > lowest + _BEHIND:
            reason = f"its training error of {error:.1%} is far from the best's {lowest:.1%}: measures order gaps"
            out[i] = replace(out[i], unordered=reason)
    shares = {i: s for i, one in enumerate(looks) if out[i].ordered and (s := one.share) is not None}
    least = min(shares.values(), default=0.0)
    for i, share in shares.items():
        if out[i].ordered and share > least + _BEHIND_LOSS:
            reason = (
                f"its training loss is {share:.0%} of the best constant output's, far from the best's {least:.0%}: "
                "measures order gaps"
            )
            out[i] = replace(out[i], unordered=reason)


def _saturated(out: list[Candidate], looks: Sequence[Look]) -> None:
    """Leave those out of the order whose labels' losses are 0 to rounding, where others' are not."""
    losses = {i: c.train_loss for i, c in enumerate(out) if c.ordered and c.train_loss is not None}
    most = max(losses.values(), default=0.0)
    for i, loss in losses.items():
        if _of_labels(out[i], looks[i]) and 0 <= loss < _ROUNDING and most > _MANY_TIMES * _ROUNDING:
            reason = (
                f"its training loss of {loss:.2g} is 0 to rounding, unlike the others' (up to {most:.2g}): outputs so "
                "large have no gradients, whatever the weights"
            )
            out[i] = replace(out[i], unordered=reason)


def _of_labels(candidate: Candidate, one: Look) -> bool:
    """Whether its loss is one of labels, in nats or like these."""
    return candidate.train_error is not None and one.kind is not None and not isinstance(one.kind.loss, SquaredError)


def losses_ratio(candidates: Sequence[Candidate]) -> float:
    """The largest training loss of those in the order over the smallest; losses below 0.001 count as that."""
    known = [c.train_loss for c in candidates if c.ordered and c.train_loss is not None and c.train_loss >= 0]
    losses = [max(loss, _SMALL) for loss in known]
    return max(losses) / min(losses) if losses else 1.0


def _noted(candidate: Candidate, what: str, do: str) -> Candidate:
    return replace(candidate, findings=(*candidate.findings, Finding("caution", what, do)))


__all__ = ["Answers", "Candidate", "Look", "among", "answers", "failed", "look", "losses_ratio"]
