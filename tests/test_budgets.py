"""Budgets: larger ones hold more, change counts only, and a table is still the direct calls."""

import inspect

import pytest
import torch
from torch import nn

from flatminima import Minimum, budgets, catalog, measure, plan
from flatminima.errors import UnknownName


def minimum(n=300):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    torch.manual_seed(0)
    return Minimum(nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3)), (x, torch.arange(n) % 3))


def test_each_budget_holds_the_smaller_ones():
    fast, default, thorough = (set(budgets.names(b)) for b in budgets.ORDER)
    assert fast < default < thorough == set(catalog.MEASURES)


@pytest.mark.parametrize("budget", budgets.ORDER)
def test_options_are_counts_of_the_measures_and_grow(budget):
    for name, options in budgets.OPTIONS[budget].items():
        parameters = inspect.signature(catalog.measure_row(name).load()).parameters
        assert name in budgets.names(budget)
        for key, value in options.items():
            default = parameters[key].default
            assert key in {"draws", "samples", "trials", "probes", "steps"}, (name, key)
            if default is not None and value is not None:
                assert value < default if budget == "fast" else value > default, (name, key)


def test_a_fast_table_is_the_direct_calls_with_its_counts():
    m = minimum()
    table = measure(m, budget="fast")
    assert list(table) == budgets.names("fast")
    for name, found in table.items():
        direct = catalog.measure_row(name).load()(minimum(), **budgets.options("fast", name))
        # batches differ, and so the rounding of float32 losses, whose differences sharpness is
        assert (found.value is None) == (direct.value is None), name
        assert found.value is None or found.value == pytest.approx(direct.value, rel=1e-4), name


def test_names_get_the_budgets_counts_and_functions_keep_their_own():
    from flatminima import measures

    table = measure(minimum(), ["expected_sharpness"], budget="fast")
    assert table["expected_sharpness"].details["n"] == budgets.FAST["expected_sharpness"]["draws"]
    table = measure(minimum(), [measures.expected_sharpness], budget="fast")
    assert table["expected_sharpness"].details["n"] == 100


def test_a_smaller_budget_costs_less():
    fast, default = (plan(minimum(), budget=b).cost for b in ("fast", "default"))
    assert fast.forward < default.forward and fast.backward < default.backward


def test_an_unknown_budget_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'thorough'"):
        measure(minimum(), budget="thorugh")


def test_sequences_are_counted_in_positions():
    """64 sequences of 256 tokens: 300 samples are 10 sequences, a Gram matrix holds 8; what is given is kept."""
    pacgen, trace = catalog.measure_row("pacgen").load(), catalog.measure_row("fisher_trace").load()
    assert budgets.for_sequences({}, pacgen, 256, 64) == {"samples": 10}
    assert budgets.for_sequences({"trials": 20}, trace, 256, 64) == {"trials": 20, "subset": 8}
    assert budgets.for_sequences({"subset": 30}, trace, 256, 64) == {"subset": 30}
    assert budgets.for_sequences({}, trace, 256, 5) == {}  # all there are
    assert budgets.for_sequences({"samples": 100}, pacgen, 7, 64) == {"samples": 100}
    assert budgets.for_sequences({"samples": 2}, pacgen, 256, 64) == {"samples": 2}
    assert budgets.for_sequences({"samples": None}, pacgen, 256, 64) == {"samples": None}
