"""Stochastic Lanczos quadrature against dense eigenvalues: moments, densities, and what each group of samples adds."""

from __future__ import annotations

import math

import pytest
import torch

from cases import BY_NAME
from flatminima import Minimum, measures
from flatminima.errors import UsageError
from flatminima.statistics import SpectralDensity
from flatminima.statistics.hessian import group_edges, rademacher
from flatminima.statistics.spectrum import GROUPS
from truth import Truth

NAMES = ["mlp", "conv2d circular", "attention", "mse", "causal_lm"]


def minimum_of(name: str, batch_size: int = 3) -> Minimum:
    case = BY_NAME[name]
    model, data = case.make()
    return Minimum(model, data, case.loss, batch_size=batch_size)


def dense(name: str, curvature: str) -> torch.Tensor:
    truth = Truth(BY_NAME[name])
    return truth.hessian() if curvature == "hessian" else truth.gauss_newton()


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", NAMES)
def test_moments_are_exact_for_each_probe(name: str, curvature: str) -> None:
    """v^T C^j v for j < 2 m; over v their means are the traces of C, of its square, ..."""
    a = dense(name, curvature)
    found = minimum_of(name)[SpectralDensity(3, 4, None, 6, curvature)]
    v = torch.stack([rademacher(a[0], 6, k) for k in range(3)])
    image = v
    for degree in range(1, 8):
        image = image @ a
        expected = (v * image).sum(1)
        scale = float(a.abs().sum(0).max()) ** degree
        assert float((found.trace(lambda x, j=degree: x**j) - expected).abs().max()) <= 1e-9 * scale * len(a)


def test_traces_in_the_mean() -> None:
    """Trace and trace of the square over 80 probes, within four standard errors; W times too small would show."""
    a = dense("mlp", "hessian")
    found = minimum_of("mlp", 100)[SpectralDensity(80, 3, None)]
    for f, expected in ((lambda x: x, a.trace()), (torch.square, a.square().sum())):
        traces = found.trace(f)
        error = 4 * float(traces.std()) / 80**0.5
        assert abs(float(traces.mean() - expected)) < error < abs(float(expected))


def test_any_function_and_what_the_groups_add() -> None:
    """With a step for every parameter, v^T f(C) v and v^T f'(C) C_g v from the dense matrices."""
    case, minimum = BY_NAME["mse"], minimum_of("mse", 2)
    a = dense("mse", "gauss_newton")
    w = len(a)
    found = minimum[SpectralDensity(2, w, None, 1, "gauss_newton")]
    values, vectors = torch.linalg.eigh(a)
    v = torch.stack([rademacher(a[0], 1, k) for k in range(2)])

    def f(x: torch.Tensor) -> torch.Tensor:
        return x.clamp_min(0) / (x.clamp_min(0) + 0.1)

    def slope(x: torch.Tensor) -> torch.Tensor:
        return 0.1 / (x.clamp_min(0) + 0.1).square()

    exact = torch.einsum("ki,im,m,jm,kj->k", v, vectors, f(values), vectors, v)
    torch.testing.assert_close(found.trace(f), exact, rtol=1e-8, atol=1e-10)
    order, edges = minimum.samples.order(1), group_edges(7, GROUPS)
    assert found.sizes.tolist() == [1] * 7
    for g in range(7):
        part = Truth(case)
        chosen = order[edges[g] : edges[g + 1]]
        part.inputs, part.targets = part.inputs[chosen], part.targets[chosen]
        response = torch.einsum(
            "ki,im,m,jm,jl,kl->k", v, vectors, slope(values), vectors, part.gauss_newton(), v
        ).mean()
        assert float(found.responses(slope)[g]) == pytest.approx(float(response), rel=1e-7, abs=1e-10)


def test_the_density_is_that_of_the_eigenvalues() -> None:
    """Against Gaussians on numpy's eigenvalues, weighted by the probes' components; its integral is 1."""
    a = dense("mlp", "hessian")
    found = minimum_of("mlp")[SpectralDensity(3, len(a), None, 2)]
    values, vectors = torch.linalg.eigh(a)
    grid = torch.linspace(float(values[0]) - 0.5, float(values[-1]) + 0.5, 4001, dtype=torch.float64)
    v = torch.stack([rademacher(a[0], 2, k) for k in range(3)])
    weights = (v @ vectors).square() / len(a)
    bells = torch.exp(-0.5 * ((grid - values.unsqueeze(1)) / 0.05) ** 2) / (0.05 * math.sqrt(2 * math.pi))
    density, stderr = found.density(grid, 0.05)
    torch.testing.assert_close(density, (weights @ bells).mean(0), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(stderr, (weights @ bells).std(0) / 3**0.5, rtol=1e-6, atol=1e-9)
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-9)


# -- the measures ----------------------------------------------------------------------------------------------------


def test_effective_dimension_of_a_linear_network() -> None:
    """C = (2/n) X^T X: n lambda / (n lambda + alpha) with X orthogonal, whatever the probe."""
    net = torch.nn.Linear(3, 1, bias=False).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    minimum = Minimum(net, (x, torch.zeros(3, 1, dtype=torch.float64)), "mse")
    found = measures.effective_dimension(minimum, prior_precision=4.0)
    assert found.value == pytest.approx(2 / 6 + 8 / 12 + 18 / 22, rel=1e-12)
    assert found.stderr == pytest.approx(0.0, abs=1e-12)
    assert (found.details["largest"], found.details["smallest"]) == (pytest.approx(6.0), pytest.approx(2 / 3))
    density = found.details["density"]
    assert len(density["grid"]) == len(density["values"]) == len(density["stderr"])


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_effective_dimension_and_negative_share_of_a_network(curvature: str) -> None:
    values = torch.linalg.eigvalsh(dense("attention", curvature)).clamp_min(0)
    minimum = minimum_of("attention", 100)
    found = measures.effective_dimension(minimum, curvature=curvature, probes=10, steps=25, samples=None)
    expected = float((7 * values / (7 * values + 1)).sum())
    assert abs(found.value - expected) < 4 * found.stderr < expected
    if curvature == "hessian":
        values = torch.linalg.eigvalsh(dense("attention", curvature))
        share = float((-values).clamp_min(0).sum() / values.abs().sum())
        negative = measures.negative_curvature(minimum, probes=10, steps=25, samples=None)
        assert abs(negative.value - share) < 4 * negative.stderr < 1.5 * share


def test_one_probe_has_no_error_bar() -> None:
    found = measures.effective_dimension(minimum_of("mlp"), probes=1)
    assert found.stderr is None and found.details["density"]["stderr"] is None


def test_a_flat_loss_has_no_sign() -> None:
    def first(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output[:, 0] * target

    minimum = Minimum(torch.nn.Linear(2, 2), (torch.eye(2), torch.arange(2)), first)
    assert "no eigenvalue has a sign" in (measures.negative_curvature(minimum).undefined or "")
    assert measures.effective_dimension(minimum, curvature="hessian").value == 0.0


@pytest.mark.parametrize("options", [{"probes": 0}, {"steps": 0}], ids=str)
def test_bad_counts(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        SpectralDensity(**options)
    with pytest.raises(UsageError, match="at least 1"):
        measures.effective_dimension(minimum_of("mlp"), **options)


def test_bad_numbers() -> None:
    with pytest.raises(UsageError, match="got prior_precision=0; it must be positive"):
        measures.effective_dimension(minimum_of("mlp"), prior_precision=0)
    with pytest.raises(UsageError, match="got width=0"):
        minimum_of("mlp")[SpectralDensity(1, 2)].density(torch.zeros(1), 0)
