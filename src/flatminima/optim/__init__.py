"""Training to better minima: two optimizers around any base optimizer, and a stand-in for `backward()`."""

from flatminima.optim.diagnostics import Diagnostics, PerturbationWarning
from flatminima.optim.difference import DifferenceError
from flatminima.optim.fisher_trace import FisherTrace, Penalty
from flatminima.optim.pertopt import PertOPT
from flatminima.optim.sam import SAM, Ascent

__all__ = [
    "SAM",
    "Ascent",
    "Diagnostics",
    "DifferenceError",
    "FisherTrace",
    "Penalty",
    "PertOPT",
    "PerturbationWarning",
]


def __dir__() -> list[str]:
    return __all__
