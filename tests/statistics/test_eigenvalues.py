"""Largest eigenvalues of networks against dense matrices, and refusals instead of numbers that have not converged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cases import BY_NAME
from flatminima import Minimum, measures
from flatminima.errors import Undefined, UsageError
from flatminima.statistics import Products, TopEigenvalues
from truth import Truth


@pytest.mark.parametrize("bad", [{"k": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}], ids=str)
def test_bad_configurations(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        TopEigenvalues(**bad)  # type: ignore[arg-type]


def test_an_unknown_curvature() -> None:
    with pytest.raises(UsageError, match="expected one of hessian, gauss_newton"):
        TopEigenvalues(curvature="fisher")  # type: ignore[arg-type]


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["mlp", "conv2d circular", "attention", "mse", "binary_cross_entropy", "causal_lm"])
def test_of_networks_against_dense_matrices(name: str, curvature: str) -> None:
    case = BY_NAME[name]
    truth = Truth(case)
    dense = np.asarray(truth.hessian() if curvature == "hessian" else truth.gauss_newton())
    model, data = case.make()
    minimum = Minimum(model, data, case.loss, batch_size=3)
    expected = np.linalg.eigvalsh(dense)[::-1][:4]
    found = measures.hessian_top_eigenvalue(minimum, samples=None, k=4, tolerance=1e-8, curvature=curvature)
    np.testing.assert_allclose(found.details["eigenvalues"], expected, rtol=0, atol=1e-8 * expected[0])
    assert float(found) == found.details["eigenvalues"][0]
    assert max(found.details["residuals"]) <= 1e-8 * float(found)
    assert found.stderr is None and found.details["error_of"] == "exact" and found.details["unconverged"] == 0


def _model() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model, torch.randn(17, 3, generator=g, dtype=torch.float64), torch.randint(0, 3, (17,), generator=g)


def test_of_some_samples() -> None:
    """And the forms are those of the eigenvector over parts of the samples: their mean is the eigenvalue."""
    model, x, y = _model()
    chosen = Minimum(model, (x, y)).samples.order(0)[:11]
    part = Minimum(model, (x[chosen], y[chosen]))[TopEigenvalues(2, None, 1e-8)]
    found = Minimum(model, (x, y), batch_size=5)[TopEigenvalues(2, 11, 1e-8)]
    torch.testing.assert_close(found.values, part.values, rtol=1e-8, atol=0)
    assert found.sizes.sum() == 11 and found.population == 17
    assert float(found.forms @ found.sizes.double()) / 11 == pytest.approx(float(found.values[0]), rel=1e-8)


def test_what_has_not_converged_is_no_number() -> None:
    """Of five, none, some or all converge with the budget; whatever is returned is right."""
    model, x, y = _model()
    with pytest.raises(Undefined, match="has not converged after 3 products: its residual is still"):
        Minimum(model, (x, y))[TopEigenvalues(tolerance=1e-10, products=2)]
    exact = Minimum(model, (x, y))[TopEigenvalues(5, tolerance=1e-10)].values
    counts = []
    for products in range(1, 8):
        try:
            found = Minimum(model, (x, y))[TopEigenvalues(5, tolerance=1e-4, products=products)]
        except Undefined:
            continue
        counts.append(len(found.values))
        assert len(found.values) + len(found.missing) == 5
        torch.testing.assert_close(found.values, exact[: counts[-1]], rtol=1e-6, atol=0)
    assert 0 < min(counts) < max(counts) == 5


def test_a_wrong_product_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals are computed from the vectors, not taken from the recurrence."""
    right, calls = Products.__call__, [0]

    def drifting(self: Products, vector: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return right(self, vector) * (1 + 0.01 * calls[0])

    monkeypatch.setattr(Products, "__call__", drifting)
    model, x, y = _model()
    with pytest.raises(Undefined, match="has not converged"):
        Minimum(model, (x, y))[TopEigenvalues(1, None, 1e-6)]


def test_more_eigenvalues_than_parameters() -> None:
    minimum = Minimum(nn.Linear(1, 2, bias=False), (torch.ones(2, 1), torch.arange(2)))
    with pytest.raises(Undefined, match="2 parameters have no 3 eigenvalues"):
        minimum[TopEigenvalues(3)]


class _Quadratic(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w.expand(len(x), -1) + 0 * x[:, :1]


def _quadratic(diagonal: list[float], dtype: torch.dtype = torch.float32) -> Minimum:
    """Of this Hessian."""
    d, data = torch.tensor(diagonal, dtype=dtype), (torch.randn(4, 1, dtype=dtype), torch.zeros(4))
    return Minimum(_Quadratic(len(d)).to(dtype), data, lambda out, _: 0.5 * (out**2 * d.to(out)).sum(1))


def test_a_feature_in_milliseconds() -> None:
    """A Hessian of 6e24 in float32: 1.5e24 came back, called exact."""
    x = torch.stack([1.7e12 + torch.rand(50, generator=torch.Generator().manual_seed(0)) * 1e9, torch.rand(50)], 1)
    minimum = Minimum(nn.Linear(2, 1), (x, torch.rand(50, 1)), "mse")
    inputs = torch.cat([x.double(), torch.ones(50, 1, dtype=torch.float64)], 1)
    truth = float(torch.linalg.eigvalsh(2 * inputs.T @ inputs / 50)[-1])
    found = measures.hessian_top_eigenvalue(minimum, samples=None)
    assert float(found) == pytest.approx(truth, rel=1e-5) and found.details["residuals"][0] < 1e-3 * truth
    assert measures.negative_curvature(minimum).value == pytest.approx(0, abs=1e-6)
    assert "drown in the rounding of the largest" in str(measures.effective_dimension(minimum))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_of_losses_of_any_scale(scale: float) -> None:
    found = measures.hessian_top_eigenvalue(_quadratic([3 * scale, scale, -2 * scale]), samples=None, k=2)
    np.testing.assert_allclose(found.details["eigenvalues"], [3 * scale, scale], rtol=1e-4)


def test_a_saddle_whose_curvature_is_lost_in_rounding() -> None:
    """1e-3 and 1e-4 beside -1e4: float32 gave a sixth, called exact; where nothing is above 0, nothing is told."""
    with pytest.raises(Undefined, match=r"lost in the rounding of one of .* below 0: .*; measure in float64"):
        _quadratic([-1e4, 1e-3, 1e-4])[TopEigenvalues()]
    found = measures.hessian_top_eigenvalue(_quadratic([-1e4, 1e-3, 1e-4], torch.float64), samples=None)
    assert float(found) == pytest.approx(1e-3, rel=1e-6)
    assert measures.hessian_top_eigenvalue(_quadratic([0.0, 0.0]), samples=None).value == 0
