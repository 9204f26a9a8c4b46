"""Ranking: the network to ship, the measure to trust, and how sure either is."""

from flatminima.ranking.calibrated import probabilities
from flatminima.ranking.candidates import Candidate, Look, failed, look
from flatminima.ranking.choice import Choice, choose
from flatminima.ranking.controlled import Controlled, controlled
from flatminima.ranking.correlation import Correlation, kendall
from flatminima.ranking.order import Order, Place, order
from flatminima.ranking.paired import Paired, compare_errors, compare_losses
from flatminima.ranking.table import RankTable, rank, score

__all__ = [
    "Candidate",
    "Choice",
    "Controlled",
    "Correlation",
    "Look",
    "Order",
    "Paired",
    "Place",
    "RankTable",
    "choose",
    "compare_errors",
    "compare_losses",
    "controlled",
    "failed",
    "kendall",
    "look",
    "order",
    "probabilities",
    "rank",
    "score",
]


def __dir__() -> list[str]:
    return __all__
