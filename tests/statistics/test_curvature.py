"""Hessian products, diagonals and Gauss-Newton diagonals against explicit float64 second derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from case_networks import Case, N, numbers
from cases import BY_NAME, CASES
from flatminima import Minimum
from flatminima.core.perturbation import Gaussian, Relative
from flatminima.errors import Undefined
from flatminima.statistics import (
    BatchGradientSquares,
    FisherDiagonal,
    GaussNewtonDiagonal,
    Gram,
    HessianDiagonal,
    HessianProbes,
    InputJacobian,
    PerturbedLoss,
    curvature_operator,
)
from flatminima.statistics.hessian import rademacher
from truth import Truth

pytestmark = pytest.mark.slow

TOLERANCE = 1e-8
BATCH = 3  # ragged: 3 + 3 + 1


def minimum_of(case: Case, batch_size: int = BATCH) -> Minimum:
    model, data = case.make()
    return Minimum(model, data, case.loss, batch_size=batch_size)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("case", [c for c in CASES if c.twice], ids=lambda case: case.name)
def test_hessian_products_and_diagonal(case: Case) -> None:
    """A batch weighted by 1 instead of by its samples is far off; fused attention has no second derivative."""
    truth = Truth(case).hessian()
    minimum = minimum_of(case)
    assert_close(minimum[HessianDiagonal()], truth.diagonal())
    v = np.random.default_rng(0).normal(size=len(truth))
    assert_close(torch.from_numpy(curvature_operator(minimum).matvec(v)), truth @ torch.from_numpy(v))
    probes = minimum[HessianProbes(3, seed=5)]
    vs = torch.stack([rademacher(truth[0], 5, k) for k in range(3)])
    assert_close(probes.diagonal, (vs * (vs @ truth)).mean(0))
    assert_close(probes.traces[0], torch.einsum("ki,ij,kj->k", vs, truth, vs))


@pytest.mark.parametrize("case", [c for c in CASES if c.convex], ids=lambda case: case.name)
def test_gauss_newton_diagonal(case: Case) -> None:
    minimum = minimum_of(case)
    assert_close(minimum[GaussNewtonDiagonal()], Truth(case).gauss_newton().diagonal())


@pytest.mark.parametrize("name", ["mlp", "conv2d circular", "batch_norm2d", "sequences, gradients formed"])
def test_gauss_newton_is_the_hessian_of_a_relu_network(name: str) -> None:
    """Piecewise linear in each weight, so the diagonals agree almost everywhere."""
    minimum = minimum_of(BY_NAME[name])
    diagonal, exact = minimum[GaussNewtonDiagonal(), HessianDiagonal()]
    assert_close(diagonal, exact)


def test_gauss_newton_is_not_the_hessian_of_a_smooth_network() -> None:
    minimum = minimum_of(BY_NAME["raw parameters"])
    diagonal, exact = minimum[GaussNewtonDiagonal(), HessianDiagonal()]
    assert float((diagonal - exact).abs().max()) > 0.01 * float(exact.abs().max())


def test_a_loss_that_is_not_convex_has_no_gauss_newton_matrix() -> None:
    """And whoever shares the sweep is not drawn into it."""
    minimum = minimum_of(BY_NAME["not convex"])
    minimum.compute([GaussNewtonDiagonal(), FisherDiagonal()])
    with pytest.raises(Undefined, match="not convex"):
        minimum[GaussNewtonDiagonal()]
    assert_close(minimum[FisherDiagonal()], Truth(BY_NAME["not convex"]).gradients().square().mean(0))


def _of_real_inputs(case: Case) -> bool:
    inputs = case.make()[1][0]
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    real = all(isinstance(t, Tensor) and t.is_floating_point() for t in parts)
    return case.loss == "cross_entropy" and real


@pytest.mark.parametrize("case", [c for c in CASES if _of_real_inputs(c)], ids=lambda case: case.name)
def test_input_jacobian(case: Case) -> None:
    minimum = minimum_of(case)
    order = minimum.samples.order(0)
    norms = Truth(case).softmax_jacobian_norms()
    assert_close(minimum[InputJacobian(100)], norms[order])
    assert_close(minimum[InputJacobian(5)], norms[order[:5]])


def test_tokens_have_no_input_jacobian_and_spoil_nobody() -> None:
    """InputJacobian and Gram(…) share a sweep; with token inputs only the first may be undefined."""
    minimum = minimum_of(BY_NAME["embedding"])
    minimum.compute([InputJacobian(), Gram(N, 1), GaussNewtonDiagonal(samples=100)])
    with pytest.raises(Undefined, match="not continuous"):
        minimum[InputJacobian()]
    gradients = Truth(BY_NAME["embedding"]).gradients()[minimum.samples.order(0)]
    assert_close(minimum[Gram(N, 1)].matrices()[0], gradients @ gradients.T)
    assert_close(minimum[GaussNewtonDiagonal(samples=100)], Truth(BY_NAME["embedding"]).gauss_newton().diagonal())


def test_a_classifier_is_needed_for_the_input_jacobian() -> None:
    with pytest.raises(Undefined, match="cross-entropy"):
        minimum_of(BY_NAME["mse"])[InputJacobian()]


@pytest.mark.parametrize("name", ["mlp", "attention", "batch_norm2d", "token_cross_entropy"])
def test_squares_of_batch_gradients(name: str) -> None:
    """Batches of two in the order of the seed; the one left over is not used."""
    case = BY_NAME[name]
    minimum = minimum_of(case)
    gradients = Truth(case).gradients()[minimum.samples.order(0)]
    means = gradients[:6].view(3, 2, -1).mean(1)
    assert_close(minimum[BatchGradientSquares(2)], means.square().mean(0))
    assert_close(minimum[BatchGradientSquares(100)], gradients.mean(0).square())


# -- the operator ----------------------------------------------------------------------------------------------------


def test_the_operator_feeds_scipy() -> None:
    truth = Truth(BY_NAME["mlp"]).hessian()
    top = eigsh(curvature_operator(minimum_of(BY_NAME["mlp"], 100)), k=1, which="LA")[0][0]
    assert top == pytest.approx(float(torch.linalg.eigvalsh(truth)[-1]), rel=1e-8)


def test_the_operator_outlives_a_perturbation() -> None:
    """Weights written and put back leave the values but not the kept graph: it must be made again."""
    minimum = minimum_of(BY_NAME["mlp"], 100)
    operator = curvature_operator(minimum)
    v = np.ones(operator.shape[0])
    before = operator.matvec(v)
    minimum[PerturbedLoss(Gaussian(Relative(0.1)), draws=2)]
    np.testing.assert_allclose(operator.matvec(v), before, rtol=1e-12)


def test_the_operator_makes_its_graph_once() -> None:
    minimum = minimum_of(BY_NAME["mlp"], 100)
    operator = curvature_operator(minimum)
    operator.matvec(np.ones(operator.shape[0]))
    passes = minimum.passes.forward
    operator.matvec(np.zeros(operator.shape[0]))
    assert minimum.passes.forward == passes == N


# -- Hutchinson's estimator ------------------------------------------------------------------------------------------

PROBES = 1000


def _scores(traces: Tensor, truth: float) -> float:
    traces = traces[0]
    return abs(float(traces.mean()) - truth) / float(traces.std() / len(traces) ** 0.5)


def test_hutchinson_is_unbiased() -> None:
    """At a fixed budget, which is enough to see a batch of four divided by three."""
    truth = Truth(BY_NAME["mlp"]).hessian()
    found = minimum_of(BY_NAME["mlp"], 100)[HessianProbes(PROBES)]
    assert _scores(found.traces, float(truth.trace())) < 4
    assert _scores(4 / 3 * found.traces, float(truth.trace())) > 4
    spread = (truth.square().sum(1) - truth.diagonal().square()).sqrt() / PROBES**0.5  # exact for +-1 probes
    moving = spread > 1e-12
    assert float(((found.diagonal - truth.diagonal())[moving] / spread[moving]).abs().max()) < 4.5


def test_hutchinson_on_part_of_the_samples() -> None:
    """Five of seven, in batches of three shared with a Gram matrix's order: rows beyond the five must not count."""
    case = BY_NAME["mlp"]
    minimum = minimum_of(case)
    order = minimum.samples.order(0)
    found, _ = minimum[HessianProbes(2, samples=5), Gram(3)]
    model, (inputs, targets) = case.make()
    part = Minimum(model, (inputs[order[:5]], targets[order[:5]]))
    assert_close(found.traces, part[HessianProbes(2)].traces)


