"""Positions that a callable loss counts, read off its gradients at logits of our choosing.

At logits of 0 the gradient of a loss of labels is negative at the label and adds up to 0 over the classes (or touches
the label alone, where outputs are log-probabilities). A position that does not move the loss there is ignored, if the
loss is a sum over positions. Others (the hardest pixels of an image) are asked label by label, at logits where the
positions of one label are wrong and all others right.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flatminima.core.losses import Loss
from flatminima.core.parameters import gradients
from flatminima.core.perturbation import generator
from flatminima.errors import Undefined

_ZERO = 1e-4  # relative: gradients in float32 at the worst
_SURE = 8.0  # logit of a right position; of a wrong one minus as much
_MIXTURES = 3

Gradient = Callable[[Tensor], Tensor]  # logits (b, P, C) float64 -> gradient of the losses' sum, of the same shape


def counted_by(loss: Loss, outputs: Tensor, targets: Tensor, dim: int) -> Tensor | None:
    """Labelled positions (b, P) that the loss counts, its classes along `dim` of the outputs.

    Returns:
        None: it is no loss of labels there.

    Raises:
        Undefined: it fails at logits of 0.
    """
    shape = outputs.movedim(dim, -1).shape
    classes, labels = shape[-1], targets.reshape(len(targets), -1)
    inside = (labels >= 0) & (labels < classes)

    def gradient(rows: Tensor) -> Tensor:
        logits = rows.reshape(shape).movedim(-1, dim)
        return _gradient(loss, logits, targets).movedim(dim, -1).reshape(rows.shape)

    zeros = torch.zeros(*labels.shape, classes, dtype=torch.float64, device=outputs.device)
    slopes = gradient(zeros)
    moved = slopes.abs().amax(2) > 0
    if bool((moved & ~inside).any()) or not _leads_to_labels(slopes, labels.clamp(0, classes - 1), moved):
        return None
    if bool((moved == inside).all()) or _is_sum(gradient, zeros):
        return moved
    return _by_label(gradient, labels, inside, classes)


def _gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """In float64, or in float32 where the callable takes no other."""
    for dtype in (torch.float64, torch.float32):
        leaf = logits.detach().to(dtype).requires_grad_()
        try:
            with torch.enable_grad():
                total = loss(leaf, targets).sum()
                if not total.requires_grad:
                    return torch.zeros_like(logits)
                (found,) = gradients(total, [leaf])
            return found.double()
        except (RuntimeError, ValueError, IndexError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
    raise Undefined(f"loss {loss.name!r} cannot be asked for its labels: {reason}")


def _leads_to_labels(slopes: Tensor, labels: Tensor, moved: Tensor) -> bool:
    """Whether the slopes (b, P, C) at the positions that move are those of a loss of labels."""
    largest = slopes.abs().amax(2)
    own = slopes.gather(2, labels.unsqueeze(2)).squeeze(2)
    softmax = slopes.sum(2).abs() <= _ZERO * largest * math.sqrt(slopes.shape[2])
    alone = slopes.abs().sum(2) - own.abs() <= _ZERO * largest
    return bool(((own < 0) & (softmax | alone))[moved].all())


def _is_sum(gradient: Gradient, zeros: Tensor) -> bool:
    """Whether the gradient at one position does not depend on the logits at others."""
    source = generator(0, 0)
    for _ in range(_MIXTURES):
        one, two = (torch.randn(zeros.shape, generator=source, dtype=torch.float64).to(zeros.device) for _ in range(2))
        first = (torch.rand(zeros.shape[:2], generator=source) < 0.5).unsqueeze(2).to(zeros.device)
        apart = torch.where(first, gradient(one), gradient(two))
        together = gradient(torch.where(first, one, two))
        if float((apart - together).abs().max()) > _ZERO * float(apart.abs().max()):
            return False
    return True


def _by_label(gradient: Gradient, labels: Tensor, inside: Tensor, classes: int) -> Tensor:
    """Positions whose label moves the loss where its positions alone are wrong."""
    one_hot = torch.nn.functional.one_hot(labels.clamp(0, classes - 1), classes).double()
    counted = torch.zeros_like(inside)
    for label in labels[inside].unique().tolist():
        here = inside & (labels == label)
        logits = _SURE * torch.where(here.unsqueeze(2), -one_hot, one_hot)
        if bool((gradient(logits)[here] != 0).any()):
            counted |= here
    return counted
