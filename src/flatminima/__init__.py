"""Measure, certify and improve the minimum that a neural network was trained to.

Names are imported when first used, so that `import flatminima` and the command line's help do not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Certificate",
    "Estimate",
    "MeasureTable",
    "Minimum",
    "RankTable",
    "audit",
    "bounds",
    "certify",
    "measure",
    "measures",
    "optim",
    "plan",
    "rank",
]

_HOME = {
    "Audit": "rescaling",
    "Certificate": "certification",
    "Estimate": "estimate",
    "MeasureTable": "table",
    "Minimum": "core.minimum",
    "RankTable": "ranking",
    "audit": "rescaling",
    "certify": "certification",
    "measure": "rounds",
    "plan": "rounds",
    "rank": "ranking",
}

if TYPE_CHECKING:
    from flatminima import bounds, measures, optim
    from flatminima.certification import Certificate, certify
    from flatminima.core.minimum import Minimum
    from flatminima.estimate import Estimate
    from flatminima.ranking import RankTable, rank
    from flatminima.rescaling import Audit, audit
    from flatminima.rounds import measure, plan
    from flatminima.table import MeasureTable


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"flatminima.{_HOME[name]}"), name)
    if name in __all__:
        return import_module(f"flatminima.{name}")
    raise AttributeError(f"module 'flatminima' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
