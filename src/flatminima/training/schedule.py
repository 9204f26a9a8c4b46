"""Learning-rate schedules: small functions from the epoch, counted from 0, to a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_THRESHOLD = 1e-4  # relative; torch's default


def constant(epoch: int) -> float:
    """Always 1."""
    return 1.0


def step(epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """gamma to the number of milestones reached: J20's CNN has milestones 100 and 150 and gamma 0.1."""
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(pi epoch / epochs)) / 2: 1 in the first epoch, and 0 just after the last of `epochs`."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


@dataclass
class Plateau:
    """Drops the rate when the loss of an epoch has not fallen by 1e-4 of itself for more than `patience` epochs.

    Args:
        patience: epochs without a fall that are let pass, 0 or more.
        best, waited, drops: its state.

    Source: torch's `ReduceLROnPlateau`, whose defaults these are, but for `patience`.

    Examples:
        >>> plateau = Plateau(1)
        >>> for loss in (2.0, 1.0, 1.0, 1.0, 0.5):
        ...     plateau.see(loss)
        >>> plateau.drops
        1
    """

    patience: int
    best: float = math.inf
    waited: int = 0
    drops: int = 0

    def see(self, loss: float) -> None:
        """Note the end of an epoch."""
        if loss < self.best * (1 - _THRESHOLD):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.waited, self.drops = 0, self.drops + 1
