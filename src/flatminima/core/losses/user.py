"""A loss that the library knows only by its values: evaluated in float64 wherever the callable lets it.

A softmax written as such loses p_y - 1 to rounding, in float64 too once 1 - p_y nears 1e-16. Where the gradients of a
callable are too small for the precision that it computes in, a note says so.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from flatminima.core.losses.loss import (
    MAX_COLUMNS,
    Loss,
    PerSample,
    accurate,
    as_output,
    as_rows,
    refuse_broadcast,
    refuse_too_many_columns,
    unit_and_log_norm,
)
from flatminima.core.parameters import gradients
from flatminima.errors import Undefined

_ROUNDING = {torch.float64: 1e-8}  # of a Hessian's eigenvalues, relative to the largest
_ROUNDING_DEFAULT = 1e-4
_TRIAL = 2  # samples that show whether the callable takes float64
_AGREES = 1e-2  # between its values in float32 and in float64, relative
_SUMS = 1e-3  # of probabilities from 1
_LOST = 1e4  # roundings of its terms: a gradient, or an eigenvalue, that is smaller has no digits left


@final
class UserLoss(Loss):
    """(output, target) -> losses (batch,), by a callable.

    Args:
        name: for messages and reports.
        function: the callable.
        entries: it returns one number an output entry, whose mean or sum is the sample's loss (torch's own
            elementwise losses with ``reduction="none"``); None: it returns the sample's.
        like_outputs: its targets have the outputs' shape, or else would be broadcast in silence.
        of_probabilities: its outputs are probabilities, each of its own (``BCELoss``).
    """

    def __init__(
        self,
        name: str,
        function: PerSample,
        *,
        entries: Literal["mean", "sum"] | None = None,
        like_outputs: bool = False,
        of_probabilities: bool = False,
    ) -> None:
        self.name, self.function, self.labels = name, function, False
        self._entries, self._like_outputs, self._of_probabilities = entries, like_outputs, of_probabilities
        self._takes_doubles: bool | None = None
        self._notes: dict[str, None] = {}  # an ordered set

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def fitted(self, output: Tensor, target: Tensor) -> Loss:
        return self

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        if self._in_doubles(output, target):
            return self._evaluate(output.double(), _doubled(target))
        return self._evaluate(accurate(output), target)

    def seed(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        gradient = self._gradient(output, target)
        self.inspect(output, target, gradient)
        gradient = as_rows(gradient.double())
        return unit_and_log_norm(gradient, torch.zeros(len(gradient), device=gradient.device).double(), output)

    def columns(self, output: Tensor, target: Tensor) -> Tensor:
        size = refuse_too_many_columns(output)
        values, vectors = torch.linalg.eigh(self._hessians(output, target))
        self._refuse_negative(values, output, target)
        factor = vectors * values.clamp_min(0).sqrt().unsqueeze(1)  # (batch, size, columns)
        columns: Tensor = factor.permute(2, 0, 1).reshape(size, *output.shape).to(output.dtype)
        return columns

    def drawn_column(self, output: Tensor, target: Tensor, signs: Tensor) -> Tensor:
        columns = self.columns(output, target)
        found: Tensor = (columns * as_rows(signs).T.reshape(len(columns), len(output), *[1] * (output.dim() - 1))).sum(
            0
        )
        return found.to(output.dtype)

    def refuse_concave(self, output: Tensor, target: Tensor) -> None:
        if output[0].numel() <= MAX_COLUMNS:
            self._refuse_negative(torch.linalg.eigvalsh(self._hessians(output, target)), output, target)

    def check_targets(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        """The targets of a callable are its own business; those of torch's elementwise losses are not broadcast."""
        if self._like_outputs:
            refuse_broadcast(self.name, target, output)

    def inspect(self, output: Tensor, target: Tensor, gradient: Tensor) -> None:
        """Compare with gradients at other samples' targets, which have the size of the formula's terms.

        The callable is never asked about outputs that no network gave: it may assert their range, on a GPU for good.
        """
        if _rounded_inside(output) or (self._of_probabilities and _certain(output)):
            self._notes[
                "the network's outputs are probabilities or their logarithms, so that p - 1 is rounded before the loss "
                f"{self.name!r} sees it: end the network in logits, or pass nn.NLLLoss() for log-probabilities"
            ] = None
        sizes = as_rows(gradient.double()).norm(dim=1)
        terms = max(float(sizes.max()), *(self._size(output, target.roll(k, 0)) for k in {1, len(target) // 2}))
        lost = sizes < _LOST * torch.finfo(self._precision(gradient, output, target)).eps * terms
        if bool((lost & (sizes == 0)).any()):  # a loss that is flat at half the output too is 0 and nothing else
            halved = as_rows(self._gradient(output / 2, target)).norm(dim=1)
            lost &= (sizes > 0) | (halved > 0)
        if bool(lost.any()):
            self._notes[
                f"the loss {self.name!r} is a callable whose gradients at some samples are rounding errors, or 0 where "
                "it is flat: if it is one of torch's losses or a built-in, pass that (nn.CrossEntropyLoss(...), "
                "'cross_entropy'), which keeps their digits"
            ] = None

    def _size(self, output: Tensor, target: Tensor) -> float:
        """The largest gradient that is finite."""
        return float(as_rows(self._gradient(output, target).double()).norm(dim=1).nan_to_num(0.0, 0.0, 0.0).max())

    def _precision(self, gradient: Tensor, output: Tensor, target: Tensor) -> torch.dtype:
        """In which the callable computes: it may cast to float32 itself."""
        doubles = self._in_doubles(output, target)
        cast = gradient.dtype == torch.float64 and bool((gradient == gradient.float()).all())
        return torch.float64 if doubles and not cast else torch.float32

    def _evaluate(self, output: Tensor, target: Tensor) -> Tensor:
        losses = self.function(output, as_output(target, output) if self._like_outputs else target)
        if self._entries is None or not isinstance(losses, Tensor) or losses.shape[:1] != output.shape[:1]:
            return losses
        return as_rows(losses).mean(1) if self._entries == "mean" else as_rows(losses).sum(1)

    def _in_doubles(self, output: Tensor, target: Tensor) -> bool:
        """Whether the callable takes float64 outputs, as one whose constants are float32 may not; tried once."""
        if output.dtype == torch.float64:
            return True
        if self._takes_doubles is None:
            self._takes_doubles = self._try(output[:_TRIAL], target[:_TRIAL])
        return self._takes_doubles

    def _try(self, output: Tensor, target: Tensor) -> bool:
        narrow: object = self._evaluate(accurate(output.detach()), target)
        if not isinstance(narrow, Tensor):
            return True  # refused in either precision
        leaf = output.detach().double().requires_grad_()
        try:
            with torch.enable_grad():
                wide = self._evaluate(leaf, _doubled(target))
                if wide.requires_grad:
                    torch.autograd.grad(wide.sum(), leaf, create_graph=True)
        except (RuntimeError, TypeError, ValueError):  # whatever it is, in float32 it may go well
            return False
        if wide.shape != narrow.shape:
            return False
        return torch.allclose(wide.detach().float(), narrow.detach().float(), _AGREES, _AGREES, equal_nan=True)

    def _at(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf at the output, in the precision of the evaluation, and the losses there."""
        doubles = self._in_doubles(output, target)
        leaf = (output.detach().double() if doubles else accurate(output.detach())).requires_grad_()
        with torch.enable_grad():
            losses = self(leaf, target)
        if not losses.requires_grad:
            raise Undefined(f"loss {self.name!r} has no gradient with respect to the output")
        return leaf, losses

    def _gradient(self, output: Tensor, target: Tensor) -> Tensor:
        leaf, losses = self._at(output, target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return gradient

    def _hessians(self, output: Tensor, target: Tensor) -> Tensor:
        """(batch, size, size) float64: a sample's loss depends on its output alone."""
        leaf, losses = self._at(output, target)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
        self.inspect(output, target, gradient.detach())
        return torch.stack([_row(g, leaf) for g in as_rows(gradient).unbind(1)], 1).double()

    def _refuse_negative(self, values: Tensor, output: Tensor, target: Tensor) -> None:
        """Of a Hessian's eigenvalues (batch, size)."""
        dtype = torch.float64 if self._in_doubles(output, target) else torch.float32
        rounding = _ROUNDING.get(dtype, _ROUNDING_DEFAULT)
        negative = values < -rounding * values.abs().amax(1, keepdim=True)
        if not bool(negative.any()):
            return
        # of a sample that is certain all eigenvalues may be rounding: of the size of its terms where it is less so
        terms = torch.linalg.eigvalsh(self._hessians(output / 8, target)).abs().amax(1, keepdim=True)
        if bool((negative & (values < -_LOST * torch.finfo(dtype).eps * terms)).any()):
            raise Undefined(f"loss {self.name!r} is not convex in the output: it has no Gauss-Newton matrix")


def _rounded_inside(output: Tensor) -> bool:
    """Whether outputs are a softmax's, or its logarithm, and some sample is certain of its class."""
    if output.dim() < 2 or output.shape[1] < 2:
        return False
    o = output.detach().double()
    if bool((o >= 0).all()):
        return bool(((o.sum(1) - 1).abs() < _SUMS).all()) and _certain(output)
    return bool((o <= 0).all()) and bool((o.logsumexp(1).abs() < _SUMS).all()) and _certain(output.exp())


def _certain(probabilities: Tensor) -> bool:
    return bool(((1 - probabilities.double()).abs() < _SUMS).any())


def _row(gradient: Tensor, leaf: Tensor) -> Tensor:
    """d gradient_j / d output of each sample, (batch, size)."""
    if not gradient.requires_grad:  # the loss is linear in the output
        return torch.zeros_like(as_rows(leaf))
    (row,) = gradients(gradient.sum(), [leaf], retain_graph=True)
    return as_rows(row)


def _doubled(target: Tensor) -> Tensor:
    return target.double() if target.is_floating_point() else target
