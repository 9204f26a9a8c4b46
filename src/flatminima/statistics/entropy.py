"""Entropy of the predicted class probabilities at every labelled position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.statistic import Fold
from flatminima.statistics.positions import PositionUnit, labelled_positions, refuse_none

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class PositionSums:
    """A sum over each sample's labelled positions.

    Attributes:
        sums (n,), counts (n,) float64: in the order of the data.
        unit: what a position is.
        embedded: the inputs are tokens' embeddings.
    """

    sums: Tensor
    counts: Tensor
    unit: PositionUnit
    embedded: bool = False


@dataclass
class _Sums:
    sums: Tensor
    counts: Tensor
    unit: PositionUnit = "sample"


@dataclass(frozen=True)
class OutputEntropies(Fold[_Sums, PositionSums]):
    """-sum_c p_c ln p_c, p the softmax at a position, summed over each sample's labelled positions.

    Raises:
        Undefined: targets that are not classes.
    """

    def init(self, minimum: Minimum) -> _Sums:
        n = len(minimum.samples)
        return _Sums(torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))

    def update(self, state: _Sums, batch: Batch) -> _Sums:
        found = labelled_positions(batch.minimum.loss, batch.outputs, batch.targets)
        state.unit = found.unit
        state.counts[batch.indices] = found.counted.sum(1).double().cpu()
        for part, rows, _, samples in found.parts():
            logs = rows.log_softmax(1)
            entropies = -(logs.exp() * logs.clamp_min(torch.finfo(torch.float64).min)).sum(1)
            sums = torch.zeros(len(found.rows[part]), dtype=torch.float64, device=entropies.device)
            state.sums[batch.indices[part]] = sums.index_add(0, samples, entropies).cpu()
        return state

    def merge(self, left: _Sums, right: _Sums) -> _Sums:
        unit = left.unit if bool(left.counts.any()) else right.unit
        return _Sums(left.sums + right.sums, left.counts + right.counts, unit)

    def finish(self, state: _Sums) -> PositionSums:
        refuse_none(float(state.counts.sum()))
        return PositionSums(state.sums, state.counts, state.unit)
