"""A candidate as it is before it is compared: its answers, and what keeps it out of a comparison.

A flat minimum of nothing is flat: an untrained network, a head that was drawn anew, outputs scaled to nothing have the
smallest norms and curvatures of all. So every candidate is first asked whether it fits its training data.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatminima.core.minimum import Minimum
from flatminima.core.samples import Samples, as_samples, map_tensors
from flatminima.diagnosis import Finding, batchnorm_findings
from flatminima.errors import FlatMinimaError

_SIGNIFICANT = 1e-3  # of being better than a constant answer
_HALF = 0.5  # of the constant answer's error, above which a network does not fit
_BEHIND = 0.05  # training error above the best fitted candidate's
_OF_CONSTANT = 0.9  # of the constant answer's loss, above which outputs say nothing
_SMALL = 1e-3  # nats: below, ratios of losses mean little
_GAIN = 0.05  # that renaming must bring
_BETTER = 0.5  # a renaming of classes must leave at most this share of the errors


@dataclass(frozen=True)
class Answers:
    """Answers of a network on some samples.

    Attributes:
        losses: (n,) float64.
        wrong: (n,) where there are labels, else None.
        predicted: (n,) class numbers, or None.
        confidence: (n,) probability of the predicted class, or None.
        targets: as the samples have them.
    """

    losses: NDArray[np.float64]
    wrong: NDArray[np.bool_] | None
    predicted: NDArray[np.int64] | None
    confidence: NDArray[np.float64] | None
    targets: NDArray[Any]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all())

    @property
    def error(self) -> float | None:
        return None if self.wrong is None else float(self.wrong.mean())

    @property
    def loss(self) -> float | None:
        return float(self.losses.mean()) if self.finite else None


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


def answers(minimum: Minimum, data: Any = None) -> Answers:
    """The network's answers on its training samples, or on others.

    Args:
        minimum: the network. data: other samples, in any form that a Minimum takes; None: its own.
    """
    samples: Samples = minimum.samples if data is None else as_samples(data)
    parts: list[tuple[Any, ...]] = []
    labels = minimum.loss.labels
    with minimum.open(), torch.no_grad():
        for rows in torch.arange(len(samples)).split(minimum.batch_size):
            inputs, targets = samples.take(rows)
            inputs, y = map_tensors(lambda t: t.to(minimum.device), inputs), targets.to(minimum.device)
            output = minimum.forward(inputs)
            losses = minimum.loss(output, y)
            if labels:
                best = output.softmax(1).double().max(1)
                parts.append((losses, output.argmax(1), best.values, targets))
            else:
                parts.append((losses, targets))
    columns = [torch.cat([p[k].detach().cpu() for p in parts]).numpy() for k in range(len(parts[0]))]
    own = columns[0].astype(np.float64)
    if not labels:
        return Answers(own, None, None, None, columns[1])
    return Answers(own, columns[1] != columns[3], columns[1], columns[2], columns[3])


def failed(name: str, error: FlatMinimaError) -> Candidate:
    """A candidate of which no Minimum can be made."""
    return Candidate(name, left_out=str(error))


def _judge(name: str, minimum: Minimum, train: Answers) -> Candidate:
    """The candidate by its training samples alone.

    Args:
        name: of the network. minimum: it. train: its answers there.
    """
    count = len(minimum.parameters)
    found = Candidate(name, train.error, None, train.loss, None, count)
    weights = all(bool(torch.isfinite(t).all()) for t in minimum.parameters.tensors)
    if not weights or not train.finite:
        return replace(found, left_out=f"its {'outputs' if weights else 'weights'} hold NaN or Inf")
    left_out, unordered = _labels(train) if train.predicted is not None else _numbers(train)
    findings = batchnorm_findings(minimum)
    if findings and unordered is None:
        unordered = findings[0].what
    return replace(found, left_out=left_out, unordered=unordered, findings=tuple(findings))


def _labels(train: Answers) -> tuple[str | None, str | None]:
    """Reasons against any comparison, and against the measures' order."""
    from scipy.stats import binomtest

    assert train.wrong is not None and train.predicted is not None
    classes, counts = np.unique(train.targets, return_counts=True)
    n, common = len(train.wrong), classes[counts.argmax()]
    base, error = 1 - counts.max() / n, float(train.wrong.mean())
    if base == 0:
        return None, None  # one class: nothing to fit
    renamed = _renamed(train, error)
    if renamed is not None:
        return renamed, None
    if len(np.unique(train.predicted)) == 1:
        only = int(train.predicted[0])
        return f"it answers class {only} for every sample, as an untrained or broken network does", None
    constant = train.targets != common
    better, worse = int((constant & ~train.wrong).sum()), int((train.wrong & ~constant).sum())
    p = float(binomtest(better, better + worse, alternative="greater").pvalue) if better + worse else 1.0
    if p > _SIGNIFICANT:
        return (
            f"it errs on {error:.1%} of its training labels, no better than one answer for all ({base:.1%}): "
            "untrained, or other data, labels or preprocessing than in its training"
        ), None
    if error > _HALF * base:
        return None, f"it does not fit: {error:.1%} of its training labels are wrong ({base:.1%} by one answer for all)"
    shares = counts / n
    entropy = float(-(shares * np.log(shares)).sum())
    loss = float(train.losses.mean())
    if loss > _OF_CONSTANT * entropy:
        return None, (
            f"its training loss of {loss:.3g} nats is that of one answer for all ({entropy:.3g}), at {error:.1%} "
            "errors: its outputs are not on the scale of training"
        )
    return None, None


