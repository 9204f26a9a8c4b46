"""Noise: moments, bounds, the same draw from the same (seed, index) everywhere, and weights put back bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flatminima.core.parameters import Parameters
from flatminima.core.perturbation import (
    Explicit,
    Gaussian,
    Perturbation,
    Relative,
    TruncatedGaussian,
    Uniform,
    describe,
    generator,
    mix,
    resolved,
)
from flatminima.errors import UsageError
from mutation import Untouched

SIZE = 40_000
ONE = Relative(1.0, slope=0.0, offset=1.0)
KINDS = [Uniform(ONE), Gaussian(ONE), TruncatedGaussian(ONE), TruncatedGaussian(ONE, bound=0.5)]
each = pytest.mark.parametrize("around", KINDS, ids=repr)


def score(samples: Tensor, expected: float) -> float:
    return abs(float(samples.mean()) - expected) / float(samples.std() / math.sqrt(len(samples)))


@each
def test_moments(around: Perturbation) -> None:
    """Mean 0 and the stated second moment within 4 standard errors; three per cent more noise is seen."""
    u = around.draw(torch.zeros(SIZE).double(), 0, 0)
    assert score(u, 0.0) < 4
    assert score(u.square(), around.second_moment) < 4
    assert score((1.03 * u).square(), around.second_moment) > 4


@pytest.mark.parametrize(("bound", "moment"), [(0.5, 0.0805), (1.0, 0.29112), (2.0, 0.77374), (6.0, 1.0)])
def test_second_moment_of_the_truncated_gaussian(bound: float, moment: float) -> None:
    """By the midpoint rule on a grid, and against tabulated variances."""
    x = (torch.arange(200_000).double() + 0.5) / 200_000 * bound
    density = (-x * x / 2).exp()
    expected = float((x * x * density).sum() / density.sum())
    found = TruncatedGaussian(ONE, bound=bound).second_moment
    assert found == pytest.approx(expected, rel=1e-8)
    assert found == pytest.approx(moment, abs=1e-4)


@pytest.mark.parametrize(("around", "limit"), [(KINDS[0], 1.0), (KINDS[2], 2.0), (KINDS[3], 0.5)], ids=repr)
def test_bounded_noise_fills_its_range_and_stays_inside(around: Perturbation, limit: float) -> None:
    u = around.draw(torch.zeros(SIZE), 1, 2)
    assert float(u.abs().max()) <= limit
    assert float(u.max()) > 0.99 * limit and float(u.min()) < -0.99 * limit


def test_truncation_far_out_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """erf(30 / sqrt 2) rounds to 1, whose inverse is infinite; a uniform number may be 0."""
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.zeros(size, dtype=torch.float64))
    assert TruncatedGaussian(ONE, bound=30.0).draw(torch.zeros(2), 0, 0).tolist() == [-30.0, -30.0]


@each
def test_a_draw_is_its_seed_and_index(around: Perturbation) -> None:
    w = torch.zeros(50)
    state = torch.get_rng_state()
    torch.manual_seed(123)
    first = around.draw(w, 3, 4)
    torch.manual_seed(321)
    assert torch.equal(around.draw(w, 3, 4), first)
    torch.set_rng_state(state)
    for seed, index in [(3, 5), (4, 3), (4, 4), (0, 0), (-1, 4)]:
        other = around.draw(w, seed, index)
        assert float((other - first).abs().min()) > 0
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.6


def test_global_random_state_is_not_used() -> None:
    state = torch.get_rng_state()
    for around in KINDS:
        around.draw(torch.zeros(5), 0, 0)
    generator(1, 2)
    assert torch.equal(torch.get_rng_state(), state)


@each
def test_draws_agree_across_dtypes(around: Perturbation) -> None:
    w = torch.linspace(-1, 1, 30).double()
    for dtype, rounding in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        low = around.draw(w.to(dtype), 0, 1)
        assert low.dtype == dtype
        torch.testing.assert_close(low.double(), around.draw(w, 0, 1), rtol=rounding, atol=rounding)


def test_seeds_do_not_collide() -> None:
    pairs = [(seed, index) for seed in range(-50, 150) for index in range(200)]
    assert len({mix(*pair) for pair in pairs}) == len(pairs)
    assert all(0 <= mix(*pair) < 2**63 for pair in pairs)


# -- scales ----------------------------------------------------------------------------------------------------------


def test_relative_scale() -> None:
    w = torch.tensor([-2.0, 0.0, 0.5])
    torch.testing.assert_close(Relative(0.1, slope=10.0, offset=1.0).of(w), torch.tensor([2.1, 0.1, 0.6]))
    u = Uniform(Relative(1.0)).draw(w, 0, 0)
    torch.testing.assert_close(u, Uniform(ONE).draw(w, 0, 0) * (w.abs() + 1))


def test_scales_are_keys() -> None:
    """By recipe: equal values are one key. By tensor: itself only."""
    sigma = torch.ones(3)
    assert Gaussian(Relative(0.1)) == Gaussian(Relative(0.1)) and len({Gaussian(ONE), Gaussian(ONE)}) == 1
    assert Gaussian(ONE) != Uniform(ONE) and Gaussian(ONE) != Gaussian(Relative(0.1))
    one, two = Explicit(sigma), Explicit(sigma)
    assert one != two and hash(Gaussian(one)) == hash(Gaussian(one)) and Gaussian(one) == Gaussian(one)


@pytest.mark.parametrize("field", ["alpha", "slope", "offset"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_scales_refuse(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"got {field}={value!r}; a scale is finite"):
        Relative(**{"alpha": 1.0, field: value})


def test_explicit_scales_refuse() -> None:
    with pytest.raises(UsageError, match="NaN, Inf or negative"):
        Explicit(torch.tensor([1.0, -1.0]))
    with pytest.raises(UsageError, match=r"shape \(2,\) for 3 trainable parameters"):
        Gaussian(Explicit(torch.ones(2))).draw(torch.zeros(3), 0, 0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_truncation_refuses(bound: float) -> None:
    with pytest.raises(UsageError, match="positive number of sigmas"):
        TruncatedGaussian(ONE, bound=bound)


def test_describe() -> None:
    assert describe(Uniform(Relative(0.5, 2.0, 3.0))) == {
        "distribution": "Uniform",
        "scale": {"alpha": 0.5, "slope": 2.0, "offset": 3.0},
    }
    assert describe(Gaussian(Explicit(torch.ones(4))))["scale"] == {"tensor": 4}


# -- applied ---------------------------------------------------------------------------------------------------------


def _net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    net[0].weight.requires_grad_(False)
    net[1].weight.data[0, 0] = -0.0
    return net


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_applied_and_put_back(around: Perturbation, dtype: torch.dtype, sign: float, untouched: Untouched) -> None:
    """Adding and subtracting instead of copying back would leave rounding; frozen weights stay where they are."""
    net = _net(dtype)
    parameters = Parameters.of(net)
    before, still = parameters.flat(), net[0].weight.clone()
    with untouched(net):
        with around.applied(parameters, 1, 2, sign):
            torch.testing.assert_close(parameters.flat(), before + sign * around.draw(before, 1, 2))
            assert torch.equal(net[0].weight, still)
        with pytest.raises(KeyError), around.applied(parameters, 1, 2, sign):
            raise KeyError


def test_parameters_of_mixed_dtypes_come_back(untouched: Untouched) -> None:
    net = _net(torch.float64)
    net[1].to(torch.bfloat16)
    with untouched(net), Uniform(ONE).applied(Parameters.of(net), 0, 0):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_rounding_swallows_is_not_resolved(dtype):
    """To one per cent of its length: below, a loss at w + u would be that of another place, or of w."""
    weights, unit = torch.ones(50, dtype=dtype), torch.linspace(-1.0, 1.0, 50)
    spacing = torch.finfo(dtype).eps
    assert resolved(weights, 1000 * spacing * unit)
    assert not resolved(weights, 5 * spacing * unit) and not resolved(weights, 0.1 * spacing * unit)
    assert resolved(weights.double(), 0.1 * spacing * unit)
