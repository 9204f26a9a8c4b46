"""The sharpness/divergence split and the bi-criteria curve against the bounds they are made of, and closed forms."""

import math

import pytest
import torch
from measure_oracle import Point, blobs, landscape, mlp
from torch import nn

from flatminima import Minimum
from flatminima.bounds import bicriteria_kl, hoeffding, kl_uniform, uniform_perturbation
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import bicriteria, expected_sharpness, pacgen, sharpness_divergence
from flatminima.statistics import FlatWeights, GaussNewtonDiagonal, Redrawn, SampleCount, Weights

W, H, N = [1.0, -2.0, 0.5, 0.1], [400.0, 1.0, 0.25, -3.0], 50


def given():
    weights = FlatWeights(torch.tensor(W, dtype=torch.float64), ("w",), (4,))
    h = torch.tensor(H, dtype=torch.float64)
    diagonal = GaussNewtonDiagonal(300, 0)
    return Fixed({Weights(): weights, diagonal: h, Redrawn(diagonal, 1): h, SampleCount(): N})


@pytest.mark.parametrize("eta", [0.5, 14.0, 1e4, None])
@pytest.mark.parametrize("rho", ["zero", 2.0])
def test_the_two_parts_are_the_bounds_complexity(eta, rho):
    found = sharpness_divergence(given(), eta=eta, rho=rho)
    kappa = [0.1 * abs(w) + 0.1 for w in W]
    tau = [abs(w) + k for w, k in zip(W, kappa, strict=True)]
    temperature = math.sqrt(4 * N) if eta is None else eta
    number = 0.0 if rho == "zero" else rho
    whole = uniform_perturbation(0.0, H, number, kappa, tau, N, 0.05, temperature, tight=True)
    assert found.value == pytest.approx(whole, rel=1e-12)
    d = found.details
    assert d["sharpness"] + d["divergence"] == pytest.approx(found.value, rel=1e-14)
    assert d["divergence"] == pytest.approx(hoeffding(0.0, d["kl"], N, 0.05, temperature, tight=True), rel=1e-12)
    assert found.stderr is None and d["eta"] == temperature


def test_the_sharpness_is_what_the_noise_costs_on_a_quadratic():
    """L = 1/2 sum h_i w_i^2 has no third derivative: the Taylor bound is an equality, which Monte Carlo sees."""
    m = landscape(lambda w: 0.5 * (3.0 * w[:, 0] ** 2 + 8.0 * w[:, 1] ** 2), [1.0, -0.5])
    found = sharpness_divergence(m, eta=20.0, diagonal="exact", samples=None)
    assert found.details["rho"] == pytest.approx(0.0, abs=1e-9)
    from flatminima.bounds import uniform_sigma
    from flatminima.core.perturbation import Explicit, Uniform

    kappa = [0.2, 0.15]
    sigma = torch.tensor(uniform_sigma([3.0, 8.0], 0.0, kappa, 20.0), dtype=torch.float64)
    noise = Uniform(Explicit(sigma))
    monte_carlo = expected_sharpness(m, perturbation=noise, draws=4000, antithetic=True, samples=1)
    low, high = monte_carlo.interval(0.999)
    assert low <= found.details["sharpness"] <= high
    assert found.details["kl"] == pytest.approx(kl_uniform([1.2, 0.65], sigma.numpy(), [0.0, 0.0]), rel=1e-12)


def test_options_outside_their_range():
    for options in ({"eta": 0.0}, {"eta": math.inf}, {"delta": 1.0}, {"gamma": -1.0}):
        with pytest.raises(UsageError):
            sharpness_divergence(given(), **options)
    zero = Fixed(
        {
            Weights(): FlatWeights(torch.tensor([0.0, 1.0], dtype=torch.float64), ("w",), (2,)),
            GaussNewtonDiagonal(300, 0): torch.ones(2, dtype=torch.float64),
            Redrawn(GaussNewtonDiagonal(300, 0), 1): torch.ones(2, dtype=torch.float64),
            SampleCount(): 5,
        }
    )
    assert "infinite" in sharpness_divergence(zero, epsilon=0.0, rho="zero").undefined


