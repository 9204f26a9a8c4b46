"""Curvature against BackPACK, curvlinops and PyHessian, each where it is installed (requirements-peers.txt)."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.statistics import (
    ExactTraces,
    GaussNewtonDiagonal,
    HessianDiagonal,
    HessianProbes,
    Products,
    SpectralDensity,
    TopEigenvalues,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own


def peer(name: str) -> Any:
    """The module, or a skipped test: they come without their dependencies, so that any import error counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed ({error}): pip install --no-deps -r requirements-peers.txt")


def network(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), activation(), nn.Flatten(), nn.Linear(48, 5), activation(), nn.Linear(5, 3)
    ).double()


def data(loss: str = "cross_entropy") -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(11, 2, 4, 4, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (11,), generator=g)
    return x, torch.randn(11, 3, generator=g, dtype=torch.float64) if loss == "mse" else y


LOSSES = {"cross_entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_products_of_curvlinops(curvature: str, loss: str) -> None:
    """Over batches of 4, 4 and 3, which it weighs by their sizes, as here."""
    curvlinops = peer("curvlinops")
    kinds = {"hessian": curvlinops.HessianLinearOperator, "gauss_newton": curvlinops.GGNLinearOperator}
    model, (x, y) = network(), data(loss)
    batches = list(zip(x.split(4), y.split(4), strict=True))
    theirs = kinds[curvature](model, LOSSES[loss], list(model.parameters()), batches, check_deterministic=False)
    ours = Products(Minimum(model, (x, y), loss, batch_size=3), curvature=curvature)
    for seed in range(3):
        v = torch.randn(ours.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(ours(v), theirs @ v, rtol=1e-9, atol=1e-12)


def test_traces_of_curvlinops() -> None:
    """XTrace of the same operator, with as many products as it has parameters: both are then the trace itself."""
    curvlinops = peer("curvlinops")
    model, (x, y) = network(), data()
    theirs = curvlinops.GGNLinearOperator(
        model, LOSSES["cross_entropy"], list(model.parameters()), [(x, y)], check_deterministic=False
    )
    dense = theirs @ torch.eye(theirs.shape[0], dtype=torch.float64)
    found = Minimum(model, (x, y))[ExactTraces()].values.mean()
    assert float(found) == pytest.approx(float(dense.trace()), rel=1e-9)
    estimate = measures.hessian_trace(
        Minimum(model, (x, y)), curvature="gauss_newton", estimator="xtrace", probes=60, groups=1, samples=None
    )
    assert float(estimate) == pytest.approx(float(dense.trace()), rel=1e-9)  # rank 22 of 30 vectors
    assert float(curvlinops.xtrace(theirs, 60)) == pytest.approx(float(dense.trace()), rel=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_diagonals_of_backpack(loss: str) -> None:
    backpack = peer("backpack")
    extensions = peer("backpack.extensions")
    for activation in (nn.Tanh, nn.ReLU):
        model, (x, y) = network(activation), data(loss)
        minimum = Minimum(model, (x, y), loss, batch_size=4)
        ours = minimum[GaussNewtonDiagonal(), HessianDiagonal()]
        copy = backpack.extend(network(activation))
        value = backpack.extend(nn.CrossEntropyLoss() if loss == "cross_entropy" else nn.MSELoss())(copy(x), y)
        with backpack.backpack(extensions.DiagGGNExact(), extensions.DiagHessian()):
            value.backward()
        for found, name in zip(ours, ("diag_ggn_exact", "diag_h"), strict=True):
            theirs = torch.cat([getattr(p, name).reshape(-1) for p in copy.parameters()])
            torch.testing.assert_close(found, theirs, rtol=1e-8, atol=1e-12)


def test_top_eigenvalue_of_pyhessian() -> None:
    """With its power iteration run to the end; it divides by the norm + 1e-6, which makes values 2e-6 too small."""
    pyhessian = peer("pyhessian")
    model, (x, y) = network(), data()
    theirs = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    values, _ = theirs.eigenvalues(maxIter=2000, tol=1e-12, top_n=2)
    found = Minimum(model, (x, y))[TopEigenvalues(2, None, 1e-6)]
    np.testing.assert_allclose(found.values, values, rtol=3e-6)


def test_trace_and_density_of_pyhessian() -> None:
    """Means of its draws and of ours agree with the dense trace, within four standard errors of each."""
    pyhessian = peer("pyhessian")
    model, (x, y) = network(), data()
    minimum = Minimum(model, (x, y))
    exact = float(minimum[HessianDiagonal()].sum())
    torch.manual_seed(0)
    draws = torch.tensor(
        pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False).trace(maxIter=100, tol=0.0)
    )
    ours = minimum[HessianProbes(100)].traces[0]
    spectrum = minimum[SpectralDensity(100, 3, None)].trace(lambda v: v)
    for traces in (draws, ours, spectrum):
        assert abs(float(traces.mean()) - exact) < 4 * float(traces.std()) / 10
