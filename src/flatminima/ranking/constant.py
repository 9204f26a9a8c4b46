"""The best constant output: what a network must beat, whatever its loss, to have learnt anything of its inputs.

Of the built-in losses it is exact: the mean of the targets, the logit of their share, the logarithms of the classes'
shares at all positions together. Of a callable it is the best mixture of outputs that the network gave (Frank and
Wolfe), since a callable may assert the range of what it is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.core.losses import Loss
from flatminima.core.losses.cross_entropy import CrossEntropy
from flatminima.core.losses.elementwise import BinaryCrossEntropy, SquaredError
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import gradients
from flatminima.ranking.held_out import batches

_EDGE = 40.0  # a logit whose sigmoid is 1 to float64's rounding
_LEAST = -50.0  # logarithm of the share of a class that does not occur
_STEPS = 40  # of the search for a callable's
_SHARES = (0.5, 0.25, 0.1, 0.03, 0.01, 0.003)  # of a step, tried in turn
_ASKED = 2_000  # samples in that search
_LARGE = 100_000  # output numbers a sample, above which they are float32


@dataclass(frozen=True)
class Constant:
    """The best constant output on some samples.

    Attributes:
        losses: (n,) float64, of the samples at this output.
        more: mean loss that it would have on other samples, above that on these, which it was fitted to.
        least: mean over the samples of the least loss that any output has; None where it is not known.
    """

    losses: NDArray[np.float64]
    more: float
    least: float | None

    @property
    def mean(self) -> float:
        return float(self.losses.mean()) + self.more


def best_constant(minimum: Minimum, outputs: Tensor | None, *, of_labels: bool) -> Constant | None:
    """The best constant output on the training samples; None where there is no telling.

    Args:
        minimum: the network. outputs: (k, ...) that it gave, of a callable. of_labels: whether the targets are labels.
    """
    with minimum.open(), torch.no_grad():
        like = minimum.forward(minimum.batch(torch.arange(1)).inputs)
    found = _search(minimum, like, outputs)
    if found is None:
        return None
    output, more = found
    losses, least = [], []
    for t in _targets(minimum):
        with torch.no_grad():
            losses.append(minimum.loss(output.expand(len(t), *like.shape[1:]), t).double())
        least.append(_least(minimum.loss, like, t, of_labels))
    own = torch.cat(losses).cpu().numpy()
    known = [v for v in least if v is not None]
    floor = float(torch.cat(known).mean()) if len(known) == len(least) else None
    if not np.isfinite(own).all():
        return None
    return Constant(own, more, floor if floor is None or floor <= own.mean() else None)


def _targets(minimum: Minimum) -> Iterator[Tensor]:
    for _, targets in batches(minimum, minimum.samples):
        yield targets


def _search(minimum: Minimum, like: Tensor, outputs: Tensor | None) -> tuple[Tensor, float] | None:
    """The output (1, ...), and what its loss is higher by on other samples."""
    loss = minimum.loss
    if isinstance(loss, CrossEntropy):
        return _of_classes(minimum, loss, like)
    if isinstance(loss, BinaryCrossEntropy):
        return _of_logits(minimum, like)
    if isinstance(loss, SquaredError):
        total = sum((t.double().sum(0, keepdim=True) for t in _targets(minimum)), torch.zeros(()))
        return (total / len(minimum.samples)).reshape(1, *like.shape[1:]), 0.0
    if outputs is None or outputs.isnan().any():
        return None
    return _of_mixtures(minimum, outputs), 0.0


# -- cross-entropies -------------------------------------------------------------------------------------------------


def _of_classes(minimum: Minimum, loss: CrossEntropy, like: Tensor) -> tuple[Tensor, float] | None:
    """Shares of the classes, as the loss weighs them: at uniform outputs, -dL/dz_c = A_c - sum A / classes."""
    axis = like.dim() - 1 if loss.classes_last else 1
    classes = like.shape[axis]
    if classes < 2:
        return None
    shape = [1] * like.dim()
    shape[axis] = classes
    total, gradient, count, n = 0.0, torch.zeros(classes, dtype=torch.float64), 0, 0
    for t in _targets(minimum):
        leaf = torch.full(shape, -math.log(classes), dtype=_precision(like), device=like.device, requires_grad=True)
        with torch.enable_grad():
            losses = loss(leaf.expand(len(t), *like.shape[1:]), t).sum()
        (own,) = torch.autograd.grad(losses, leaf)
        total, gradient = total + float(losses.detach()) / math.log(classes), gradient + own.reshape(-1).double().cpu()
        count, n = count + t.numel() // (classes if t.is_floating_point() else 1), n + len(t)
    shares = (total / classes - gradient).clamp_min(0)
    if not float(shares.sum()) > 0:
        return None
    logits = (shares / shares.sum()).log().clamp_min(_LEAST).reshape(shape).to(like.device, _precision(like))
    seen = int((shares > 1e-9 * shares.sum()).sum())
    return logits, (seen - 1) / count * total / n


def _precision(like: Tensor) -> torch.dtype:
    return torch.float64 if like[0].numel() <= _LARGE else torch.float32


def _of_logits(minimum: Minimum, like: Tensor) -> tuple[Tensor, float] | None:
    """ln a / b of each entry, where the loss is a softplus(-z) + b softplus(z)."""
    one, zero = torch.zeros_like(like, dtype=torch.float64), torch.zeros_like(like, dtype=torch.float64)
    for t in _targets(minimum):
        a, b = _coefficients(minimum.loss, like, t)
        one, zero = one + a.sum(0), zero + b.sum(0)
    if bool((one < 0).any()) or bool((zero < 0).any()):
        return None
    return (one.log() - zero.log()).nan_to_num(0.0).clamp(-_EDGE, _EDGE), 0.0


def _coefficients(loss: Loss, like: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of each sample's entries (batch, ...)."""
    found = []
    for edge in (-_EDGE, _EDGE):
        shape = (len(targets), *like.shape[1:])
        z = torch.full(shape, edge, dtype=torch.float64, device=like.device, requires_grad=True)
        with torch.enable_grad():
            losses = loss(z, targets).sum()
        found.append(torch.autograd.grad(losses, z)[0])
    return -found[0], found[1]


