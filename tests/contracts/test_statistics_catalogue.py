"""The rows of the statistics against the statistics: names, costs, users, the site's table."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

from flatminima import Minimum, catalog, measures, statistics
from flatminima.catalog.uses import used_by
from flatminima.core.statistic import Statistic

N, C = 2_000, 7
_PASSES = re.compile(
    r"(?:(?P<forward>\d+) forward(?:, (?:about )?(?P<backward>[\dCW +]+) backward)?|no pass)"
    r"(?: on (?P<n>[\d,]+) samples)?"
)


def minimum() -> Minimum:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, C, bias=False)).eval()
    return Minimum(model, (torch.randn(N, 5), torch.randint(0, C, (N,))))


def test_every_public_statistic_has_a_row() -> None:
    offered = {name: getattr(statistics, name) for name in statistics.__all__}
    kinds = {name: kind for name, kind in offered.items() if inspect.isclass(kind) and issubclass(kind, Statistic)}
    assert {name: row.load() for name, row in catalog.STATISTICS.items()} == kinds


# whose cost is that of another statistic, or of a search
_WORDS = {"AdaptiveWorstLoss", "At", "BatchGradientSquares", "Change", "InFloat64", "NoiseLevel", "PerturbedLoss",
          "Redrawn", "RescaledLogits", "WorstCaseLoss"}  # fmt: skip


def test_only_searches_and_wrappers_say_their_cost_in_other_words() -> None:
    assert {name for name, row in catalog.STATISTICS.items() if not _PASSES.fullmatch(row.cost)} == _WORDS


@pytest.mark.parametrize("name", sorted(set(catalog.STATISTICS) - _WORDS))
def test_the_cost_is_what_the_statistic_says(name: str) -> None:
    """Catches a row of another default, of C for W, of all samples for some."""
    network = minimum()
    row = catalog.STATISTICS[name]
    words = _PASSES.fullmatch(row.cost)
    assert words is not None
    share = int((words["n"] or str(N)).replace(",", "")) / N
    backward = (words["backward"] or "0").replace("2W", str(2 * len(network.parameters))).replace("C", str(C))
    claimed = int(words["forward"] or 0) * share, sum(int(term) for term in backward.split("+")) * share
    cost = row.load()().cost(network)
    assert (cost.forward, cost.backward) == pytest.approx(claimed, rel=1e-12)


@pytest.mark.parametrize("name", catalog.MEASURES)
def test_what_a_measure_asks_for_names_it_as_a_user(name: str) -> None:
    """The source is read without running it: whatever a measure really asks for must be in what was read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double().eval()
    network = Minimum(model, (torch.randn(12, 5).double(), torch.arange(12) % 3))
    options: dict[str, Any] = dict(catalog.MEASURES[name].small)
    if name in ("distance_from_init", "spectral_complexity"):
        options["initial"] = {key: value + 0.1 for key, value in model.state_dict().items()}
    getattr(measures, name)(network, **options)
    asked = {type(key).__name__ for key in network} & set(catalog.STATISTICS)
    assert asked, "a measure that asks for nothing?"
    assert all(name in used_by()[statistic] for statistic in asked), asked


def test_what_is_not_asked_for_is_no_use() -> None:
    assert used_by()["WeightSpectra"] == ("power_law_exponent",)
    assert "margin" not in used_by()["Gram"]
