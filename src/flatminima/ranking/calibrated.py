"""The worth of an order by measures: probabilities fitted to networks whose gaps are known, and the table of trust.

P(network i has the smallest gap) is proportional to exp(-beta s_i), s_i in [0, 1] its mean rank over the default
voters, 0 best. The numbers below are those of `benchmarks/rank_calibration.py`, from the 175 networks of the zoo
(docs/which-measure.md); a test compares them with its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """A kind of networks on which measures were tried.

    Attributes:
        name: what they are.
        networks: how many.
        beta: of the probabilities.
        right: share of pairs that the default voters order as their gaps, beyond ties.
        taus: Kendall's tau of each default voter with the gap.
    """

    name: str
    networks: int
    beta: float
    right: float
    taus: dict[str, float]


PERCEPTRONS = Calibration(
    "two-layer perceptrons on 500 images of MNIST",
    89,
    1.50,
    0.635,
    {
        "robustness": 0.37,
        "path_norm": 0.38,
        "fisher_spectral_radius": 0.23,
        "fisher_frobenius": 0.21,
        "fisher_trace": 0.18,
    },
)
CONVOLUTIONS = Calibration(
    "small convolutional networks on 500 images of CIFAR-10",
    86,
    3.20,
    0.665,
    {
        "robustness": 0.31,
        "path_norm": 0.23,
        "fisher_spectral_radius": 0.30,
        "fisher_frobenius": 0.33,
        "fisher_trace": 0.26,
    },
)
FAMILIES = (PERCEPTRONS, CONVOLUTIONS)
BETA = 2.10  # of both together


def probabilities(ranks: Sequence[float] | NDArray[np.float64], beta: float = BETA) -> NDArray[np.float64]:
    """Probability of the smallest gap for each network; they add up to 1.

    Args:
        ranks: mean rank of each over the voters, 1 is best.
        beta: how much a rank says; 0: nothing.

    Examples:
        >>> probabilities([1.0, 2.0], 0.0).tolist()
        [0.5, 0.5]
    """
    r = np.asarray(ranks, dtype=np.float64)
    s = (r - 1) / max(len(r) - 1, 1)
    weights = np.exp(-beta * (s - s.min()))
    return np.asarray(weights / weights.sum())


def nearest(convolutional: bool) -> Calibration:
    """The family nearest to networks with convolutions, or without."""
    return CONVOLUTIONS if convolutional else PERCEPTRONS