def test_each_group_of_samples_has_probes_of_its_own() -> None:
    """Of copies of one sample, whose Hessians are equal: with the probes of another group the traces were equal too,
    and their spread, which is the standard error, 0."""
    model, (x, y) = BY_NAME["mlp"].make()
    minimum = Minimum(model, (x[:1].expand(6, -1).clone(), y[:1].expand(6).clone()), batch_size=6)
    traces = minimum[HessianProbes(2, groups=3)].traces
    assert traces.shape == (3, 2) and len(traces.flatten().unique()) == 6
    together = minimum[HessianProbes(2)].traces
    assert together.shape == (1, 2)


def test_weight_norm_has_no_second_derivative_in_torch() -> None:
    """Its kernel forgets that the norm depends on the direction; if torch mends it, the refusal can go."""
    minimum = minimum_of(BY_NAME["weight_norm"])
    with pytest.raises(Undefined, match="not the derivative of its gradient: look at weight_norm"):
        minimum[HessianProbes()]
    v, g = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64)
    inputs = (v.requires_grad_(), g.requires_grad_())
    right = torch.autograd.gradgradcheck(
        lambda v, g: torch._weight_norm(v, g, 0).tanh().sum(), inputs, raise_exception=False
    )
    assert not right


# -- what has no Hessian ---------------------------------------------------------------------------------------------


def test_a_large_network_has_no_exact_diagonal() -> None:
    minimum = Minimum(nn.Linear(1000, 4), (torch.randn(3, 1000), torch.arange(3)))
    with pytest.raises(Undefined, match="limit 3000"):
        minimum[HessianDiagonal()]


def test_a_loss_without_a_gradient() -> None:
    def mistakes(output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) != target).double()

    model, data = Case("", lambda: nn.Linear(3, 3), numbers(3)).make()
    minimum = Minimum(model, data, mistakes)
    for fold in (HessianProbes(2), HessianDiagonal(), GaussNewtonDiagonal(), BatchGradientSquares(2)):
        with pytest.raises(Undefined, match="'mistakes' has no gradient"):
            minimum[fold]


def test_a_loss_linear_in_the_weights_has_no_curvature() -> None:
    def first(output: Tensor, target: Tensor) -> Tensor:
        return output[:, 0] * target

    model, data = Case("", lambda: nn.Linear(3, 3), numbers(3)).make()
    minimum = Minimum(model, data, first)
    assert not minimum[HessianDiagonal()].any()
    assert not minimum[GaussNewtonDiagonal()].any()