# -- callables -------------------------------------------------------------------------------------------------------


def _of_mixtures(minimum: Minimum, outputs: Tensor) -> Tensor:
    """The best convex combination of the outputs, by steps towards the one that the gradient points to."""
    targets, seen = [], 0
    for t in _targets(minimum):
        targets.append(t[: _ASKED - seen])
        seen += len(targets[-1])
        if seen >= _ASKED:
            break
    t = torch.cat(targets)
    corners = outputs.reshape(len(outputs), -1).double()

    def mean(at: Tensor) -> Tensor:
        return minimum.loss(at.to(outputs.dtype).reshape(1, *outputs.shape[1:]).expand(len(t), *outputs.shape[1:]), t)

    at = corners.mean(0)
    best = float(mean(at).double().mean())
    for _ in range(_STEPS):
        leaf = at.clone().requires_grad_()
        with torch.enable_grad():
            value = mean(leaf).double().mean()
        if not value.requires_grad:
            break
        (gradient,) = gradients(value, [leaf])
        towards = corners[int((corners @ gradient).argmin())] - at
        tried = [(float(mean(at + share * towards).double().mean()), share) for share in _SHARES]
        lowest, share = min(tried)
        if not lowest < best:
            break
        at, best = at + share * towards, lowest
    return at.to(outputs.dtype).reshape(1, *outputs.shape[1:])


# -- the least loss --------------------------------------------------------------------------------------------------


def _least(loss: Loss, like: Tensor, targets: Tensor, of_labels: bool) -> Tensor | None:
    """The least loss of each sample at any output: 0, but for soft and smoothed labels; None: not known."""
    zero = torch.zeros(len(targets), dtype=torch.float64)
    if isinstance(loss, BinaryCrossEntropy):
        a, b = _coefficients(loss, like, targets)
        parts = -(torch.special.xlogy(a, a / (a + b)) + torch.special.xlogy(b, b / (a + b)))
        summed: Tensor = parts.nan_to_num(0.0).reshape(len(targets), -1).sum(1).cpu()
        return summed
    soft = isinstance(loss, CrossEntropy) and (loss.smoothing > 0 or targets.is_floating_point())
    if soft and isinstance(loss, CrossEntropy) and like.dim() == 2 and like.shape[1] > 1:
        return _least_of_classes(loss, like, targets)
    if isinstance(loss, CrossEntropy | SquaredError) or of_labels:
        return zero
    if targets.shape[1:] != like.shape[1:] or not targets.is_floating_point():
        return None
    with torch.no_grad():
        own: Tensor = loss(targets.to(like.dtype), targets).double().cpu()
    return own if bool(torch.isfinite(own).all()) else None


def _least_of_classes(loss: CrossEntropy, like: Tensor, targets: Tensor) -> Tensor:
    classes = like.shape[1]
    shape = (len(targets), classes)
    z = torch.full(shape, -math.log(classes), dtype=torch.float64, device=like.device, requires_grad=True)
    with torch.enable_grad():
        losses = loss(z, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    total = losses.detach().double().unsqueeze(1) / math.log(classes)
    each = (total / classes - gradient).clamp_min(0)
    each = torch.where(each > 1e-9 * total, each, 0.0)
    least: Tensor = -torch.special.xlogy(each, each / total).nan_to_num(0.0).sum(1).cpu()
    return least