def _renamed(train: Answers, error: float) -> str | None:
    """Whether another order of the classes would fit."""
    from scipy.optimize import linear_sum_assignment

    assert train.predicted is not None
    k = int(max(train.targets.max(), train.predicted.max())) + 1
    table = np.zeros((k, k))
    np.add.at(table, (train.predicted, train.targets), 1)
    rows, columns = linear_sum_assignment(-table)
    best = 1 - table[rows, columns].sum() / len(train.targets)
    moved = sum(1 for r, c in zip(rows, columns, strict=True) if r != c and table[r, c] > 0)
    if moved < 2 or best > _BETTER * error or error - best < _GAIN:
        return None
    return (
        f"its classes are in another order: it errs on {error:.1%}, and on {best:.1%} once {moved} of {k} are renamed"
    )


def _numbers(train: Answers) -> tuple[str | None, str | None]:
    """Of a loss without labels: whether squared errors beat the mean, where targets are numbers."""
    targets = train.targets.astype(np.float64).reshape(len(train.targets), -1)
    spread = float(((targets - targets.mean(0)) ** 2).mean())
    loss = float(train.losses.mean())
    if train.targets.dtype.kind == "f" and spread > 0 and loss > _OF_CONSTANT * spread and not _binary(targets):
        return (
            f"its training loss {loss:.3g} is no better than the mean's ({spread:.3g}): untrained, or other data",
            None,
        )
    return None, None


def _binary(targets: NDArray[np.float64]) -> bool:
    return bool(np.isin(targets, (0.0, 1.0)).all())


@dataclass(frozen=True)
class Look:
    """A candidate with what a comparison needs of it; the network itself is no longer needed.

    Attributes:
        candidate: as it is alone.
        shapes: names and shapes of its parameters. data: fingerprint of its samples. weights: hash of its parameters.
        test: answers on the held-out samples, or None. unlabelled: on samples without labels, or None.
    """

    candidate: Candidate
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    data: str = ""
    weights: str = ""
    test: Answers | None = None
    unlabelled: Answers | None = None


def look(name: str, minimum: Minimum, test: Any = None, unlabelled: Any = None) -> Look:
    """The candidate, its answers, and what tells it from others.

    Args:
        name: of the network. minimum: it. test: held-out samples with labels. unlabelled: samples without; their
            targets
            are not read.
    """
    found = _judge(name, minimum, answers(minimum))
    held = None if test is None or found.train_loss is None else answers(minimum, test)
    if held is not None and held.finite:
        found = replace(found, test_error=held.error, test_loss=held.loss)
    elif held is not None:
        reason = found.left_out or "its outputs on the held-out samples hold NaN or Inf"
        found, held = replace(found, left_out=reason), None
    free = None if unlabelled is None or not found.compared else answers(minimum, unlabelled)
    digest = hashlib.blake2b(digest_size=8)
    for tensor in minimum.parameters.tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return Look(
        found,
        tuple((n, tuple(p.shape)) for n, p in minimum.parameters),
        minimum.samples.fingerprint,
        digest.hexdigest(),
        held,
        free,
    )


def among(looks: Sequence[Look]) -> list[Candidate]:
    """The candidates with what only a comparison of them shows: fits, architectures, data, copies, agreement."""
    out = [one.candidate for one in looks]
    _behind(out)
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


def _behind(out: list[Candidate]) -> None:
    """Leave those out of the order whose training error is far from the others'."""
    errors = [c.train_error for c in out if c.ordered and c.train_error is not None]
    if not errors:
        return
    lowest = min(errors)
    for i, c in enumerate(out):
        if c.ordered and c.train_error is not None and c.train_error > lowest + _BEHIND:
            reason = (
                f"its training error of {c.train_error:.1%} is far from the best's {lowest:.1%}: measures order gaps"
            )
            out[i] = replace(c, unordered=reason)


def losses_ratio(candidates: Sequence[Candidate]) -> float:
    """The largest training loss of those in the order over the smallest; losses below 0.001 count as that."""
    known = [c.train_loss for c in candidates if c.ordered and c.train_loss is not None and c.train_loss >= 0]
    losses = [max(loss, _SMALL) for loss in known]
    return max(losses) / min(losses) if losses else 1.0


def _noted(candidate: Candidate, what: str, do: str) -> Candidate:
    return replace(candidate, findings=(*candidate.findings, Finding("caution", what, do)))
