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


def random(seed: int) -> np.random.Generator:
    """The generator of one calculation."""
    return np.random.default_rng(seed)
