"""Learning-rate schedules: small functions from the epoch, counted from 0, to a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Sequence


def constant(epoch: int) -> float:
    """Always 1."""
    return 1.0


def step(epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """gamma to the number of milestones reached: J20's CNN has milestones 100 and 150 and gamma 0.1."""
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(pi epoch / epochs)) / 2: 1 in the first epoch, and 0 just after the last of `epochs`."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
