"""Adaptive sharpness on landscapes with a closed form, its invariance, and its one-step search against ASAM's."""

import math

import numpy as np
import pytest
import torch
from measure_oracle import blobs, hessian, landscape, mlp

from flatminima import Minimum
from flatminima.errors import UsageError
from flatminima.measures import adaptive_sharpness


def _bowl(w, curvature):
    h = torch.tensor(curvature, dtype=torch.float64)
    return landscape(lambda v: 0.5 * (h * v.square()).sum(1), w)


def test_the_worst_case_of_a_bowl_in_the_box():
    """sum h_i (w_i^2/2) ((1 + rho)^2 - 1): outwards in every coordinate."""
    w, h, rho = [1.0, -2.0, 0.5], [3.0, 1.0, 2.0], 0.1
    rise = sum(a * v * v / 2 * ((1 + rho) ** 2 - 1) for a, v in zip(h, w, strict=True))
    found = adaptive_sharpness(_bowl(w, h), norm="inf", rho=rho)
    assert found.value == pytest.approx(rise, rel=1e-9)
    assert found.details["highest"] == pytest.approx(found.details["loss"] + rise, rel=1e-9)


def test_the_worst_case_of_a_bowl_in_the_ball():
    """Against the secular equation of the largest quadratic on a sphere; catches T for T^2, and a squared radius."""
    w, h, rho = np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0, 2.0]), 0.3
    a, b = h * w**2, h * w**2  # of nu = |w| z: 1/2 z^T diag(h w^2) z + (h w |w|) z, |z| = rho
    b = b * np.sign(w)
    low, high = a.max() + 1e-9, a.max() + np.linalg.norm(b) / rho + 1
    for _ in range(200):  # lambda with |b / (lambda - a)| = rho
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(b / (middle - a)) > rho else (low, middle)
    z = b / (low - a)
    expected = 0.5 * (a * z**2).sum() + (b * z).sum()
    found = adaptive_sharpness(_bowl(w.tolist(), h.tolist()), rho=rho, steps=100)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert adaptive_sharpness(_bowl(w.tolist(), h.tolist()), rho=rho, steps=1).value < found.value


def test_eta_moves_weights_that_are_zero():
    minimum = landscape(lambda v: v.sum(1).exp(), [0.0, 0.0])
    assert adaptive_sharpness(minimum, norm="inf", rho=0.5).value == pytest.approx(0.0)
    found = adaptive_sharpness(minimum, norm="inf", rho=0.5, eta=0.2)
    assert found.value == pytest.approx(math.exp(2 * 0.5 * 0.2) - 1, rel=1e-9)


def test_the_average_is_half_the_weighted_trace():
    """1/2 sum H_ii rho^2 w_i^2 for little noise."""
    model = mlp(3, 4, 3)
    x, y = blobs(20, 3, 3)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    curvature = hessian(model, x, y).detach().diagonal()
    found = adaptive_sharpness(Minimum(model, (x, y)), case="average", rho=0.01, draws=1000, samples=None)
    expected = 0.5 * 1e-4 * float((curvature * w.square()).sum())
    assert abs(found.value - expected) < 4 * found.stderr
    assert found.stderr > 0


def test_intervals_of_the_average_cover_the_exact_rise():
    """Of a bowl: 1/2 sum h_i rho^2 w_i^2, exactly."""
    minimum = _bowl([1.0, -2.0, 0.5], [3.0, 1.0, 2.0])
    exact = 0.5 * 0.2**2 * (3 * 1 + 1 * 4 + 2 * 0.25)
    found = [adaptive_sharpness(minimum, case="average", rho=0.2, draws=30, seed=s).interval() for s in range(200)]
    assert 0.90 <= sum(low <= exact <= high for low, high in found) / 200 <= 0.99


@pytest.mark.parametrize("options", [{}, {"norm": "inf"}, {"case": "average"}])
def test_rescaling_units_changes_nothing(options):
    x, y = blobs(20, 3, 3)
    values = []
    for a in (1.0, 0.1, 30.0):
        model = mlp(3, 4, 3)
        factors = torch.tensor([a, 1.0, 1 / a, a], dtype=torch.float64)
        with torch.no_grad():
            model[0].weight *= factors.unsqueeze(1)
            model[0].bias *= factors
            model[2].weight /= factors
        values.append(adaptive_sharpness(Minimum(model, (x, y)), **options).value)
    assert values == pytest.approx([values[0]] * 3, rel=1e-8)


@pytest.mark.parametrize(
    "options",
    [
        {"case": "mean"},
        {"norm": "1"},
        {"rho": 0.0},
        {"rho": math.nan},
        {"eta": -1.0},
        {"case": "average", "norm": "inf"},
    ],
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(UsageError):
        adaptive_sharpness(Minimum(mlp(3, 3), blobs(9, 3, 3)), **options)


def test_a_loss_that_overflows_is_undefined():
    steep = landscape(lambda v: (500 * v).exp().sum(1), [1.0])
    assert "overflow" in adaptive_sharpness(steep, rho=1.0).undefined
    assert "overflow" in adaptive_sharpness(steep, rho=1.0, case="average").undefined


def test_rtol_raises_the_draws_of_the_average():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    minimum = landscape(lambda v: 0.5 * (v - w).square().sum(1), w.tolist())
    found = adaptive_sharpness(minimum, case="average", rho=0.2, draws=20, rtol=0.1)
    low, high = found.interval()
    assert found.details["rtol_reached"]
    assert (high - low) / 2 <= 0.1 * found.value
