"""Exact and sketched traces, and the Hessian's diagonal of piecewise-linear networks, against dense matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from case_networks import Case, Net, numbers
from cases import BY_NAME, CASES, L
from flatminima import Minimum, measures
from flatminima.errors import Undefined, UsageError
from flatminima.models import resnet20
from flatminima.statistics import (
    ExactTraces,
    GaussNewtonDiagonal,
    HessianDiagonal,
    PiecewiseLinearDiagonal,
    SketchedDiagonal,
    SketchedTraces,
)
from flatminima.statistics.hessian import group_edges
from truth import Truth

RELU = ["mlp", "conv2d circular", "batch_norm2d", "relu in place", "concatenation", "residual in place"]


def minimum_of(case: Case, batch_size: int = 3) -> Minimum:
    model, data = case.make()
    return Minimum(model, data, case.loss, batch_size=batch_size)


@pytest.mark.parametrize("case", [c for c in CASES if c.convex], ids=lambda case: case.name)
def test_exact_traces_of_the_gauss_newton_matrix(case: Case) -> None:
    found = minimum_of(case)[ExactTraces()]
    assert float(found.values.mean()) == pytest.approx(float(Truth(case).gauss_newton().trace()), rel=1e-8)
    assert found.values.shape == (7,) and not found.variances.any()


@pytest.mark.parametrize("name", RELU)
def test_exact_diagonals_and_traces_of_piecewise_linear_networks(name: str) -> None:
    """Equal to one Hessian product a parameter, and to the dense matrix."""
    case, minimum = BY_NAME[name], minimum_of(BY_NAME[name])
    truth = Truth(case).hessian().diagonal()
    for found in minimum[PiecewiseLinearDiagonal(), HessianDiagonal()]:
        assert float((found - truth).abs().max()) <= 1e-8 * float(truth.abs().max())
    trace = measures.hessian_trace(minimum, estimator="exact", samples=None)
    assert trace.value == pytest.approx(float(truth.sum()), rel=1e-8)
    assert trace.stderr is None


def test_a_resnets_hessian_has_the_gauss_newton_diagonal() -> None:
    """Of a pre-activation ResNet-20 at sixteen weights, by Hessian products in float64."""
    torch.manual_seed(0)
    model = resnet20().double().eval()
    x, y = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 7])
    minimum = Minimum(model, (x, y))
    diagonal = minimum[PiecewiseLinearDiagonal()]
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    for i in torch.randint(0, len(flat), (16,), generator=torch.Generator().manual_seed(1)).tolist():
        row = torch.autograd.grad(flat[i], parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        truth = float(torch.cat([g.reshape(-1) for g in row])[i])
        assert float(diagonal[i]) == pytest.approx(truth, rel=1e-8, abs=1e-14)


SMOOTH = [
    ("raw parameters", "is not an operation of a ReLU network"),
    ("attention", "is not an operation of a ReLU network"),
    ("layer_norm", "is not an operation of a ReLU network"),
    ("embedding", "not a tensor of real numbers"),
]


@pytest.mark.parametrize("name, reason", SMOOTH, ids=[n for n, _ in SMOOTH])
@pytest.mark.parametrize("statistic", [PiecewiseLinearDiagonal(), ExactTraces(curvature="hessian")], ids=repr)
def test_other_networks_are_refused(statistic: PiecewiseLinearDiagonal, name: str, reason: str) -> None:
    with pytest.raises(Undefined, match=f"needs a piecewise-linear network: .*{reason}.*; use 'gauss_newton'"):
        minimum_of(BY_NAME[name])[statistic]


def twice() -> nn.Module:
    return Net(lambda s, x: s.b(F.leaky_relu(s.a(F.leaky_relu(s.a(x), 0.5)), 0.5)), a=L(3, 3), b=L(3, 3))


def tied() -> nn.Module:
    a, b = L(3, 3), L(3, 3)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b)


@pytest.mark.parametrize("model", [twice, tied])
def test_a_weight_used_twice_is_refused(model) -> None:
    """The output is quadratic in it: the two diagonals differ, which the last line shows."""
    minimum = minimum_of(Case("", model, numbers(3)))
    with pytest.raises(Undefined, match=r"'(0|a)\.weight' is used 2 times"):
        minimum[PiecewiseLinearDiagonal()]
    hessian, gauss_newton = minimum[HessianDiagonal(), GaussNewtonDiagonal()]
    assert float((hessian - gauss_newton).abs().max()) > 1e-2 * float(hessian.abs().max())


# -- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_sketched_traces_of_groups_are_exact_with_a_sketch_of_full_rank(method: str, curvature: str) -> None:
    """Gauss-Newton of two samples of three classes has rank 4; the Hessian of a small head no more than its size."""
    case = Case("", lambda: nn.Sequential(L(3, 2), nn.Tanh(), L(2, 3)), numbers(3))
    minimum = minimum_of(case)
    truth = Truth(case)
    key = SketchedTraces(method, 60, 6, 3, 0, curvature)  # type: ignore[arg-type]
    found = minimum[key]
    assert found.sizes.tolist() == [2, 2, 2] and found.population == 7
    order = minimum.samples.order(0)
    for value, (start, stop) in zip(found.values, [(0, 2), (2, 4), (4, 6)], strict=True):
        truth.model, (inputs, targets) = case.make()
        part = Truth(case)
        part.inputs, part.targets = inputs[order[start:stop]], targets[order[start:stop]]
        dense = part.hessian() if curvature == "hessian" else part.gauss_newton()
        assert float(value) == pytest.approx(float(dense.trace()), rel=1e-8)


@pytest.mark.parametrize("estimator", ["hutch++", "xtrace"])
def test_the_measure_takes_its_groups(estimator: str) -> None:
    case = BY_NAME["mlp"]
    minimum = minimum_of(case, 100)
    found = measures.hessian_trace(minimum, estimator=estimator, probes=200, groups=1, samples=None)
    assert found.value == pytest.approx(float(Truth(case).hessian().trace()), rel=1e-8)
    assert (found.stderr is None) == (estimator == "xtrace")
    grouped = measures.hessian_trace(minimum, estimator=estimator, probes=6, groups=3, samples=6, seed=2)
    parts = minimum[SketchedTraces(estimator, 6, 6, 3, 2)]  # type: ignore[arg-type]
    assert grouped.value == pytest.approx(float(parts.values.mean()), rel=1e-12)


def test_the_sketched_diagonal_is_exact_with_a_sketch_of_full_rank() -> None:
    case = BY_NAME["attention"]
    truth = Truth(case)
    for curvature, dense in (("hessian", truth.hessian()), ("gauss_newton", truth.gauss_newton())):
        found = minimum_of(case)[SketchedDiagonal(2 * len(dense), None, 0, curvature)]  # type: ignore[arg-type]
        torch.testing.assert_close(found, dense.diagonal(), rtol=1e-7, atol=1e-9 * float(dense.abs().max()))


def test_bad_options() -> None:
    minimum = minimum_of(BY_NAME["mlp"])
    with pytest.raises(UsageError, match=r"got method='hutchinson'; expected one of hutch\+\+, xtrace"):
        SketchedTraces("hutchinson")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected one of hessian, gauss_newton"):
        SketchedDiagonal(curvature="fisher")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"got estimator='slq'; expected one of hutchinson, hutch\+\+, xtrace, exact"):
        measures.hessian_trace(minimum, estimator="slq")
    with pytest.raises(UsageError, match="got rtol with estimator='exact'"):
        measures.hessian_trace(minimum, estimator="exact", rtol=0.1)
    with pytest.raises(UsageError, match="at least 6"):
        measures.hessian_trace(minimum, estimator="xtrace")


def test_groups_are_nearly_equal() -> None:
    assert group_edges(10, 4) == [0, 2, 5, 7, 10]
