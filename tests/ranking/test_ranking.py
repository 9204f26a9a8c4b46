"""Kendall's tau against scipy, its bootstrap against the literal resampling, and the rank table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from flatminima import Minimum
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.ranking import kendall, rank
from flatminima.table import MeasureTable


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [3, 8, 40])
def test_tau_is_scipys(n: int, ties: bool) -> None:
    """tau-b; would catch tau-a where values tie."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        x, y = rng.normal(size=n), rng.normal(size=n)
        if ties:
            x, y = x.round(), y.round()
            if len(set(x)) == 1 or len(set(y)) == 1:
                continue
        assert kendall(x, y).tau == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)


def test_the_interval_is_that_of_resampling_networks() -> None:
    """The counting form against rows drawn with replacement and scipy's tau of each; would catch resampled pairs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    drawn = np.random.default_rng(1).integers(0, 12, size=(2000, 12))
    taus = [kendalltau(x[i], y[i]).statistic for i in drawn]
    low, high = np.percentile(taus, [2.5, 97.5])
    found = kendall(x, y)
    assert found.low is not None and found.high is not None
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)


def test_the_interval_covers_the_true_tau() -> None:
    """Of 200 samples of 20 networks from a known distribution, a nominal 95% interval covers in 88 to 99%."""
    rng = np.random.default_rng(2)
    rho = 0.6
    truth = 2 / np.pi * np.arcsin(rho)  # bivariate normal
    covered = 0
    for _ in range(200):
        x = rng.normal(size=20)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=20)
        c = kendall(x, y)
        assert c.low is not None and c.high is not None
        covered += c.low <= truth <= c.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_reproducible_interval() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=15), rng.normal(size=15)
    assert kendall(x, y, seed=1) == kendall(x, y, seed=1)
    assert kendall(x, y, seed=1) != kendall(x, y, seed=2)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ([1, 2], [1, 2], "2 networks have a value, 3 are needed"),
        ([1, 1, 1], [1, 2, 3], "all values"),
        ([1, 2, 3], [5, 5, 5], "all gaps"),
    ],
)
def test_undefined_says_why(x: list[float], y: list[float], why: str) -> None:
    found = kendall(x, y)
    assert found.tau is None
    assert why in str(found.undefined)


@pytest.mark.parametrize(
    ("x", "y", "options", "says"),
    [
        ([1, 2, 3], [1, 2], {}, "3 values for 2 gaps"),
        ([1, 2, float("nan")], [1, 2, 3], {}, "NaN or Inf"),
        ([1, 2, 3], [1, 2, 3], {"confidence": 1.0}, "confidence"),
    ],
)
def test_bad_input(x: list[float], y: list[float], options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        kendall(x, y, **options)


def table(**values: Estimate) -> MeasureTable:
    return MeasureTable(values, 10, 5, 1.0, 1.0, 0.1, "cross_entropy", "abc")


GAPS = [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_higher_is_better_measure_is_turned() -> None:
    """tau > 0 always means: orders the networks as their gaps do."""
    tables = [table(a=Estimate(g), b=Estimate(-g, direction="higher"), c=Estimate(-g)) for g in GAPS]
    found = rank(tables, GAPS)
    assert {name: c.tau for name, c in found.correlations.items()} == {"a": 1.0, "b": 1.0, "c": -1.0}
    assert list(found.correlations) == ["a", "b", "c"]


def test_networks_where_a_measure_is_undefined_are_left_out_and_counted() -> None:
    tables = [table(a=Estimate(g) if g > 0.15 else Estimate.missing("no"), b=Estimate.missing("no")) for g in GAPS]
    found = rank(tables, GAPS).correlations
    assert (found["a"].tau, found["a"].networks) == (1.0, 4)
    assert (found["b"].tau, found["b"].networks) == (None, 0)
    assert list(found) == ["a", "b"]


def test_minima_are_measured() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 4), torch.randint(0, 2, (30,))
    nets = [torch.nn.Linear(4, 2) for _ in range(4)]
    minima = [Minimum(net, (x, y)) for net in nets]
    found = rank(minima, [0.4, 0.1, 0.2, 0.3], ["margin", "parameter_count"])
    expected = kendalltau([-float(m["margin"]) for m in _tables(minima)], [0.4, 0.1, 0.2, 0.3]).statistic
    assert found.correlations["margin"].tau == pytest.approx(expected)
    assert found.correlations["parameter_count"].undefined == "all values are equal"


def _tables(minima: list[Minimum]) -> list[Any]:
    from flatminima import measure

    return [measure(m, ["margin"]) for m in minima]


def test_the_table_fits_80_columns_and_pandas() -> None:
    tables = [table(a=Estimate(g), b=Estimate.missing("x" * 200)) for g in GAPS]
    found = rank(tables, GAPS)
    assert max(map(len, str(found).splitlines())) <= 80
    assert "+1.00" in str(found)
    assert found.to_pandas().loc["a", "tau"] == 1.0


def test_lengths_must_agree() -> None:
    with pytest.raises(UsageError, match="one gap a network"):
        rank([table(a=Estimate(1.0))], [1.0, 2.0])
    with pytest.raises(UsageError, match="one gap a network"):
        rank([], [])