# -- rho, coordinate by coordinate -----------------------------------------------------------------------------------


def test_rho_by_coordinates_is_the_reference_of_the_cubic():
    """f = sum a_i w_i^2 / 2 + c / 6 sum w_i^3: dH_ii / du_i = c for every step."""
    m = landscape(lambda w: 2.0 * w[:, 0] ** 2 + 0.5 * w[:, 1] ** 2 + 0.1 * (w**3).sum(1), [1.0, -2.0])
    found = pacgen(m, rho="coordinate", diagonal="exact", draws=2)
    assert found.details["rho"] == pytest.approx(0.6, rel=1e-4)


def test_rho_by_coordinates_stays_below_the_true_one_where_the_papers_explodes():
    """f = w1^2 w2 (erratum W-m): H_11 = 2 w2 changes with the other coordinate, so the paper's ratio is unbounded."""
    m = landscape(lambda w: w[:, 0] ** 2 * w[:, 1], [0.5, 0.5])
    options = {"diagonal": "exact", "gamma": 0.1, "epsilon": 0.5, "draws": 200}
    true = 4 / math.sqrt(3)
    assert pacgen(m, rho="paper", **options).details["rho"] > true
    assert pacgen(m, rho="norm", **options).details["rho"] <= true + 1e-9
    assert pacgen(m, rho="coordinate", **{**options, "draws": 2}).details["rho"] <= true + 1e-9


def test_rho_by_coordinates_is_for_small_networks():
    x, y = blobs(5, 40, 3)
    assert "limit 1000" in pacgen(Minimum(mlp(40, 30, 3), (x, y)), rho="coordinate").undefined


# -- bi-criteria -----------------------------------------------------------------------------------------------------


def test_the_curve_is_expected_sharpness_and_divergence_at_each_scale():
    x, y = blobs(40, 4, 3)
    m = Minimum(mlp(4, 6, 3), (x, y))
    alphas = (1e-3, 1e-2, 5e-2)
    found = bicriteria(m, alphas=alphas, draws=7, samples=16)
    w = torch.cat([p.detach().reshape(-1) for p in m.model.parameters()]).numpy()
    costs = []
    for alpha, point in zip(alphas, found.details["curve"], strict=True):
        direct = expected_sharpness(m, alpha=alpha, draws=7, samples=16)
        assert point["sharpness"] == direct.value and point["stderr"] == direct.stderr
        assert point["kl"] == pytest.approx(float((w**2 / (2 * (alpha * (10 * abs(w) + 1)) ** 2)).sum()), rel=1e-12)
        assert point["kl"] == pytest.approx(float(bicriteria_kl(w, alpha)), rel=1e-12)
        costs.append(max(direct.value, 0) + 4 * math.sqrt((point["kl"] + math.log(2 * 40 / 0.05)) / 40))
    assert found.value == pytest.approx(min(costs), rel=1e-12)
    assert found.details["alpha"] == alphas[costs.index(min(costs))]


def test_points_that_overflow_are_left_out():
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (x * self.w).exp().exp()

    x = torch.full((6, 2), 1.0)
    m = Minimum(Exploding(), (x, torch.zeros(6, 2)), "mse")
    found = bicriteria(m, alphas=(1e-3, 50.0), draws=5, samples=6)
    assert [p["alpha"] for p in found.details["curve"]] == [1e-3]
    assert "overflows" in bicriteria(m, alphas=(50.0,), draws=5, samples=6).undefined


@pytest.mark.parametrize("options", [{"alphas": ()}, {"alphas": (0.0,)}, {"delta": 0.0}, {"draws": 0}])
def test_bicriteria_refuses(options):
    with pytest.raises(UsageError):
        bicriteria(Minimum(Point([1.0]), (torch.zeros(1, 1), torch.zeros(1, 1)), "mse"), **options)
