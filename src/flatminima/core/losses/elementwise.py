"""Losses that are means over the output's entries: squared error and binary cross-entropy of logits.

Targets have the outputs' shape; a column (batch, 1), as files give one number a sample, is taken for outputs (batch,)
too. Nothing is broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from flatminima.core.losses.loss import (
    ExactLoss,
    Loss,
    accurate,
    as_output,
    as_rows,
    refuse_broadcast,
    refuse_too_many_columns,
    unit_and_log_norm,
)
from flatminima.errors import DataError, Undefined

_ROUNDED = 1e-6  # of a target of 0 or 1 that was computed


@final
@dataclass(frozen=True, eq=False)
class SquaredError(ExactLoss):
    """(1/D) sum_d (z_d - t_d)^2 over the D entries of an output."""

    name: str = "mse"
    labels: bool = False

    def fitted(self, output: Tensor, target: Tensor) -> Loss:
        return self

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return as_rows((accurate(output) - as_output(target, output)).square()).mean(1)

    def seed(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        gradient = as_rows(2 * (output.detach().double() - as_output(target, output)) / output[0].numel())
        scale = gradient.abs().amax(1)
        shift = torch.where(scale > 0, scale, 1.0)
        return unit_and_log_norm(gradient / shift.unsqueeze(1), shift.log(), output)

    def columns(self, output: Tensor, target: Tensor) -> Tensor:
        size = refuse_too_many_columns(output)
        return _diagonal(torch.full_like(as_rows(output), 2 / size, dtype=torch.float64).sqrt(), output)

    def drawn_column(self, output: Tensor, target: Tensor, signs: Tensor) -> Tensor:
        return signs.to(output.dtype) * math.sqrt(2 / output[0].numel())

    def refuse_concave(self, output: Tensor, target: Tensor) -> None:
        """Convex everywhere."""

    def check_targets(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        refuse_broadcast(self.name, target, output)


@final
@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(ExactLoss):
    """(1/D) sum_d w_d (P_d t_d softplus(-z_d) + (1 - t_d) softplus(z_d)) of logits z and targets t in [0, 1].

    Args:
        name: for messages and reports.
        weight: w, of a shape that the outputs of a sample broadcast with; None: 1.
        pos_weight: P, likewise.
    """

    name: str = "binary_cross_entropy"
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    labels: bool = False

    def fitted(self, output: Tensor, target: Tensor) -> Loss:
        return self

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return _Logistic.apply(as_rows(output), *self._coefficients(output, target)).sum(1)  # type: ignore[no-any-return,no-untyped-call]

    def seed(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        z = as_rows(output.detach().double())
        one, zero = self._coefficients(output, target)
        down, up = one.abs().log() + logsigmoid(-z), zero.abs().log() + logsigmoid(z)
        scale = torch.maximum(down, up).amax(1)
        shift = torch.where(torch.isneginf(scale), 0.0, scale).unsqueeze(1)
        gradient = zero.sign() * (up - shift).exp() - one.sign() * (down - shift).exp()
        return unit_and_log_norm(gradient, scale, output)

    def columns(self, output: Tensor, target: Tensor) -> Tensor:
        refuse_too_many_columns(output)
        return _diagonal(self._roots(output, target), output)

    def drawn_column(self, output: Tensor, target: Tensor, signs: Tensor) -> Tensor:
        return (as_rows(signs) * self._roots(output, target)).view_as(output).to(output.dtype)

    def _roots(self, output: Tensor, target: Tensor) -> Tensor:
        """Roots of the second derivatives (batch, D) float64."""
        self.refuse_concave(output, target)
        z = as_rows(output.detach().double())
        one, zero = self._coefficients(output, target)
        return (0.5 * ((one + zero).log() + logsigmoid(z) + logsigmoid(-z))).exp()

    def refuse_concave(self, output: Tensor, target: Tensor) -> None:
        one, zero = self._coefficients(output, target)
        if bool((one + zero < 0).any()):
            raise Undefined(f"loss {self.name!r} is not convex in the output: it has no Gauss-Newton matrix")

    def check_targets(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        refuse_broadcast(self.name, target, output)
        bad = (~((target >= -_ROUNDED) & (target <= 1 + _ROUNDED))).reshape(len(target), -1).any(1).nonzero()
        if len(bad):
            place = int(bad[0])
            first = as_rows(target)[place]
            seen = float(first[(~((first >= -_ROUNDED) & (first <= 1 + _ROUNDED))).nonzero()[0]])
            raise DataError(
                f"target {seen:g} of sample {int(indices[place])} is not between 0 and 1, as {self.name} needs it: "
                "the loss would have no minimum"
            )
        for weight, what in ((self.weight, "weight"), (self.pos_weight, "pos_weight")):
            if weight is None:
                continue
            try:
                fits = torch.broadcast_shapes(weight.shape, (1, *output.shape[1:])) == (1, *output.shape[1:])
            except RuntimeError:
                fits = False
            if not fits:
                raise DataError(
                    f"got {what} of shape {tuple(weight.shape)} for an output of shape {tuple(output.shape[1:])} a "
                    "sample; it must be the same for every sample and broadcast with its output"
                )

    def _coefficients(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Of softplus(-z) and of softplus(z), (batch, D) float64."""
        t = as_rows(target.to(output.device, torch.float64))
        weight, positive = (self._entries(w, output) for w in (self.weight, self.pos_weight))
        weight = weight / t.shape[1]
        return weight * positive * t, weight * (1 - t)

    @staticmethod
    def _entries(weight: Tensor | None, output: Tensor) -> Tensor:
        """(1, D) float64."""
        one = torch.ones((), dtype=torch.float64) if weight is None else weight.double()
        return one.to(output.device).expand(1, *output.shape[1:]).reshape(1, -1)


class _Logistic(torch.autograd.Function):
    """a softplus(-z) + b softplus(z)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(logits, a, b)
        z = accurate(logits)
        return (a * softplus(-z) + b * softplus(z)).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        residual: Tensor = _LogisticResidual.apply(*ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return residual * grads[0], None, None


class _LogisticResidual(torch.autograd.Function):
    """b sigma(z) - a sigma(-z), and its derivative (a + b) sigma(z) sigma(-z): 1 - sigma is never formed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
        z = logits.double()
        ctx.save_for_backward(z, a + b)
        return (b * z.sigmoid() - a * (-z).sigmoid()).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, total = ctx.saved_tensors
        return (grads[0].double() * total * z.sigmoid() * (-z).sigmoid()).to(grads[0].dtype), None, None


def _diagonal(entries: Tensor, output: Tensor) -> Tensor:
    """Columns (D, batch, ...) of the diagonal factors with these entries (batch, D)."""
    return entries.diag_embed().movedim(1, 0).reshape(entries.shape[1], *output.shape).to(output.dtype)
