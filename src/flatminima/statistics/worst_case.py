"""The highest loss found in a box around the weights: worst-case sharpness.

Two searches. "vertex" goes to the corner that the gradient's signs point to, again and again, keeping the highest loss
seen: five steps found more than the paper's 2,000 ascent steps on an MLP (benchmarks/bench_sharpness.py). "ascent" is
the paper's projected stochastic ascent. What either finds is a lower bound of the maximum; where samples are drawn, an
estimate of one (see `around`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flatminima import progress
from flatminima.core.perturbation import Relative, Uniform, generator
from flatminima.core.statistic import Cost, Needs, Statistic
from flatminima.errors import UsageError
from flatminima.statistics.loss_ascent import Around, NearbyPoint, Worst, ascend, cost_of, highest

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

ASCENT_RATE, ASCENT_MOMENTUM, ASCENT_BATCH = 0.01, 0.9, 64  # Neyshabur et al. 2017, app. A


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

    @property
    def needs(self) -> Needs:
        return Needs.LOSSES | Needs.GRADIENTS

    def __post_init__(self) -> None:
        if self.method not in ("vertex", "ascent"):
            raise UsageError(f"got method={self.method!r}; expected 'vertex' or 'ascent'")
        if self.steps < 1:
            raise UsageError(f"got steps={self.steps}; at least one gradient is needed")

    def compute(self, minimum: Minimum) -> Worst:
        minimum = minimum.resolving(Uniform(self.scale), self.seed)
        box = self.scale.of(minimum.parameters.flat())
        search = self._vertex if self.method == "vertex" else self._ascent
        return highest(minimum, self.samples, self.seed, lambda around: search(around, box))

    def _vertex(self, around: Around, box: Tensor) -> NearbyPoint:
        parameters, gradient = around.minimum.parameters, around.gradient
        if parameters.agree(not bool(gradient.any())):  # a minimum to the last bit: start anywhere
            gradient = parameters.part(torch.randn(len(parameters), generator=generator(self.seed, 0))).to(box)

        def corner(gradient: Tensor) -> Tensor:
            return box * gradient.to(box.dtype).sign()

        return ascend(around, corner(gradient), corner, self.steps, "worst-case sharpness")

    def _ascent(self, around: Around, box: Tensor) -> NearbyPoint:
        nu, velocity = torch.zeros_like(box), torch.zeros_like(box)
        batches = len(around.indices)
        for step in range(self.steps):
            chosen = torch.randint(batches, (ASCENT_BATCH,), generator=generator(self.seed, step))
            gradient = around.of_batch(nu, around.indices[chosen])
            velocity = ASCENT_MOMENTUM * velocity + gradient.to(box.dtype)
            nu = torch.clamp(nu + ASCENT_RATE * velocity, -box, box)
            progress.report("worst-case sharpness", step + 1, self.steps)
        rise = around.rise(nu)
        return NearbyPoint(nu if rise > 0 else torch.zeros_like(nu), max(rise, 0.0), self.steps)

    def cost(self, minimum: Minimum) -> Cost:
        share = min(self.samples or math.inf, len(minimum.samples)) / len(minimum.samples)
        steps = self.steps - 1 if self.method == "vertex" else self.steps * ASCENT_BATCH / len(minimum.samples)
        return cost_of(share, steps * share if self.method == "vertex" else steps, len(minimum.parameters))
