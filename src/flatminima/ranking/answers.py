"""The answers of a network on samples: losses, and classes where targets are labels, as such or in another form.

A loss need not say that its targets are labels: one logit with 0 and 1, one-hot rows, a callable's class indices are
labels all the same. Samples beside those of training pass the gates of these first (`held_out`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.core.losses.user import UserLoss
from flatminima.core.minimum import Minimum
from flatminima.core.samples import as_samples
from flatminima.core.samples.base import refuse_not_finite
from flatminima.ranking.held_out import batches, forward, losses_of, refuse_unfit
from flatminima.ranking.labels_read import Reader, reader_of

_KEPT = 1_000_000  # numbers of outputs that are kept, for the constants that a callable is asked about
_ROUNDINGS = 2  # of the largest output, by which outputs of equal samples may differ


@dataclass(frozen=True)
class Answers:
    """Answers of a network on some samples.

    Attributes:
        losses: (n,) float64.
        wrong: (n,) where there are labels, else None.
        predicted: (n,) class numbers, or None.
        confidence: (n,) probability of the predicted class, or None.
        targets: as the samples have them, in the shape of the training data's.
        labels: (n,) class numbers where the targets are labels, or None.
        of_labels: whether the loss says so; else labels were read off the targets.
        constant: whether all outputs are the same.
        defined: whether no output is NaN.
        outputs: (k, ...) of some samples, where they are small.
    """

    losses: NDArray[np.float64]
    wrong: NDArray[np.bool_] | None
    predicted: NDArray[np.int64] | None
    confidence: NDArray[np.float64] | None
    targets: NDArray[Any]
    labels: NDArray[np.int64] | None = None
    of_labels: bool = True
    constant: bool = False
    defined: bool = True
    outputs: Tensor | None = None

    @property
    def finite(self) -> bool:
        return self.defined and bool(np.isfinite(self.losses).all())

    @property
    def error(self) -> float | None:
        return None if self.wrong is None else float(self.wrong.mean())

    @property
    def loss(self) -> float | None:
        return float(self.losses.mean()) if self.finite and len(self.losses) else None


def answers(minimum: Minimum, data: Any = None) -> Answers:
    """The network's answers on its training samples, or on others with labels.

    Args:
        minimum: the network. data: other samples, in any form that a Minimum takes; None: its own.

    Raises:
        DataError: samples that the network does not take, or targets that do not fit its outputs.
    """
    samples = minimum.samples if data is None else refuse_unfit(minimum, as_samples(data))
    found = _Gathered(reader_of(minimum), minimum)
    with minimum.open(), torch.no_grad():
        for inputs, targets in batches(minimum, samples):
            output = forward(minimum, inputs)
            losses = minimum.loss(output, targets) if data is None else losses_of(minimum, output, targets)
            found.add(output, losses, targets)
    return found.answers()


def unlabelled_answers(minimum: Minimum, data: Any) -> Answers:
    """The network's answers on samples whose targets are not looked at.

    Raises:
        DataError: samples that the network does not take.
    """
    samples = as_samples(data)
    found = _Gathered(reader_of(minimum), minimum)
    with minimum.open(), torch.no_grad():
        for start, (inputs, _) in enumerate(batches(minimum, samples)):
            refuse_not_finite(inputs, torch.zeros(1), start * minimum.batch_size)
            found.add(forward(minimum, inputs), None, None)
    return found.answers()


class _Gathered:
    """Answers, batch by batch."""

    def __init__(self, reader: Reader | None, minimum: Minimum) -> None:
        self.reader, self.minimum = reader, minimum
        self.parts: list[tuple[Tensor | None, ...]] = []
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.kept: list[Tensor] = []
        self.room = _KEPT
        self.defined = True
        self.eps = 0.0

    def add(self, output: Tensor, losses: Tensor | None, targets: Tensor | None) -> None:
        """Take a batch: its outputs, its losses and targets where it has them."""
        predicted = confidence = None
        if self.reader is not None:
            predicted, confidence = self.reader.read(output, targets)
        self.parts.append((losses, predicted, confidence, targets))
        self._look(output.detach())

    def _look(self, output: Tensor) -> None:
        self.defined &= not bool(output.isnan().any())
        low, high = output.amin(0), output.amax(0)
        if self.low is not None and self.high is not None:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low, self.high = low, high
        self.eps = torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0
        count = min(len(output), self.room // max(output[0].numel(), 1))
        if count and isinstance(self.minimum.loss, UserLoss):
            self.kept.append(output[:count].clone())
            self.room -= count * output[0].numel()

    @property
    def constant(self) -> bool:
        if self.low is None or self.high is None or not self.defined:
            return False
        low, high = self.low.double(), self.high.double()
        spread = torch.where(high == low, 0.0, high - low)  # of infinite logits, too
        sizes = torch.maximum(low.abs(), high.abs())
        sizes = torch.where(torch.isfinite(sizes), sizes, 0.0)
        return float(spread.max()) <= _ROUNDINGS * self.eps * float(sizes.max())

    def answers(self) -> Answers:
        losses, predicted, confidence, targets = (self._column(k) for k in range(4))
        own = np.empty(0) if losses is None else losses.astype(np.float64)
        given = np.empty(0) if targets is None else targets
        labels = None
        if self.reader is not None and targets is not None:
            labels = self.reader.labels(targets)
            if not self.reader.agrees:
                labels = predicted = confidence = None
        wrong = None if labels is None or predicted is None else np.asarray(predicted != labels)
        outputs = torch.cat(self.kept) if self.kept else None
        of_labels = self.minimum.loss.labels
        return Answers(
            own, wrong, predicted, confidence, given, labels, of_labels, self.constant, self.defined, outputs
        )  # fmt: skip

    def _column(self, k: int) -> NDArray[Any] | None:
        parts = [p for part in self.parts if (p := part[k]) is not None]
        if not parts or len(parts) < len(self.parts):
            return None
        column: NDArray[Any] = torch.cat([p.detach().cpu() for p in parts]).numpy()
        return column


def rows_equal(targets: NDArray[Any]) -> bool:
    """Whether all samples have one target."""
    rows = targets.reshape(len(targets), -1)
    return bool((rows == rows[:1]).all())
