"""Cross-entropies of labels, tokens, pixels and soft labels, with class weights and label smoothing.

The loss of a sample is the mean (or, of the losses called ``..._sequence``, the sum) over its positions that are not
ignored of what torch's ``reduction="none"`` returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from flatminima.core.losses.loss import ExactLoss, Loss, as_rows, refuse_too_many_columns, unit_and_log_norm
from flatminima.core.losses.softmax import (
    Coefficients,
    class_blocks,
    drawn_softmax_column,
    softmax_columns,
    softmax_loss,
    softmax_seed,
)
from flatminima.errors import DataError

_IGNORED = -100  # torch's ignore_index
_NORMALISED = {torch.float64: 1e-9, torch.float32: 1e-3}  # |ln sum_c p_c| of log-probabilities
_NORMALISED_DEFAULT = 0.1


@final
@dataclass(frozen=True, eq=False)
class CrossEntropy(ExactLoss):
    """-sum_c w_c q_c ln p_c, p the softmax of the logits, q the label or the soft labels, smoothed.

    Args:
        name: for messages and reports.
        labels: outputs are (batch, classes) and targets class indices (batch,).
        classes_last: outputs are (batch, tokens, classes); otherwise, as torch has them, (batch, classes, ...).
        shifted: the logits of a token are for the next one.
        soft: targets may be probabilities in the outputs' shape.
        weight (classes,): of each class; None: 1.
        smoothing: share of the label that is spread over all classes.
        ignored: label of positions that do not count.
        mean: torch's reduction was the mean over the batch; positions must then count alike.
        normalised: outputs are log-probabilities (``NLLLoss``), which the softmax leaves as they are.
        total: the sum over a sample's positions, not their mean: minus the logarithm of a sequence's probability.
    """

    name: str
    labels: bool = False
    classes_last: bool = False
    shifted: bool = False
    soft: bool = False
    weight: Tensor | None = None
    smoothing: float = 0.0
    ignored: int = _IGNORED
    mean: bool = False
    normalised: bool = False
    total: bool = False

    def fitted(self, output: Tensor, target: Tensor) -> Loss:
        labels = output.dim() == 2 and not target.is_floating_point() and not self.classes_last
        return replace(self, labels=True) if labels else self

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        if self.normalised:
            _refuse_unnormalised(output, self.name)
        logits = self._rows(output)
        losses = softmax_loss(logits, self._coefficients(logits, target))
        return losses.squeeze(1) if losses.shape[1] == 1 else losses.sum(1)

    def seed(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._rows(output)
        a, unit, log_norms = self._coefficients(logits, target), torch.empty_like(output), []
        for part in class_blocks(logits):
            gradient, scale = softmax_seed(logits[part], a.part(part))
            like = output[part]
            unit[part], log_norm = unit_and_log_norm(as_rows(self._as_output(gradient, like)), scale, like)
            log_norms.append(log_norm)
        return unit, torch.cat(log_norms)

    def columns(self, output: Tensor, target: Tensor) -> Tensor:
        logits = self._rows(output.detach())
        total = self._coefficients(logits, target).total
        if logits.shape[1] == 1:
            return self._as_output(softmax_columns(logits, total), output).to(output.dtype)
        size = refuse_too_many_columns(output)
        samples, positions, classes = logits.shape
        class_blocks = torch.zeros(positions, classes, *logits.shape, dtype=torch.float64, device=output.device)
        every = torch.arange(positions, device=output.device)
        class_blocks[every, :, :, every] = softmax_columns(logits, total).permute(2, 0, 1, 3)
        columns = class_blocks.flatten(0, 1)
        missing = size - len(columns)  # of the last token, which predicts nothing
        columns = torch.cat([columns, columns.new_zeros(missing, samples, positions, classes)])
        return self._as_output(columns, output).to(output.dtype)

    def drawn_column(self, output: Tensor, target: Tensor, signs: Tensor) -> Tensor:
        logits, each = self._rows(output.detach()), self._rows(signs)
        total = self._coefficients(logits, target).total
        found = torch.empty_like(logits)
        for part in class_blocks(logits):
            found[part] = drawn_softmax_column(logits[part], total[part], each[part]).to(found.dtype)
        return self._as_output(found, output)

    def refuse_concave(self, output: Tensor, target: Tensor) -> None:
        """Convex for every target that `check_targets` lets pass."""

    def _rows(self, output: Tensor) -> Tensor:
        """Logits (batch, positions, classes)."""
        z = output if self.classes_last else output.movedim(1, -1)
        if self.shifted:
            z = z[:, :-1]
        return z.reshape(len(z), math.prod(z.shape[1:-1]), z.shape[-1])

    def _as_output(self, t: Tensor, output: Tensor) -> Tensor:
        """(..., batch, positions, classes) in the output's shape, the inverse of `_rows`."""
        if self.shifted:
            t = torch.nn.functional.pad(t, (0, 0, 0, 1))
        before = t.shape[:-3]
        shape = output.shape if self.classes_last else (output.shape[0], *output.shape[2:], output.shape[1])
        t = t.reshape(*before, *shape)
        return t if self.classes_last else t.movedim(-1, len(before) + 1)

    def _coefficients(self, logits: Tensor, target: Tensor) -> Coefficients:
        """Of each row; a sample's are divided by the number of its positions that count."""
        samples, positions, classes = logits.shape
        weight = None if self.weight is None else self.weight.to(logits.device, torch.float64)
        if target.is_floating_point():
            q = target.movedim(1, -1).reshape(logits.shape).double()
            q = q * (1 - self.smoothing) + self.smoothing / classes
            spread = (q if weight is None else q * weight) / positions
            return Coefficients(spread.sum(-1), spread=spread)
        labels = (target[:, 1:] if self.shifted else target).reshape(samples, positions)
        counted = labels != self.ignored
        labels = torch.where(counted, labels, 0)
        share = counted.double()
        if not self.total:
            share = share / counted.sum(1, keepdim=True).clamp_min(1)
        own = share * (1 - self.smoothing) if weight is None else share * (1 - self.smoothing) * weight[labels]
        if not self.smoothing:
            return Coefficients(own, labels, own)
        even = torch.ones(classes, dtype=torch.float64, device=logits.device) if weight is None else weight
        spread = share.unsqueeze(-1) * (even * self.smoothing / classes)
        return Coefficients(own + spread.sum(-1), labels, own, spread)

    def check_targets(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        classes = self._check_output(output)
        if self.weight is not None and self.weight.shape != (classes,):
            raise DataError(
                f"got class weights of shape {tuple(self.weight.shape)}; {self.name} needs one for each of the "
                f"network's {classes} classes"
            )
        if self.soft and not self.labels and target.is_floating_point():
            self._check_soft(target, output, indices)
            return
        if self.mean and self.weight is not None:
            raise DataError(
                f"the mean of {self.name} with class weights divides by the weights of the whole batch, so that no "
                "sample has a loss of its own: pass reduction='none'"
            )
        self._check_labels(target, output, indices, classes)

    def _check_output(self, output: Tensor) -> int:
        """The number of classes."""
        one = tuple(output.shape[1:])
        if self.labels and len(one) != 1:
            raise DataError(
                f"got an output of shape {one} a sample; {self.name} needs logits (classes,): "
                "for sequences use loss='token_cross_entropy' or loss='causal_lm'"
            )
        if self.classes_last and len(one) != 2:
            raise DataError(f"got an output of shape {one} a sample; {self.name} needs logits (tokens, classes)")
        if not one:
            raise DataError(f"got one number a sample as output; {self.name} needs logits (classes, ...)")
        return one[-1] if self.classes_last else one[0]

    def _check_soft(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        got, one = tuple(target.shape[1:]), tuple(output.shape[1:])
        if got != one:
            raise DataError(
                f"got soft labels of shape {got} a sample for an output of shape {one}; {self.name} needs equal "
                "shapes, or class indices as integers"
            )
        bad = (~(target >= 0)).reshape(len(target), -1).any(1).nonzero()
        if len(bad):
            raise DataError(
                f"the soft labels of sample {int(indices[int(bad[0])])} are negative or NaN; {self.name} needs "
                "probabilities"
            )

    def _check_labels(self, target: Tensor, output: Tensor, indices: Tensor, classes: int) -> None:
        one = tuple(output.shape[1:])
        places = one[:-1] if self.classes_last else one[1:]
        if target.is_floating_point() or target.dtype == torch.bool or tuple(target.shape[1:]) != places:
            kind = "(samples,)" if not places else f"(samples, {', '.join(map(str, places))})"
            remedy = "give the output's shape" if self.soft else "pass a callable loss, nn.CrossEntropyLoss among them"
            raise DataError(
                f"got labels of dtype {target.dtype} and shape {tuple(target.shape)}; {self.name} needs class "
                f"indices, int64 of shape {kind}: for soft labels {remedy}"
            )
        ignored = target == self.ignored
        self._check_ignored(ignored, indices, places)
        bad = ((target < 0) | (target >= classes)) & ~ignored
        wrong = bad.nonzero()
        if len(wrong):
            raise DataError(
                f"label {int(target[tuple(wrong[0])])} of sample {int(indices[int(wrong[0, 0])])} is out of range: "
                f"the network has {classes} classes, 0 to {classes - 1}"
            )

    def _check_ignored(self, ignored: Tensor, indices: Tensor, places: tuple[int, ...]) -> None:
        if not places and bool(ignored.any()):
            raise DataError(
                f"label {self.ignored} of sample {int(indices[int(ignored.nonzero()[0])])} is ignored by {self.name} "
                f"({int(ignored.sum())} such): a sample with no other target has no loss; leave those samples out"
            )
        counted = ~(ignored[:, 1:] if self.shifted else ignored).reshape(len(ignored), -1)
        empty = (~counted.any(1)).nonzero()
        if len(empty):
            raise DataError(
                f"every target of sample {int(indices[int(empty[0])])} is ignored ({self.ignored}); "
                "its loss would be 0 / 0: leave it out"
            )
        uneven = (~counted.all(1)).nonzero()
        if self.mean and len(uneven):
            raise DataError(
                f"some targets of sample {int(indices[int(uneven[0])])} are ignored ({self.ignored}), and the mean of "
                f"{self.name} then weighs samples by what is left of the batch: pass reduction='none'"
            )


def _refuse_unnormalised(output: Tensor, name: str) -> None:
    total = output.detach().double().logsumexp(1).abs()
    allowed = _NORMALISED.get(output.dtype, _NORMALISED_DEFAULT)
    if bool((total > allowed).any()):
        raise DataError(
            f"{name} needs log-probabilities, but the classes of a sample add up to {float(total.max()):.3g} in "
            "logarithm instead of 0: end the network in LogSoftmax, or use cross_entropy for logits"
        )


def has_softmax_columns(loss: Loss) -> bool:
    """Whether column c of the loss's factor is sqrt(p_c) (e_c - p) for class c, that of the softmax itself."""
    return isinstance(loss, CrossEntropy) and loss.labels and loss.weight is None
