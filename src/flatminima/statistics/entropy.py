"""Entropy of the predicted class probabilities of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.statistic import Fold
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class OutputEntropies(Fold[Tensor, Tensor]):
    """-sum_c p_c ln p_c of each sample, p its softmax, (n,) float64 in the order of the data.

    Raises:
        Undefined: targets that are not classes.
    """

    def init(self, minimum: Minimum) -> Tensor:
        if not minimum.loss.labels:
            raise Undefined("targets are not classes: the outputs are no probabilities of classes")
        return torch.zeros(len(minimum.samples), dtype=torch.float64)

    def update(self, state: Tensor, batch: Batch) -> Tensor:
        logs = batch.outputs.double().log_softmax(1)
        state[batch.indices] = -(logs.exp() * logs.clamp_min(torch.finfo(torch.float64).min)).sum(1).cpu()
        return state

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def finish(self, state: Tensor) -> Tensor:
        return state
