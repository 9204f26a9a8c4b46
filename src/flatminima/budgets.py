"""The cost of a table: which measures are in it, and with how many draws and samples each.

"default" is every function's own defaults; "fast" and "thorough" change the counts below, never what is estimated. A
benchmark holds the sets to training epochs on the same data: fast two, default six (ResNet-20, 10,000 images).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from flatminima import catalog
from flatminima.catalog import Budget
from flatminima.errors import UnknownName

ORDER: tuple[Budget, ...] = catalog.BUDGETS
OPTIONS: dict[Budget, dict[str, dict[str, Any]]] = {
    budget: {name: dict(row.counts(budget)) for name, row in catalog.MEASURES.items() if row.counts(budget)}
    for budget in ORDER
}
FAST, THOROUGH = OPTIONS["fast"], OPTIONS["thorough"]
WORTH = 8  # positions of one sequence that count as a sample: they depend on each other
_FEWEST = 4  # sequences
_SUBSET, _SMALLEST = 100, 8  # samples of a Gram matrix, and sequences of one at least


def checked_budget(budget: str) -> Budget:
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
    place = ORDER.index(checked_budget(budget))
    return [name for name, row in catalog.MEASURES.items() if ORDER.index(row.budget) <= place]


def options(budget: str, name: str) -> dict[str, Any]:
    """Options that a budget changes of a measure's defaults."""
    return dict(OPTIONS[checked_budget(budget)].get(name, {}))


def for_sequences(
    given: Mapping[str, Any], function: Callable[..., Any], positions: int, population: int
) -> dict[str, Any]:
    """The options where a sample is a sequence: its positions count, so that a table costs no more for longer texts.

    Args:
        given: of a budget. function: the measure. positions: labelled at most in a sample. population: samples.

    Returns:
        The options; with 8 positions or more, `samples` such that 8 positions count as one, at least 4 sequences, and
        Gram matrices of as many (`subset`), at least 8, which is what memory must hold at a time.

    Examples:
        >>> for_sequences({"samples": 128}, lambda minimum, *, samples=100: None, 64, 1000)
        {'samples': 16}
    """
    out = dict(given)
    if positions < WORTH:
        return out
    parameters = signature(function).parameters
    count = out.get("samples", parameters["samples"].default if "samples" in parameters else None)
    if isinstance(count, int):
        out["samples"] = min(count, max(_FEWEST, math.ceil(WORTH * count / positions)))
    subset = max(_SMALLEST, math.ceil(WORTH * _SUBSET / positions))
    if "subset" in parameters and subset <= min(population, _SUBSET):
        out.setdefault("subset", subset)
    return out
