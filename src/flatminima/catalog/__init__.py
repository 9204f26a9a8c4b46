"""The catalogue: every measure, statistic, bound, optimizer, network, study, choice and paper, once. Imports no torch.

Names, `flatminima list`, the contract tests' options, the units of figures and the index of pages are read from it. To
add a measure: a function in `measures/`, a row in `catalog/measures.py`, a test, a page (docs/how-to/add-a-measure.md).
"""

from flatminima.catalog.bounds import BOUNDS
from flatminima.catalog.measures import FIRST, MEASURES, measure_row
from flatminima.catalog.models import NETWORKS
from flatminima.catalog.optimizers import OPTIMIZERS
from flatminima.catalog.papers import PAPERS, Paper, paper
from flatminima.catalog.rows import (
    BUDGETS,
    LAYERWISE,
    UNITWISE,
    BetterDirection,
    Bound,
    Budget,
    Measure,
    Model,
    Optimizer,
    StatisticRow,
)
from flatminima.catalog.statistics import STATISTICS
from flatminima.catalog.studies import STUDY_FILES

__all__ = [
    "BOUNDS",
    "BUDGETS",
    "FIRST",
    "LAYERWISE",
    "MEASURES",
    "NETWORKS",
    "OPTIMIZERS",
    "PAPERS",
    "STATISTICS",
    "STUDY_FILES",
    "UNITWISE",
    "Bound",
    "Budget",
    "Measure",
    "Model",
    "Optimizer",
    "Paper",
    "StatisticRow",
    "measure_row",
    "paper",
]


def __dir__() -> list[str]:
    return __all__
