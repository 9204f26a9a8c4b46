"""Whether a network fits its training data: by its errors, and by its loss against the best constant output's.

A flat minimum of nothing is flat: an untrained network, a head that was drawn anew, outputs scaled to nothing have the
smallest norms and curvatures of all. So every candidate is first asked this, whatever its loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flatminima.core.losses.elementwise import SquaredError
from flatminima.core.minimum import Minimum
from flatminima.ranking.answers import Answers, rows_equal
from flatminima.ranking.constant import Constant, best_constant

_SIGNIFICANT = 1e-3  # of being better than a constant answer
_HALF = 0.5  # of the constant answer's error, above which a network does not fit
_OF_CONSTANT = 0.9  # of the constant answer's loss, above which outputs say nothing
_GAIN = 0.05  # that renaming must bring
_BETTER = 0.5  # a renaming of classes must leave at most this share of the errors
_MANY = 20  # samples, above which a paired test of losses alone decides
_SAME = "its outputs are the same for every sample, as those of an untrained or broken network are"
_NOTHING = 1e-12  # loss of the best constant output above the least: there is nothing to fit


@dataclass(frozen=True)
class Fit:
    """Fit of a network to its training data.

    Attributes:
        left_out: why it is compared with nobody; None where it is.
        unordered: why the measures' order leaves it out, where only that does.
        share: its loss above the least there is, over the best constant output's; None where it is not known, or where
            errors say more.
    """

    left_out: str | None = None
    unordered: str | None = None
    share: float | None = None


def fit_of(minimum: Minimum, train: Answers) -> Fit:
    """Fit of the network to its training data.

    Args:
        minimum: the network. train: its answers there, all finite.
    """
    constant = best_constant(minimum, train.outputs, of_labels=train.labels is not None)
    share = _share(train, constant)
    if train.of_labels:
        return _by_labels(train, constant, share)
    return _by_loss(minimum, train, constant, share)


def _share(train: Answers, constant: Constant | None) -> float | None:
    if constant is None or constant.least is None or constant.mean - constant.least <= _NOTHING:
        return None
    return (float(train.losses.mean()) - constant.least) / (constant.mean - constant.least)


def _by_labels(train: Answers, constant: Constant | None, share: float | None) -> Fit:
    """Of a loss of labels: first by its errors."""
    assert train.wrong is not None and train.predicted is not None and train.labels is not None
    base, error = _base(train), float(train.wrong.mean())
    if base == 0:
        return Fit()  # one class: nothing to fit
    renamed = _renamed(train, error)
    if renamed is not None:
        return Fit(renamed)
    if len(np.unique(train.predicted)) == 1:
        only = int(train.predicted[0])
        return Fit(f"it answers class {only} for every sample, as an untrained or broken network does")
    if _no_better(train) > _SIGNIFICANT:
        return Fit(
            f"it errs on {error:.1%} of its training labels, no better than one answer for all ({base:.1%}): "
            "untrained, or other data, labels or preprocessing than in its training"
        )
    if error > _HALF * base:
        return Fit(unordered=_unfitted(error, base))
    if share is not None and constant is not None and share > _OF_CONSTANT:
        return Fit(unordered=_unscaled(train, constant, error))
    return Fit()


def _by_loss(minimum: Minimum, train: Answers, constant: Constant | None, share: float | None) -> Fit:
    """Of any other loss: against the best constant output; by the errors too, where the targets are labels."""
    error = None if train.wrong is None else float(train.wrong.mean())
    if rows_equal(train.targets) and share is None:
        return Fit()  # one target: nothing to fit
    if error is not None and (renamed := _renamed(train, error)) is not None:
        return Fit(renamed)
    same = train.constant and len(train.losses) > 1
    if constant is None:
        return Fit(_SAME if same else None)
    loss, mean = float(train.losses.mean()), constant.mean
    of = "the mean's" if isinstance(minimum.loss, SquaredError) else "the best constant output's"
    unsure = share is None or share > _OF_CONSTANT
    few = share is None and loss < mean and len(train.losses) < _MANY
    if unsure and not few and _not_below(train, constant) > _SIGNIFICANT:
        own = float(constant.losses.mean())
        return Fit(f"its training loss {loss:.3g} is no better than {of} ({own:.3g}): untrained, or other data")
    if same:
        return Fit(_SAME)
    if share is not None and share > _OF_CONSTANT:
        return Fit(unordered=_unscaled(train, constant, error), share=share)
    if error is not None and share is not None and share > _HALF and error > _HALF * _base(train) > 0:
        return Fit(unordered=_unfitted(error, _base(train)), share=share)
    return Fit(share=share)


def _unfitted(error: float, base: float) -> str:
    return f"it does not fit: {error:.1%} of its training labels are wrong ({base:.1%} by one answer for all)"


def _unscaled(train: Answers, constant: Constant, error: float | None) -> str:
    loss, mean = float(train.losses.mean()), constant.mean
    if error is None:
        return f"its training loss of {loss:.3g} is nearly the best constant output's ({mean:.3g}): it hardly fits"
    unit = " nats" if train.of_labels else ""
    return (
        f"its training loss of {loss:.3g}{unit} is that of one answer for all ({mean:.3g}), at {error:.1%} "
        "errors: its outputs are not on the scale of training"
    )


# -- errors ----------------------------------------------------------------------------------------------------------


def _base(train: Answers) -> float:
    """The error of one answer for all."""
    assert train.labels is not None
    return float(1 - np.unique(train.labels, return_counts=True)[1].max() / len(train.labels))


def _no_better(train: Answers) -> float:
    """Significance of fewer errors than one answer for all, by the samples that only one of them gets right."""
    from scipy.stats import binomtest

    assert train.wrong is not None and train.labels is not None
    classes, counts = np.unique(train.labels, return_counts=True)
    constant = train.labels != classes[counts.argmax()]
    better, worse = int((constant & ~train.wrong).sum()), int((train.wrong & ~constant).sum())
    return float(binomtest(better, better + worse, alternative="greater").pvalue) if better + worse else 1.0


def _renamed(train: Answers, error: float) -> str | None:
    """Whether another order of the classes would fit."""
    from scipy.optimize import linear_sum_assignment

    assert train.predicted is not None and train.labels is not None
    k = int(max(train.labels.max(), train.predicted.max())) + 1
    table = np.zeros((k, k))
    np.add.at(table, (train.predicted, train.labels), 1)
    rows, columns = linear_sum_assignment(-table)
    best = 1 - table[rows, columns].sum() / len(train.labels)
    moved = sum(1 for r, c in zip(rows, columns, strict=True) if r != c and table[r, c] > 0)
    if moved < 2 or best > _BETTER * error or error - best < _GAIN:
        return None
    return (
        f"its classes are in another order: it errs on {error:.1%}, and on {best:.1%} once {moved} of {k} are renamed"
    )


# -- losses ----------------------------------------------------------------------------------------------------------


def _not_below(train: Answers, constant: Constant) -> float:
    """Significance of a smaller mean loss than the best constant output's, by a paired t test."""
    from scipy.special import stdtr

    d = constant.losses - train.losses
    n, mean = len(d), float(d.mean())
    spread = float(d.std(ddof=1)) if n > 1 else 0.0
    if spread == 0:
        return 0.0 if mean > 0 and n > 1 else 1.0
    return float(stdtr(n - 1, -mean * math.sqrt(n) / spread))
