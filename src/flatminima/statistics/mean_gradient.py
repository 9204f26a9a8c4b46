"""The gradient of the mean loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.statistic import Cost, Fold, Reads

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class MeanGradient(Fold[Tensor, Tensor]):
    """(1/n) sum_i g_i over all samples, (W,) float64."""

    reads = Reads.GRAPH

    def init(self, minimum: Minimum) -> Tensor:
        return torch.zeros(len(minimum.parameters), dtype=torch.float64, device=minimum.device)

    def update(self, state: Tensor, batch: Batch) -> Tensor:
        return state + batch.gradient().double() / len(batch.minimum.samples)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def finish(self, state: Tensor) -> Tensor:
        return state.cpu()

    def cost(self, minimum: Minimum) -> Cost:
        return Cost(1.0, 1.0, 8 * len(minimum.parameters))
