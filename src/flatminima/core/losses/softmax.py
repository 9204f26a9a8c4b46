"""Softmax losses of rows of logits, sum_c a_c (-ln p_c), and their derivatives without cancellation.

With t the likeliest class and A = sum_c a_c: the loss is A ln(1 + sum_{c != t} e^(z_c - z_t)) + sum_c a_c (z_t - z_c),
its gradient A p_c - a_c for c != t, where p_c <= 1/2, and minus the sum of these for t (the entries add up to 0). One
label has a_y = 1; class weights, label smoothing and soft labels are other a.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flatminima.core.losses.loss import accurate

_BLOCK = 1 << 22  # logits at a time


@dataclass(frozen=True)
class Coefficients:
    """a (samples, rows, classes): `at` at each row's label, plus what is spread over the classes.

    Attributes:
        total (samples, rows) float64: A, the sum of a over the classes.
        labels, at (samples, rows): None where there are no labels.
        spread (samples, rows, classes) float64: None where a is 0 but at the label.
    """

    total: Tensor
    labels: Tensor | None = None
    at: Tensor | None = None
    spread: Tensor | None = None

    def part(self, samples: slice) -> Coefficients:
        """The part of some of the samples."""
        rest = (None if t is None else t[samples] for t in (self.labels, self.at, self.spread))
        return Coefficients(self.total[samples], *rest)

    def logarithm(self, like: Tensor) -> Tensor:
        """ln a (samples, rows, classes) float64."""
        a = torch.zeros(like.shape, dtype=torch.float64, device=like.device) if self.spread is None else self.spread
        if self.labels is not None and self.at is not None:
            a = a.scatter_add(-1, self.labels.unsqueeze(-1), self.at.unsqueeze(-1))
        return a.log()


def class_blocks(logits: Tensor) -> Iterator[slice]:
    """Samples at a time: a vocabulary's worth for every token of a batch would need float64 copies of all of it."""
    step = max(1, _BLOCK // max(1, logits[0].numel()))
    return (slice(start, start + step) for start in range(0, len(logits), step))


def softmax_loss(logits: Tensor, a: Coefficients) -> Tensor:
    """Losses (samples, rows) of logits (samples, rows, classes); twice differentiable by the logits."""
    return _Loss.apply(logits, a)  # type: ignore[no-any-return,no-untyped-call]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, a: Coefficients) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.coefficients = a
        return torch.cat([_losses(accurate(logits[part]), a.part(part)) for part in class_blocks(logits)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        residual: Tensor = _Residual.apply(logits, ctx.coefficients)  # type: ignore[no-untyped-call]
        return residual * grads[0].unsqueeze(-1), None


def _losses(z: Tensor, a: Coefficients) -> Tensor:
    likeliest = z.argmax(-1, keepdim=True)
    top = z.gather(-1, likeliest)
    others = z.scatter(-1, likeliest, -torch.inf).logsumexp(-1)
    loss = a.total * torch.nn.functional.softplus(others - top.squeeze(-1))
    if a.labels is not None and a.at is not None:
        loss += a.at * (top - z.gather(-1, a.labels.unsqueeze(-1))).squeeze(-1)
    if a.spread is not None:  # a class of logit -inf may have the coefficient 0
        loss += torch.where(a.spread > 0, a.spread * (top - z), 0.0).sum(-1)
    return torch.where(a.total > 0, loss, 0.0).to(z.dtype)


class _Residual(torch.autograd.Function):
    """A p - a, and its derivative A (diag p - p p^T)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, a: Coefficients) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.total = a.total
        out = torch.empty_like(logits)
        for part in class_blocks(logits):
            out[part] = _residual(logits[part], a.part(part))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        out = torch.empty_like(grads[0])
        for part in class_blocks(logits):
            out[part] = _product(logits[part], grads[0][part], ctx.total[part])
        return out, None


def _residual(logits: Tensor, a: Coefficients) -> Tensor:
    residual = logits.double().log_softmax(-1)
    likeliest = residual.argmax(-1, keepdim=True)
    residual.exp_().mul_(a.total.unsqueeze(-1))
    if a.labels is not None and a.at is not None:
        residual.scatter_add_(-1, a.labels.unsqueeze(-1), -a.at.unsqueeze(-1))
    if a.spread is not None:
        residual -= a.spread
    residual.scatter_(-1, likeliest, 0.0)
    return residual.scatter_(-1, likeliest, -residual.sum(-1, keepdim=True))


def _product(logits: Tensor, tangent: Tensor, total: Tensor) -> Tensor:
    """A (diag p - p p^T) u: of u counted from the likeliest class, whose own entry is then 0, nothing cancels."""
    p, u = logits.double().log_softmax(-1), tangent.double()
    centred = u - u.gather(-1, p.argmax(-1, keepdim=True))
    p.exp_()
    return centred.sub_((p * centred).sum(-1, keepdim=True)).mul_(p).mul_(total.unsqueeze(-1))


def softmax_seed(logits: Tensor, a: Coefficients) -> tuple[Tensor, Tensor]:
    """Gradients (samples, rows, classes) float64 of the samples' losses over e^scale, and the scales (samples,).

    The scale keeps the digits of gradients below float64's range, such as 1 - p_y = 1e-348.
    """
    up = logits.detach().double().log_softmax(-1)  # ln(A p), a vocabulary's worth for every token: written in place
    likeliest = up.argmax(-1, keepdim=True)
    up.add_(a.total.log().unsqueeze(-1)).scatter_(-1, likeliest, -torch.inf)
    if a.spread is None and a.labels is not None and a.at is not None:
        index = a.labels.unsqueeze(-1)
        down = torch.where(index == likeliest, -torch.inf, a.at.log().unsqueeze(-1))  # of the label alone
        scale = torch.maximum(up.flatten(1).amax(1), down.flatten(1).amax(1))
        shift = _finite(scale)
        gradient = up.sub_(shift).exp_().scatter_add_(-1, index, -(down - shift).exp())
    else:
        down = a.logarithm(up).scatter_(-1, likeliest, -torch.inf)
        scale = torch.maximum(up, down).flatten(1).amax(1)
        shift = _finite(scale)
        gradient = (up - shift).exp() - (down - shift).exp()
    return gradient.scatter_(-1, likeliest, -gradient.sum(-1, keepdim=True)), scale


def _finite(scale: Tensor) -> Tensor:
    """(samples, 1, 1): 0 where the gradient is zero, of one class or of coefficients 0."""
    return torch.where(torch.isneginf(scale), 0.0, scale).view(-1, 1, 1)


def softmax_columns(logits: Tensor, total: Tensor) -> Tensor:
    """sqrt(A p_c) (e_c - p), c = 1..C: their outer products sum to A (diag p - p p^T). (C, ..., C) float64."""
    log_p = logits.detach().double().log_softmax(-1)
    p = log_p.exp()
    likeliest = p.argmax(-1, keepdim=True)
    rest = p.scatter(-1, likeliest, 0.0).sum(-1, keepdim=True)
    own = (1 - p).scatter(-1, likeliest, rest)  # 1 - p_c without cancellation
    classes = p.shape[-1]
    eye = torch.eye(classes, dtype=torch.bool, device=p.device).view(classes, *[1] * (p.dim() - 1), classes)
    columns = torch.where(eye, own, -p)
    lengths = (0.5 * (log_p + total.log().unsqueeze(-1))).exp()  # (..., C)
    return columns * lengths.movedim(-1, 0).unsqueeze(-1)


def drawn_softmax_column(logits: Tensor, total: Tensor, signs: Tensor) -> Tensor:
    """sqrt(A) (sqrt(p) s - p sum_c sqrt(p_c) s_c), of mean outer product A (diag p - p p^T). (..., C) float64.

    The entries add up to 0: the likeliest class's is minus the sum of the others, in which nothing cancels.
    """
    log_p = logits.detach().double().log_softmax(-1)
    likeliest = log_p.argmax(-1, keepdim=True)
    root = (0.5 * log_p).exp().mul_(signs)
    column = root - log_p.exp_().mul_(root.sum(-1, keepdim=True))
    column.scatter_(-1, likeliest, 0.0)
    column.scatter_(-1, likeliest, -column.sum(-1, keepdim=True))
    return column.mul_(total.sqrt().unsqueeze(-1))
