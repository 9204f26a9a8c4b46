"""The highest loss under changes of the weights in proportion to them: adaptive worst-case sharpness.

Kwon et al. 2021 measure a change nu of the weights by ``||nu / (|w| + eta)||``. The search goes to the point of that
ball to which the gradient points, again and again, and keeps the highest loss: their one step is its first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flatminima.core.perturbation import Relative, Uniform, generator
from flatminima.core.statistic import Cost, Statistic
from flatminima.errors import UsageError
from flatminima.statistics.loss_ascent import Around, NearbyPoint, Worst, ascend, cost_of, highest

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

Norm = Literal["2", "inf"]


@dataclass(frozen=True)
class AdaptiveWorstLoss(Statistic[Worst]):
    """Highest mean loss over `samples` random samples with ||nu / (|w| + eta)||_p <= rho.

    Args:
        rho: radius.  norm: p, "2" or "inf".  eta: added to |w|, so that weights of 0 move too.
        steps: gradients at most.
        samples: of the data, drawn by seed; None: all.
        seed: of the samples.
    """

    rho: float
    norm: Norm = "2"
    eta: float = 0.0
    steps: int = 10
    samples: int | None = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm not in ("2", "inf"):
            raise UsageError(f"got norm={self.norm!r}; expected '2' or 'inf'")
        if not (0 < self.rho < math.inf and 0 <= self.eta < math.inf):
            raise UsageError(f"got rho={self.rho!r}, eta={self.eta!r}; rho is positive, eta not negative, both finite")
        if self.steps < 1:
            raise UsageError(f"got steps={self.steps}; at least one gradient is needed")

    def compute(self, minimum: Minimum) -> Worst:
        reach = self.rho if self.norm == "inf" else self.rho / math.sqrt(len(minimum.parameters))  # of one weight
        minimum = minimum.resolving(Uniform(Relative(reach, 1.0, self.eta)), self.seed)
        size = minimum.parameters.flat().abs() + self.eta

        def search(around: Around) -> NearbyPoint:
            gradient = around.gradient
            if not bool(gradient.any()):  # a minimum to the last bit points nowhere
                gradient = torch.randn(len(size), generator=generator(self.seed, 0)).to(size)
            first = self._furthest(size, gradient)
            return ascend(around, first, lambda g: self._furthest(size, g), self.steps, "adaptive sharpness")

        return highest(minimum, self.samples, self.seed, search)

    def _furthest(self, size: Tensor, gradient: Tensor) -> Tensor:
        """argmax <gradient, nu> over the ball."""
        if self.norm == "inf":
            return self.rho * size * gradient.sign()
        scaled = size.double() * gradient.double()
        length = scaled.norm()
        return (self.rho * size.double() * scaled / length).to(size) if length > 0 else torch.zeros_like(size)

    def cost(self, minimum: Minimum) -> Cost:
        share = min(self.samples or math.inf, len(minimum.samples)) / len(minimum.samples)
        return cost_of(share, (self.steps - 1) * share, len(minimum.parameters))
