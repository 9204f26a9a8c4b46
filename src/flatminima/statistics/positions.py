"""The axis of an output's classes, and the positions that have a label: samples, tokens, pixels.

One meaning for all that is said of predictions: each labelled position counts once, ignored ones do not count. torch's
losses say where their classes are and what they ignore; a callable is asked (`loss_probe`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flatminima.core.losses import Loss
from flatminima.core.losses.cross_entropy import CrossEntropy
from flatminima.errors import Undefined
from flatminima.statistics.loss_probe import counted_by

PositionUnit = Literal["sample", "token", "position"]

_ENTRIES = 1 << 24  # logits at a time in float64


@dataclass(frozen=True)
class Labelled:
    """Some samples' logits by position.

    Attributes:
        rows (b, P, C): logits.
        labels (b, P): classes; 0 where there is none.
        counted (b, P) bool: the position has a label.
        unit: what a position is.
        dim: of the classes in the output.  shifted: the last position predicts nothing.
    """

    rows: Tensor
    labels: Tensor
    counted: Tensor
    unit: PositionUnit
    dim: int
    shifted: bool = False

    def rows_of(self, outputs: Tensor) -> Tensor:
        """The logits (b, P, C) of other outputs of this shape, such as the same with a graph."""
        rows = _flat(outputs, self.dim)
        return rows[:, :-1] if self.shifted else rows

    def parts(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Samples, and logits (k, C) float64, labels (k,) and row of the sample (k,) of their labelled positions."""
        step = max(1, _ENTRIES // max(1, self.rows[0].numel()))
        for start in range(0, len(self.rows), step):
            part = slice(start, start + step)
            counted = self.counted[part]
            yield part, self.rows[part][counted].double(), self.labels[part][counted], counted.nonzero()[:, 0]


def labelled_positions(loss: Loss, outputs: Tensor, targets: Tensor) -> Labelled:
    """The labelled positions of a batch.

    Raises:
        Undefined: targets that are no classes.
    """
    if targets.is_floating_point() or targets.dtype == torch.bool or outputs.dim() < 2:
        raise Undefined("targets are not classes (integers beside an output of one logit a class)")
    if isinstance(loss, CrossEntropy):
        return _of_cross_entropy(loss, outputs, targets)
    return _of_callable(loss, outputs, targets)


def _of_cross_entropy(loss: CrossEntropy, outputs: Tensor, targets: Tensor) -> Labelled:
    dim = -1 if loss.classes_last else 1
    rows, labels = _flat(outputs, dim), targets.reshape(len(targets), -1)
    if loss.shifted:
        rows, labels = rows[:, :-1], labels[:, 1:]
    counted = torch.ones_like(labels, dtype=torch.bool) if targets.dim() == 1 else labels != loss.ignored
    return Labelled(rows, labels * counted, counted, _unit(targets, loss.classes_last), dim, loss.shifted)


def _of_callable(loss: Loss, outputs: Tensor, targets: Tensor) -> Labelled:
    places = {1: (outputs.shape[0], *outputs.shape[2:]), -1: tuple(outputs.shape[:-1])}
    dims = [dim for dim, shape in places.items() if shape == tuple(targets.shape)][: 1 if outputs.dim() == 2 else 2]
    if not dims:
        raise Undefined(
            f"targets are not classes: of shape {tuple(targets.shape[1:])} a sample beside an output of shape "
            f"{tuple(outputs.shape[1:])}"
        )
    for dim in dims:
        rows, labels = _flat(outputs, dim), targets.reshape(len(targets), -1)
        counted = counted_by(loss, outputs, targets, dim)
        if counted is not None:
            return Labelled(rows, labels * counted, counted, _unit(targets, dim == -1), dim)
    raise Undefined(f"targets are not classes: loss {loss.name!r} does not lead each position to its label's logit")


def _flat(outputs: Tensor, dim: int) -> Tensor:
    """(b, P, C)."""
    rows = outputs.movedim(dim, -1)
    return rows.reshape(len(rows), math.prod(rows.shape[1:-1]), rows.shape[-1])


def refuse_none(count: float) -> None:
    """Refuse data without a single labelled position."""
    if not count:
        raise Undefined("no position of the data has a label that counts")


def _unit(targets: Tensor, classes_last: bool) -> PositionUnit:
    if targets.dim() == 1:
        return "sample"
    return "token" if classes_last else "position"
