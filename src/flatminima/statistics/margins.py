"""Margins of all labelled positions: one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.statistic import Fold, Needs
from flatminima.statistics.outputs import margins
from flatminima.statistics.positions import PositionUnit, labelled_positions, refuse_none

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class SortedMargins:
    """f[y] - max_{j != y} f[j] of every labelled position.

    Attributes:
        values (k,) float64, ascending.
        unit: what a position is, "sample", "token" or "position".
    """

    values: Tensor
    unit: PositionUnit

    @property
    def error_rate(self) -> float:
        """Share of positions whose label is not strictly the largest logit."""
        return float((self.values <= 0).double().mean())


@dataclass
class _Found:
    parts: list[Tensor] = field(default_factory=list)
    unit: PositionUnit = "sample"


@dataclass(frozen=True)
class Margins(Fold[_Found, SortedMargins]):
    """The margins of all labelled positions, 8 bytes each.

    Raises:
        Undefined: targets that are not classes.
    """

    @property
    def needs(self) -> Needs:
        return Needs.LOSSES

    def init(self, minimum: Minimum) -> _Found:
        return _Found()

    def update(self, state: _Found, batch: Batch) -> _Found:
        found = labelled_positions(batch.minimum.loss, batch.outputs, batch.targets)
        state.unit = found.unit
        state.parts += [margins(rows, labels).cpu() for _, rows, labels, _ in found.parts()]
        return state

    def merge(self, left: _Found, right: _Found) -> _Found:
        return _Found(left.parts + right.parts, left.unit if left.parts else right.unit)

    def finish(self, state: _Found) -> SortedMargins:
        refuse_none(sum(map(len, state.parts)))
        return SortedMargins(torch.cat(state.parts).sort().values, state.unit)
