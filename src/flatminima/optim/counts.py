"""Weight of each part of a batch in the batch's mean loss, derived from the loss itself.

A loss that averages over labels, class weights or unmasked tokens is S / W with W not the number of samples, so that
the mean of the parts' losses, weighted by samples, is not the loss of the batch. For any such loss the gradient with
respect to the outputs tells: d L(a and b) / d outputs of a = W_a / (W_a + W_b) d L(a) / d outputs of a. Two parts and
one evaluation of the loss on their outputs give W_b / W_a; the network is not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import UsageError
from flatminima.optim.sub_batches import batch_tensors, join, mapped

_LARGEST = 1 << 21  # entries of a part's outputs; beyond, the copies would cost more than a pass
# relative, by the kind of number that the outputs are: how far from a weighted mean a loss may be by rounding
_PROPORTIONAL = {torch.bfloat16: 3e-2, torch.float16: 1e-2}
_PROPORTIONAL_SINGLE = 1e-3
# relative: closer than this, samples are what counts
_SNAP = {torch.float64: 1e-10, torch.bfloat16: 1e-2, torch.float16: 2e-3}
_SNAP_SINGLE = 1e-5


@dataclass(frozen=True)
class Part:
    """Results of a pass over a part of the batch: outputs, detached, d loss / d outputs, targets, samples, loss."""

    outputs: Any
    gradients: list[Tensor | None]
    targets: Any
    samples: int
    loss: float

    @property
    def kinds(self) -> set[torch.dtype]:
        """The dtypes of the gradients."""
        return {g.dtype for g in self.gradients if g is not None}

    @property
    def square(self) -> float:
        """||d loss / d outputs||^2; NaN without outputs."""
        if not self.gradients:
            return math.nan
        return sum(_dot(g, g) for g in self.gradients if g is not None)


class Counts:
    """The weights of the parts of one batch.

    Args:
        loss_fn: maps (outputs, targets) to their mean loss.

    Attributes:
        measured: whether the loss was a weighted mean wherever it was asked, so that the weights are its own.
    """

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        self._loss_fn = loss_fn
        self._reference: Part | None = None
        self.measured = True

    def weigh(self, part: Part, *, last: bool = False) -> float | None:
        """The part's weight, in samples; 0 for a part in which nothing counts; None where later parts will tell.

        Args:
            last: there are no later parts.
        """
        if not part.gradients:
            self.measured = False
            return float(part.samples)
        if self._reference is None:
            if math.isfinite(part.loss) and 0 < part.square < math.inf:
                self._reference = part
                return float(part.samples)
            return float(part.samples) if last else None
        found = self._against(self._reference, part)
        if found is None:
            self.measured = False
            return float(part.samples)
        return found

    def _against(self, reference: Part, part: Part) -> float | None:
        """Weight by the loss of both parts together; None where the loss is no weighted mean, or cannot be asked."""
        both = self._joined(reference, part)
        if both is None:
            return None
        (ours, theirs), loss = both
        if not math.isfinite(loss):  # a part that is NaN for another reason than that nothing counts
            return float(part.samples)
        own, apart = _ratio(ours, reference.gradients)
        near = max(_PROPORTIONAL.get(kind, _PROPORTIONAL_SINGLE) for kind in reference.kinds | part.kinds)
        if not own > 0 or apart > near:
            return None
        if math.isfinite(part.loss) and part.square > 0:
            other, apart = _ratio(theirs, part.gradients)
            if apart > near or abs(own + other - 1) > near:
                return None
        else:
            other = 1 - own
        return self._rounded(reference, part, other / own)

    @staticmethod
    def _rounded(reference: Part, part: Part, ratio: float) -> float:
        """Samples where they are what counts, 0 where nothing does, and otherwise what was found."""
        near = max(_SNAP.get(kind, _SNAP_SINGLE) for kind in reference.kinds | part.kinds)
        if abs(ratio) <= near:
            return 0.0
        found = ratio * reference.samples
        return float(part.samples) if abs(found - part.samples) <= near * part.samples else max(found, 0.0)

    def _joined(self, *parts: Part) -> tuple[list[list[Tensor | None]], float] | None:
        """d loss / d outputs of each part, of the loss of all of them together."""
        try:
            with torch.enable_grad():
                trees = [mapped(_leaf, part.outputs) for part in parts]
                asked = [[t for t in batch_tensors(tree) if t.requires_grad] for tree in trees]
                loss = self._loss_fn(join(trees), join([part.targets for part in parts]))
                found = torch.autograd.grad(loss, [t for some in asked for t in some], allow_unused=True)
        except Exception:  # the user's function may expect anything of its arguments
            return None
        cut = len(asked[0])
        return [list(found[:cut]), list(found[cut:])], float(loss.detach())


def watched(outputs: Any) -> list[Tensor]:
    """The outputs whose gradients will tell, made to keep them; none where they are no tree of batches of samples."""
    try:
        every = batch_tensors(outputs)
    except UsageError:  # something else than tensors among them
        return []
    if any(t.dim() == 0 for t in every) or sum(t.numel() for t in every) > _LARGEST:
        return []
    found = [t for t in every if t.requires_grad]
    for t in found:
        if not t.is_leaf:
            t.retain_grad()
    return found


def _leaf(t: Tensor) -> Tensor:
    """A copy to differentiate by, in float32 at least; numbers that are no floats as they are."""
    wide = t.detach().float() if t.dtype in (torch.float16, torch.bfloat16) else t.detach().clone()
    return wide.requires_grad_(t.is_floating_point() and t.requires_grad)


def _ratio(a: list[Tensor | None], b: list[Tensor | None]) -> tuple[float, float]:
    """The number r for which a is closest to r b, and how far from it, relative to r b."""
    zero = [torch.zeros_like(y) if x is None and y is not None else x for x, y in zip(a, b, strict=True)]
    pairs = [(x, y) for x, y in zip(zero, b, strict=True) if x is not None and y is not None]
    bb = sum(_dot(y, y) for _, y in pairs)
    r = sum(_dot(x, y) for x, y in pairs) / bb
    rest = sum(_dot(d, d) for x, y in pairs for d in (x.double() - r * y.double(),))
    return r, math.sqrt(rest / bb) / max(abs(r), 1e-300)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
