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
from flatminima.core.minimum import refuse_overflow
from flatminima.core.perturbation import Relative, generator
from flatminima.core.statistic import Cost, Statistic
from flatminima.errors import UsageError

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

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
        parameters = minimum.parameters
        losses: list[float] = []
        corner = torch.zeros_like(weights)
        for step in range(self.steps):
            minimum.parameters.assign(weights + corner)
            loss, found = minimum.mean_gradient(indices)
            gradient = found.to(weights.dtype)
            losses.append(loss)
            if step == 0 and parameters.agree(not bool(gradient.any())):  # a minimum to the last bit: start anywhere
                gradient = parameters.part(torch.randn(len(parameters), generator=generator(self.seed, 0))).to(box)
            following = box * gradient.sign()
            progress.report("worst-case sharpness", step + 1, self.steps)
            if parameters.agree(torch.equal(following, corner)):  # the corner points at itself
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
            _, gradient = minimum.mean_gradient(indices[part])
            velocity = _ASCENT_MOMENTUM * velocity + gradient.to(weights.dtype)
            nu = torch.clamp(nu + _ASCENT_RATE * velocity, -box, box)
            progress.report("worst-case sharpness", step + 1, self.steps)
        minimum.parameters.assign(weights + nu)
        return Worst(start, max(start, mean_loss(minimum, indices)), self.steps)

    def cost(self, minimum: Minimum) -> Cost:
        n = len(minimum.samples)
        looked = min(self.samples or n, n) if self.method == "vertex" else _ASCENT_BATCH
        passes = self.steps * looked / n
        return Cost(passes + looked / n, passes, 12 * len(minimum.parameters))


def mean_loss(minimum: Minimum, indices: Tensor) -> float:
    """Mean loss over the samples at `indices`."""
    total = 0.0
    with torch.no_grad():
        for part in indices.split(minimum.batch_size):
            batch = minimum.batch(part)
            losses = minimum.loss(minimum.forward(batch.inputs), batch.targets)
            refuse_overflow(losses)
            total += float(losses.double().sum())
    return total / len(indices)
