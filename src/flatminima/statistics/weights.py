"""Statistics of the weights alone: no pass over the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.statistic import Needs, Statistic

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class FlatWeights:
    """The trainable weights.

    Attributes:
        values (W,) float64.
        names, sizes: of the parameters that make up the vector, in order.
        frozen: parameters left out because they do not require a gradient.
        shapes: of the parameters, where they are known.
    """

    values: Tensor
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    frozen: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()

    def by_parameter(self, terms: Tensor) -> dict[str, float]:
        """Sums of `terms` (W,) over each parameter."""
        return {name: float(part.sum()) for name, part in zip(self.names, terms.split(list(self.sizes)), strict=True)}


@dataclass(frozen=True)
class Weights(Statistic[FlatWeights]):
    """The trainable weights as one float64 vector."""

    def compute(self, minimum: Minimum) -> FlatWeights:
        parameters = minimum.parameters
        sizes = tuple(p.numel() for p in parameters.tensors)
        shapes = tuple(tuple(p.shape) for p in parameters.tensors)
        return FlatWeights(parameters.flat(torch.float64).cpu(), parameters.names, sizes, parameters.frozen, shapes)


@dataclass(frozen=True)
class ParameterCount(Statistic[int]):
    """W, each tied parameter once, frozen ones left out."""

    @property
    def needs(self) -> Needs:
        return Needs.LOSSES

    def compute(self, minimum: Minimum) -> int:
        return len(minimum.parameters)


@dataclass(frozen=True)
class SampleCount(Statistic[int]):
    """n, the number of samples."""

    @property
    def needs(self) -> Needs:
        return Needs.LOSSES

    def compute(self, minimum: Minimum) -> int:
        return len(minimum.samples)
