"""A diagonal from another draw of its samples and probes, so that repeats show what the draw leaves open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima.core.perturbation import mix
from flatminima.core.statistic import Cost, Statistic
from flatminima.statistics.diagonal import BatchGradientSquares, DrawnGaussNewtonDiagonal, SketchedDiagonal
from flatminima.statistics.hessian import HessianProbes

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_RANDOM = (BatchGradientSquares, DrawnGaussNewtonDiagonal, HessianProbes, SketchedDiagonal)  # also of all the data


@dataclass(frozen=True)
class Redrawn(Statistic[Tensor]):
    """Draw `index` (1, 2, ...) of a statistic with fields `samples` and `seed`: a diagonal (W,).

    Kept in the precision of the weights; the statistic's own value, for nothing, where there is nothing to draw.
    """

    statistic: Statistic[Any]
    index: int

    def compute(self, minimum: Minimum) -> Tensor:
        if not draws(self.statistic, len(minimum.samples)):
            return diagonal_of(minimum[self.statistic])
        again: Any = self.statistic
        found = replace(again, seed=mix(again.seed, self.index)).compute(minimum)
        single = all(p.dtype != torch.float64 for p in minimum.parameters.tensors)
        value = diagonal_of(found)
        return value.float() if single else value

    def cost(self, minimum: Minimum) -> Cost:
        return self.statistic.cost(minimum) if draws(self.statistic, len(minimum.samples)) else Cost()


def draws(statistic: Statistic[Any], population: int) -> bool:
    """Whether the value depends on a draw: of samples, probes or batches."""
    samples = getattr(statistic, "samples", None)
    return isinstance(statistic, _RANDOM) or (samples is not None and samples < population)


def diagonal_of(value: Any) -> Tensor:
    """Diagonal of Hutchinson's probes."""
    found: Tensor = value if isinstance(value, Tensor) else value.diagonal
    return found
