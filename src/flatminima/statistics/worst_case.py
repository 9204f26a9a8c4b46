"""The highest loss found in a box around the weights: worst-case sharpness.

Two searches. "vertex" goes to the corner that the gradient's signs point to, again and again, keeping the highest loss
seen: five steps found more than the paper's 2,000 ascent steps on an MLP (performance-notes E). "ascent" is the
paper's projected stochastic ascent. Either is a lower bound of the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flatminima import progress
from flatminima.errors import Undefined, UsageError
from flatminima.perturbation import Relative, generator
from flatminima.statistic import Cost, Statistic

if TYPE_CHECKING:
    from flatminima.minimum import Minimum

_ASCENT_RATE, _ASCENT_MOMENTUM, _ASCENT_BATCH = 0.01, 0.9, 64  # Neyshabur et al. 2017, sec. 2.2


@dataclass(frozen=True)
class Worst:
    """What the search found.

    Attributes:
        loss: mean loss at w.  highest: the highest mean loss seen in the box, at least `loss`.
        gradients: full gradients ("vertex") or mini-batch gradients ("ascent") spent.
    """

    loss: float
    highest: float
    gradients: int


@dataclass(frozen=True)
class WorstCaseLoss(Statistic[Worst]):
    """Highest mean loss over `samples` random samples with |nu_i| <= scale_i.

    Args:
        scale: half-widths of the box.
        method: "vertex" or "ascent".
        steps: gradients at most.
        samples: of the data, drawn by seed; None: all.
        seed: of the samples and of the ascent's batches.
    """

    scale: Relative
    method: Literal["vertex", "ascent"] = "vertex"
    steps: int = 10
    samples: int | None = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("vertex", "ascent"):
            raise UsageError(f"got method={self.method!r}; expected 'vertex' or 'ascent'")
        if self.steps < 1:
            raise UsageError(f"got steps={self.steps}; at least one gradient is needed")

    def compute(self, minimum: Minimum) -> Worst:
        n = len(minimum.samples)
        indices = minimum.samples.order(self.seed)[: n if self.samples is None else min(self.samples, n)]
        weights = minimum.parameters.flat()
        box = self.scale.of(weights)
        with minimum.open():
            try:
                return (
                    self._vertex(minimum, indices, weights, box)
                    if self.method == "vertex"
                    else self._ascent(minimum, indices, weights, box)
                )
            finally:
                minimum.parameters.assign(weights)

    def _vertex(self, minimum: Minimum, indices: Tensor, weights: Tensor, box: Tensor) -> Worst:
        losses: list[float] = []
        corner = torch.zeros_like(weights)
        for step in range(self.steps):
            minimum.parameters.assign(weights + corner)
            loss, gradient = mean_gradient(minimum, indices)
            losses.append(loss)
            if step == 0 and not bool(gradient.any()):  # a minimum to the last bit points nowhere: start anywhere
                gradient = torch.randn(len(box), generator=generator(self.seed, 0)).to(box)
            following = box * gradient.sign()
            progress.report("worst-case sharpness", step + 1, self.steps)
            if torch.equal(following, corner):  # the corner points at itself
                return Worst(losses[0], max(losses), step + 1)
            corner = following
        minimum.parameters.assign(weights + corner)
        losses.append(mean_loss(minimum, indices))
        return Worst(losses[0], max(losses), self.steps)

    def _ascent(self, minimum: Minimum, indices: Tensor, weights: Tensor, box: Tensor) -> Worst:
        start = mean_loss(minimum, indices)
        nu, velocity = torch.zeros_like(weights), torch.zeros_like(weights)
        for step in range(self.steps):
            part = torch.randint(len(indices), (_ASCENT_BATCH,), generator=generator(self.seed, step))
            minimum.parameters.assign(weights + nu)
            _, gradient = mean_gradient(minimum, indices[part])
            velocity = _ASCENT_MOMENTUM * velocity + gradient
            nu = torch.clamp(nu + _ASCENT_RATE * velocity, -box, box)
            progress.report("worst-case sharpness", step + 1, self.steps)
        minimum.parameters.assign(weights + nu)
        return Worst(start, max(start, mean_loss(minimum, indices)), self.steps)

    def cost(self, minimum: Minimum) -> Cost:
        n = len(minimum.samples)
        looked = min(self.samples or n, n) if self.method == "vertex" else _ASCENT_BATCH
        passes = self.steps * looked / n
        return Cost(passes + looked / n, passes, 12 * len(minimum.parameters))


def mean_gradient(minimum: Minimum, indices: Tensor) -> tuple[float, Tensor]:
    """Mean loss over the samples at `indices` and its gradient (W,), in the weights' dtype."""
    total, gradient = 0.0, torch.zeros(len(minimum.parameters), device=minimum.device, dtype=torch.float64)
    for part in indices.split(minimum.batch_size):
        batch = minimum.batch(part)
        output = minimum.forward(batch.inputs)
        losses = minimum.loss(output, batch.targets)
        _finite(losses)
        tensors = minimum.parameters.tensors
        grads = torch.autograd.grad(losses.sum(), tensors, allow_unused=True, materialize_grads=True)
        minimum.passes.backward += len(part)
        gradient += torch.cat([g.reshape(-1) for g in grads]).double()
        total += float(losses.detach().double().sum())
    return total / len(indices), (gradient / len(indices)).to(minimum.parameters.tensors[0].dtype)


def mean_loss(minimum: Minimum, indices: Tensor) -> float:
    """Mean loss over the samples at `indices`."""
    total = 0.0
    with torch.no_grad():
        for part in indices.split(minimum.batch_size):
            batch = minimum.batch(part)
            losses = minimum.loss(minimum.forward(batch.inputs), batch.targets)
            _finite(losses)
            total += float(losses.double().sum())
    return total / len(indices)


def _finite(losses: Tensor) -> None:
    if not bool(torch.isfinite(losses).all()):
        raise Undefined("the loss overflows within the box: use a smaller alpha")
