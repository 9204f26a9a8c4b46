"""Statistics of the same network at perturbed weights, or in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from flatminima.core.perturbation import Perturbation
from flatminima.core.statistic import Cost, Fold, Statistic
from flatminima.errors import Absent, NumericalError, Undefined
from flatminima.statistics.redrawn import Redrawn

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

T = TypeVar("T")

_BLOCK = 1 << 22  # weights at a time


@dataclass(frozen=True)
class At(Statistic[T]):
    """A statistic's value at w + u, u draw `index` of `seed`."""

    statistic: Statistic[T]
    perturbation: Perturbation
    seed: int = 0
    index: int = 0

    def compute(self, minimum: Minimum) -> T:
        network: Any = minimum.resolving(self.perturbation, self.seed)
        try:
            with network.moved(self.perturbation, self.seed, self.index):
                value = self.statistic.compute(network)
        except NumericalError as error:
            raise Undefined(f"at perturbed weights {error}") from None
        if isinstance(value, Absent):
            raise value.raised()
        return value

    def cost(self, minimum: Minimum) -> Cost:
        return self.statistic.cost(minimum)


@dataclass(frozen=True)
class DiagonalChange:
    """Change of a diagonal h from w to w + u.

    Attributes:
        highest, lowest: of h_i(w + u) - h_i(w).
        length: ||u||_2.
        steepest: largest |h_i(w + u) - h_i(w)| / |u_i| over weights that moved; None: none did.
    """

    highest: float
    lowest: float
    length: float
    steepest: float | None

    @classmethod
    def of(cls, before: Tensor, after: Tensor, u: Tensor) -> DiagonalChange:
        """Build from diagonals and a perturbation (W,), block by block: another vector of a large model has no room."""
        highest, lowest, squares, steepest = -math.inf, math.inf, 0.0, None
        for a, b, step in zip(before.split(_BLOCK), after.split(_BLOCK), u.split(_BLOCK), strict=True):
            change, step = b - a, step.double()
            highest, lowest = max(highest, float(change.max())), min(lowest, float(change.min()))
            squares += float(step.square().sum())
            moved = step != 0
            if bool(moved.any()):
                steepest = max(steepest or 0.0, float((change[moved].abs() / step[moved].abs()).max()))
        return cls(highest, lowest, math.sqrt(squares), steepest)


@dataclass(frozen=True)
class Change(Statistic[DiagonalChange]):
    """Change of a diagonal (W,) from w to w + u, u draw `index` of `seed`; the diagonal there is not kept."""

    diagonal: Statistic[Any]
    perturbation: Perturbation
    seed: int = 0
    index: int = 0

    def compute(self, minimum: Minimum) -> DiagonalChange:
        before = _diagonal(minimum[self.diagonal])
        after = _diagonal(At(self.diagonal, self.perturbation, self.seed, self.index).compute(minimum))
        u = self.perturbation.draw(minimum.parameters.flat(), self.seed, self.index)
        return DiagonalChange.of(before, after.to(before.device), u.to(before.device))

    def cost(self, minimum: Minimum) -> Cost:
        at_w = self.diagonal  # which may be known there for nothing; away from w it never is
        return (at_w.statistic if isinstance(at_w, Redrawn) else at_w).cost(minimum)


def _diagonal(value: Any) -> Tensor:
    """Diagonal of Hutchinson's probes."""
    found: Tensor = value.diagonal if not isinstance(value, Tensor) else value
    return found


@dataclass(frozen=True)
class InFloat64(Statistic[T]):
    """A fold's value computed by a float64 copy of the network; for what float32 cannot resolve."""

    fold: Fold[Any, T]

    def compute(self, minimum: Minimum) -> T:
        if all(p.dtype == torch.float64 for p in minimum.parameters.tensors):
            return minimum[self.fold]
        return minimum.replace(dtype=torch.float64)[self.fold]

    def cost(self, minimum: Minimum) -> Cost:
        return self.fold.cost(minimum) + self.fold.cost(minimum)
