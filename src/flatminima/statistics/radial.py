"""Component of each sample's gradient along the weights themselves: the terms of the Fisher-Rao norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.statistic import Fold, Reads

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass
class _Sums:
    weights: dict[str, Tensor]
    squares: Tensor  # (n,), by position in the order
    current: Tensor | None = None  # <w, g> over the layers so far
    seen: set[str] = field(default_factory=set)
    columns: Tensor | None = None  # squares of the columns that are complete, (batch,)

    def close(self) -> None:
        """All layers of a column have arrived: square their sum."""
        if self.current is not None:
            square = self.current.square()
            self.columns = square if self.columns is None else self.columns + square
        self.current = None
        self.seen.clear()

    def store(self, batch: Batch, values: Tensor) -> None:
        part = values[: max(len(self.squares) - batch.start, 0)].cpu()
        self.squares[batch.start : batch.start + len(part)] = part
        self.columns = None


@dataclass(frozen=True)
class _Radial(Fold[_Sums, Tensor]):
    """Squares of <w, g_i>, (samples,) float64, in the random order of the samples.

    Args:
        samples: how many; None: all.
        seed: of the order.
    """

    samples: int | None = None
    seed: int = 0

    @property
    def order_seed(self) -> int:
        return self.seed

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    def init(self, minimum: Minimum) -> _Sums:
        weights = {name: p.detach() for name, p in minimum.parameters}
        return _Sums(weights, torch.zeros(self.limit(minimum), dtype=torch.float64))

    def receive(self, state: _Sums, layer: LayerGradient, batch: Batch) -> None:
        if layer.name in state.seen:  # the first layer of the next column
            state.close()
        state.seen.add(layer.name)
        part = layer.along(state.weights)
        state.current = part if state.current is None else state.current + part

    def merge(self, left: _Sums, right: _Sums) -> _Sums:
        return _Sums(left.weights, left.squares + right.squares)

    def finish(self, state: _Sums) -> Tensor:
        return state.squares


@dataclass(frozen=True)
class RadialGradients(_Radial):
    """<w, g_i>^2, g_i the gradient of sample i's loss at its own label."""

    reads = Reads.OUTPUTS | Reads.LAYERS

    def update(self, state: _Sums, batch: Batch) -> _Sums:
        state.close()
        if state.columns is not None:
            state.store(batch, state.columns * (2 * batch.log_norms).exp())
        return state


@dataclass(frozen=True)
class RadialCurvature(_Radial):
    """<w, G_i w>, G_i = J^T (d2 loss / d output2) J of sample i: the mean of <w, g>^2 over the network's own labels."""

    reads = Reads.OUTPUTS | Reads.COLUMNS

    def update(self, state: _Sums, batch: Batch) -> _Sums:
        state.close()
        if state.columns is not None:
            state.store(batch, state.columns)
        return state
