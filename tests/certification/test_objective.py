"""Training objectives: their values are those of the bounds, their slopes those of finite differences."""

from __future__ import annotations

import pytest
import torch

from flatminima import bounds
from flatminima.certification.recipe import OBJECTIVES, objective
from flatminima.errors import UnknownName

POINTS = [(0.02, 500.0), (0.3, 5.0), (0.001, 0.5), (0.9, 40_000.0)]
N, DELTA = 30_000, 0.025
TRUTH = {
    "classic": bounds.mcallester,
    "quadratic": bounds.quadratic,
    "kl": bounds.pac_bayes_kl,
    "lambda": lambda r, k, n, d: bounds.lambda_bound(r, k, n, d, bounds.optimal_lambda(r, k, n, d)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("risk", "kl"), POINTS)
def test_value_and_slopes(name: str, risk: float, kl: float) -> None:
    r = torch.tensor(risk, dtype=torch.float64, requires_grad=True)
    k = torch.tensor(kl, dtype=torch.float64, requires_grad=True)
    value = objective(name)(r, k, N, DELTA)
    bound = TRUTH[name]
    assert value.item() == pytest.approx(bound(risk, kl, N, DELTA), rel=1e-9)
    by_risk, by_kl = torch.autograd.grad(value, (r, k))
    h = 1e-4
    slope = (bound(risk * (1 + h), kl, N, DELTA) - bound(risk * (1 - h), kl, N, DELTA)) / (2 * risk * h)
    assert by_risk.item() == pytest.approx(slope, rel=1e-3)
    slope = (bound(risk, kl * (1 + h), N, DELTA) - bound(risk, kl * (1 - h), N, DELTA)) / (2 * kl * h)
    assert by_kl.item() == pytest.approx(slope, rel=1e-3)


def test_kl_is_the_tightest() -> None:
    for risk, kl in POINTS:
        values = {
            n: OBJECTIVES[n](torch.tensor(risk).double(), torch.tensor(kl).double(), N, DELTA).item()
            for n in OBJECTIVES
        }
        assert min(values, key=values.__getitem__) == "kl"
        assert values["lambda"] == pytest.approx(values["quadratic"], rel=1e-9)


def test_a_surrogate_above_one_has_a_finite_slope() -> None:
    risk = torch.tensor(1.4, requires_grad=True)
    value = objective("kl")(risk, torch.tensor(3.0), N, DELTA)
    value.backward()
    assert value.item() <= 1.0
    assert torch.isfinite(risk.grad)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'quadratic'"):
        objective("quadratics")
