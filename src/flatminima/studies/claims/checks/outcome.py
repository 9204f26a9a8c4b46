"""Outcome of a calculation that decides a sentence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Outcome(NamedTuple):
    """Whether the sentence is so, None where the numbers cannot tell, and the numbers in words."""

    holds: bool | None
    said: str


def tiny(value: float) -> str:
    """A number that is rounding where it is small, so that it reads the same on every processor.

    Examples:
        >>> tiny(-3e-17), tiny(0.0021)
        ('less than 1e-12', '2e-03')
    """
    return "less than 1e-12" if abs(value) < 1e-12 else f"{value:.0e}"


def random(seed: int) -> np.random.Generator:
    """The generator of one calculation."""
    return np.random.default_rng(seed)
