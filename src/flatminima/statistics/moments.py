"""Mean and spread over samples of one number a parameter, batch by batch: their values themselves are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of `count` values of each parameter (Chan, Golub & LeVeque 1983).

    Attributes:
        names: of the P parameters.
        count: values so far.
        mean (P,), squares (P,) float64: their mean, and the sum of their squared deviations from it.
    """

    names: tuple[str, ...]
    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, names: tuple[str, ...], values: Mapping[str, Tensor], count: int) -> Moments:
        """Compute from values (count,) by name; a parameter that is not there has only zeros.

        Examples:
            >>> m = Moments.of(("a", "b"), {"a": torch.tensor([1.0, 3.0])}, 2)
            >>> m.mean.tolist(), m.squares.tolist()
            ([2.0, 0.0], [2.0, 0.0])
        """
        mean, squares = torch.zeros(2, len(names), dtype=torch.float64).unbind(0)
        for i, name in enumerate(names):
            if count and name in values:
                own = values[name].double()
                mean[i] = own.mean()
                squares[i] = (own - mean[i].to(own)).square().sum()
        return cls(names, count, mean, squares)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of values."""
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / max(count, 1)
        squares = self.squares + other.squares + apart.square() * (self.count * share)
        return Moments(self.names, count, self.mean + share * apart, squares)
