"""Statistics of the same network elsewhere: at perturbed weights, or in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from flatminima.errors import NumericalError, Undefined
from flatminima.perturbation import Perturbation
from flatminima.samples import TensorSamples, map_tensors
from flatminima.statistic import Cost, Fold, Statistic

if TYPE_CHECKING:
    from flatminima.minimum import Minimum

T = TypeVar("T")


@dataclass(frozen=True)
class At(Statistic[T]):
    """A statistic's value at w + u, u draw `index` of `seed`."""

    statistic: Statistic[T]
    perturbation: Perturbation
    seed: int = 0
    index: int = 0

    def compute(self, minimum: Minimum) -> T:
        try:
            with minimum.moved(self.perturbation, self.seed, self.index):
                value = self.statistic.compute(minimum)
        except NumericalError as error:
            raise Undefined(f"at perturbed weights {error}") from None
        if isinstance(value, Undefined):
            raise value
        return value

    def cost(self, minimum: Minimum) -> Cost:
        return self.statistic.cost(minimum)


@dataclass(frozen=True)
class InFloat64(Statistic[T]):
    """A fold's value computed by a float64 copy of the network; for what float32 cannot resolve."""

    fold: Fold[Any, T]

    def compute(self, minimum: Minimum) -> T:
        from flatminima.minimum import Minimum

        limit = self.fold.limit(minimum)
        seed = self.fold.order_seed
        indices = torch.arange(limit) if seed is None else minimum.samples.order(seed)[:limit]
        inputs, targets = minimum.samples.take(indices)
        inputs = map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)
        copied = copy.deepcopy(minimum.model).double().eval()
        double = Minimum(copied, _Ordered(inputs, targets), minimum.loss, batch_size=minimum.batch_size)
        return double[self.fold]  # type: ignore[no-any-return]

    def cost(self, minimum: Minimum) -> Cost:
        return self.fold.cost(minimum) + self.fold.cost(minimum)


class _Ordered(TensorSamples):
    """Samples already in the order of the fold's seed."""

    def order(self, seed: int) -> torch.Tensor:
        return torch.arange(len(self))
