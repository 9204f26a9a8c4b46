"""The optimizers, a row each."""

from __future__ import annotations

from flatminima.catalog.papers import FORET_2021, J20, W1
from flatminima.catalog.rows import Optimizer

_ROWS = (
    Optimizer(
        "fisher_trace",
        "FisherTrace",
        "fisher_trace",
        "penalises the trace of the Fisher matrix, by differences of gradients",
        J20,
        "sec. 6, Algorithm 1",
        "backward",
    ),
    Optimizer(
        "pertopt",
        "PertOPT",
        "pertopt",
        "gradients at noisy weights, with noise as wide as the curvature lets it be",
        W1,
        "sec. 7, Algorithm 1",
        "wrapper",
        small={"gamma": 0.3, "eta": 1e4},
        off={"gamma": 0.0, "eps": 0.0},
    ),
    Optimizer(
        "sam",
        "SAM",
        "sam",
        "gradients at the steepest point of a ball around the weights",
        FORET_2021,
        "eq. 2, Algorithm 1",
        "wrapper",
        small={"rho": 0.1},
        off={"rho": 0.0},
    ),
)

OPTIMIZERS: dict[str, Optimizer] = {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}
