"""What a table costs: which measures are in it, and with how many draws and samples each.

"default" is every function's own defaults; "fast" and "thorough" change the counts below, never what is estimated. A
benchmark holds the sets to training epochs on the same data: fast two, default six (ResNet-20, 10,000 images).
"""

from __future__ import annotations

from typing import Any, get_args

from flatminima import catalog
from flatminima.catalog import Budget
from flatminima.errors import UnknownName

ORDER: tuple[Budget, ...] = get_args(Budget)

FAST: dict[str, dict[str, Any]] = {
    "expected_sharpness": {"draws": 20},
    "fisher_frobenius": {"trials": 20},
    "fisher_logdet": {"trials": 20},
    "fisher_spectral_radius": {"trials": 20},
    "fisher_trace": {"trials": 20},
    "pacgen": {"samples": 100},
    "robustness": {"samples": 100},
}
THOROUGH: dict[str, dict[str, Any]] = {
    "bicriteria": {"draws": 100},
    "expected_sharpness": {"draws": 1000, "samples": 512},
    "hessian_top_eigenvalue": {"samples": 2000},
    "hessian_trace": {"samples": 10_000},
    "pacgen": {"samples": None, "draws": 5},
    "robustness": {"samples": 5000},
    "sharpness": {"samples": None, "steps": 20},
    "sharpness_divergence": {"samples": None, "draws": 5},
}
OPTIONS = {"fast": FAST, "default": {}, "thorough": THOROUGH}


def check(budget: str) -> Budget:
    """The budget of this name.

    Raises:
        UnknownName: suggesting the nearest.
    """
    for known in ORDER:
        if budget == known:
            return known
    raise UnknownName("budget", budget, ORDER)


def names(budget: str) -> list[str]:
    """The measures in a budget's table: its own and those of smaller budgets."""
    place = ORDER.index(check(budget))
    return [name for name, row in catalog.MEASURES.items() if ORDER.index(row.budget) <= place]


def options(budget: str, name: str) -> dict[str, Any]:
    """What a budget changes of a measure's defaults."""
    return dict(OPTIONS[check(budget)].get(name, {}))
