"""Worst-case sharpness from part of the data: no follower of its sampling noise, with an error bar that covers.

A network at a minimum of its loss, so that the mean gradient of a few samples is mostly sampling noise.
"""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatminima import Minimum
from flatminima.core.perturbation import Relative
from flatminima.core.statistic import Fixed
from flatminima.measures import adaptive_sharpness, sharpness
from flatminima.statistics import MeanGradient, Outputs, Worst, WorstCaseLoss

N, REPETITIONS = 1000, 200


@cache
def minimum():
    """Classes that overlap, 60 steps of L-BFGS to a gradient of nearly 0."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (N,), generator=g)
    x = (torch.randn(3, 4, generator=g)[y] + torch.randn(N, 4, generator=g)).double()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=60)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    net.zero_grad()
    m = Minimum(net.eval(), (x, y), batch_size=N)
    m[MeanGradient(), Outputs()]  # else each repetition makes them anew
    return m


KINDS = {
    "sharpness": lambda **options: sharpness(minimum(), alpha=0.01, steps=4, **options),
    "adaptive": lambda **options: adaptive_sharpness(minimum(), rho=0.1, steps=4, **options),
    "adaptive box": lambda **options: adaptive_sharpness(minimum(), norm="inf", rho=0.02, steps=4, **options),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_the_mean_over_draws_is_near_the_value_of_all_the_data(kind):
    """Following the samples' own gradient gives 2 to 10 times as much; its bias shrinks with their number."""
    exact = float(KINDS[kind](samples=None))
    near = {s: sum(float(KINDS[kind](samples=s, seed=k)) for k in range(12)) / 12 / exact for s in (50, 400)}
    assert 0.8 < near[50] < 1.35 and 0.95 < near[400] < 1.05, near


@pytest.mark.parametrize("kind", ["adaptive", "adaptive box"])
def test_in_sample_and_held_out_have_the_value_between_them(kind):
    """Of the box of `sharpness` the halves find a better corner than all the data does: no search finds the maximum."""
    found = [KINDS[kind](samples=50, seed=k) for k in range(12)]
    exact = float(KINDS[kind](samples=None))
    above, below = (sum(e.details[key] for e in found) / 12 for key in ("in_sample", "held_out"))
    assert below < exact < above
    for e in found:
        assert e.value == pytest.approx((e.details["in_sample"] + e.details["held_out"]) / 2, rel=1e-9) or e.value == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind, samples", [("sharpness", 60), ("sharpness", 300), ("adaptive", 60), ("adaptive", 300)])
def test_intervals_cover_the_value_of_all_the_data(kind, samples):
    exact = float(KINDS[kind](samples=None))
    found = [KINDS[kind](samples=samples, seed=k) for k in range(REPETITIONS)]
    share = sum(low <= exact <= high for low, high in (e.interval() for e in found)) / REPETITIONS
    assert 0.90 <= share <= 0.99, share
    assert all(e.details["error_of"] == "data" and e.details["samples"] == samples for e in found)


@kinds
def test_all_the_data_is_not_sampled(kind):
    """The same for every seed; its error is the rounding of the loss."""
    one, two = (KINDS[kind](samples=s, seed=k) for s, k in ((None, 0), (N, 5)))
    assert one.value == pytest.approx(two.value, rel=1e-9)
    assert one.details["error_of"] == "rounding" and one.stderr < 1e-15


def test_a_box_below_float32s_spacing_is_searched_in_float64():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    found = sharpness(Minimum(net, (x, y)), alpha=1e-8)
    exact = sharpness(Minimum(copy.deepcopy(net).double(), (x.double(), y)), alpha=1e-8)
    assert found.value == pytest.approx(exact.value, rel=1e-6) and found.value > 0
    eps = torch.finfo(torch.float64).eps
    assert found.stderr == pytest.approx(eps * found.details["loss"] / (1 + found.details["loss"]), rel=1e-6)


@pytest.mark.parametrize("method", ["vertex", "ascent"])
@pytest.mark.parametrize("samples", [1, 2, 3, 7, 20])
def test_a_handful_of_samples(method, samples):
    """The paper's ascent and odd halves."""
    found = sharpness(minimum(), method=method, steps=3, samples=samples)
    assert found.value >= 0 and found.stderr > 0 and found.details["samples"] == max(samples, 2)


def test_the_formula_of_the_error_bar():
    """Points of the two halves at 3 and 1 on the whole, parts at 2 +- 1: by hand."""
    rises = torch.tensor([[[4.0, 2.0], [4.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]], dtype=torch.float64)
    worst = Worst(1.0, 3.0, 8, rises, torch.full((2, 2), 5), 40, resolution=0.25)
    found = sharpness(Fixed({WorstCaseLoss(Relative(5e-4), "vertex", 10, 20, 0): worst}), samples=20)
    between = (4 / 3) / 4 * (1 - 20 / 40)  # variance of 3, 1, 3, 1 over 4 groups, half of the data left out
    assert found.value == pytest.approx(2.0 / 2)
    assert found.stderr == pytest.approx((between + 1.0**2 + 0.25**2) ** 0.5 / 2)
    assert (found.details["in_sample"], found.details["held_out"]) == (2.0, 2.0)
