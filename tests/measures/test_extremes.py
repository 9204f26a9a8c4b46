"""The largest of all the data, predicted from part of it: coverage on heavy tails, and of the score that needs it."""

import itertools
import math

import pytest
import torch
from torch import nn

from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.measures import perturbation_score
from flatminima.measures._extremes import UPPER, predicted_maximum
from flatminima.statistics import Conditions, SampleConditions, SampleCount
from flatminima.statistics.conditions import sample_conditions

REPETITIONS = 200


def test_all_the_data_is_its_own_maximum():
    logs = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert predicted_maximum(logs, 50) == (float(logs.max()), float(logs.max()))


def test_one_sample_says_nothing_and_equal_ones_say_all():
    assert predicted_maximum(torch.tensor([2.0]), 10) == (2.0, math.inf)
    assert predicted_maximum(torch.full((5,), 2.0), 10) == (2.0, 2.0)


@pytest.mark.parametrize("seen, population", [(10, 1000), (50, 500), (100, 200)])
def test_quantiles_of_the_prediction_hold(seen, population):
    """Of Pareto constants: the maximum of all is below the median in half of the draws, below the upper in 95%."""
    g = torch.Generator().manual_seed(seen)
    below, far = 0, 0
    for _ in range(400):
        logs = 0.7 * torch.empty(population, dtype=torch.float64).exponential_(generator=g)
        median, upper = predicted_maximum(logs[:seen], population)
        below += float(logs.max()) <= median
        far += float(logs.max()) <= upper
    if seen < population / 2:  # else the maximum was seen in half of the draws
        assert 0.42 <= below / 400 <= 0.58
    assert abs(far / 400 - UPPER) < 0.04


def network():
    g = torch.Generator().manual_seed(0)
    sizes = itertools.pairwise((8, 16, 16, 5))
    return [torch.randn(b, a, generator=g, dtype=torch.float64) / math.sqrt(a) for a, b in sizes]


@pytest.mark.slow
def test_intervals_of_the_score_cover_that_of_all_the_data():
    """200 data sets of 60, half of each looked at; gamma is given, which saves its search."""
    weights, g = network(), torch.Generator().manual_seed(1)
    covered = below = 0
    for _ in range(REPETITIONS):
        x = torch.randn(60, 8, generator=g, dtype=torch.float64)
        whole = sample_conditions(weights, x / x.norm(dim=1, keepdim=True))
        fields = (whole.inverse_mu, whole.c2, whole.c3, whole.active, whole.outputs)
        part = SampleConditions(*(t[:30] for t in fields), whole.frobenius, whole.widths)
        given = Fixed({Conditions(None, 0): whole, Conditions(30, 0): part, SampleCount(): 60})
        exact = perturbation_score(given, samples=None, gamma=0.1)
        found = perturbation_score(given, samples=30, gamma=0.1)
        low, high = found.interval()
        covered += low <= exact.value <= high
        assert exact.stderr is None and exact.details["error_of"] == "exact"
        assert found.stderr > 0 and found.details["error_of"] == "data"
        below += found.details["seen"] < exact.details["inverse_mu"]
    assert 0.90 <= covered / REPETITIONS <= 0.99, covered
    assert 0.35 < below / REPETITIONS < 0.65  # the largest of the samples is too low in half of the draws


def test_the_default_looks_at_a_hundred():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)).double()
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(300, 6, generator=g, dtype=torch.float64), torch.arange(300) % 4
    found, exact = (perturbation_score(Minimum(net, (x, y)), **o) for o in ({}, {"samples": None}))
    assert found.details["samples"] == 100 and found.stderr > 0
    assert exact.details["samples"] == 300 and exact.stderr is None
