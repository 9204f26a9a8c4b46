"""Which measure to trust: rank correlation with the generalization gap, with its uncertainty."""

from flatminima.ranking.correlation import Correlation, kendall
from flatminima.ranking.table import RankTable, rank

__all__ = ["Correlation", "RankTable", "kendall", "rank"]
