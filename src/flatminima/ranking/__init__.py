"""Which measure to trust: rank correlation with the generalization gap, with its uncertainty; and an order to use."""

from flatminima.ranking.controlled import Controlled, controlled
from flatminima.ranking.correlation import Correlation, kendall
from flatminima.ranking.order import Order, Place, order
from flatminima.ranking.table import RankTable, rank

__all__ = ["Controlled", "Correlation", "Order", "Place", "RankTable", "controlled", "kendall", "order", "rank"]
