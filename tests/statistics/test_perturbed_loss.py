"""Losses at perturbed weights against closed forms of a quadratic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.core.perturbation import Explicit, Gaussian, Perturbation, Relative, TruncatedGaussian, Uniform
from flatminima.errors import Undefined, UsageError
from flatminima.statistics import At, FisherDiagonal, Outputs, PerturbedLoss

DRAWS = 2000
H = torch.tensor([[4.0, 1.0], [1.0, 2.0]]).double()
SIGMA = (0.1, 0.2)
# vectors.json, expected_sharpness_quadratic: 1/2 sum H_ii E u_i^2
EXPECTED = {Gaussian: 0.06, Uniform: 0.02}


def quadratic() -> Minimum:
    """L(w) = 1/2 (w - a)^T H (w - a) as a squared loss: half of sum_i (x_i w - t_i)^2 is mse of two outputs."""
    x = torch.linalg.cholesky(H).T  # x^T x = H
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -1.0]]).double()

    def half_square(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(1)  # mean of two samples: half of the sum

    targets = x @ torch.tensor([0.5, 0.25]).double()
    return Minimum(model, (x, targets.unsqueeze(1)), half_square)


def score(found: Tensor, expected: float) -> float:
    return abs(float(found.mean()) - expected) / float(found.std() / math.sqrt(len(found)))


def noise(kind: type[Perturbation], factor: float = 1.0) -> Perturbation:
    return kind(Explicit(factor * torch.tensor(SIGMA).double()))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("kind", EXPECTED)
def test_expected_rise_of_a_quadratic(kind: type[Perturbation], antithetic: bool) -> None:
    """Away from the minimum too: the linear term has mean zero. A scale 1.3 times too wide is seen."""
    found = quadratic()[PerturbedLoss(noise(kind), DRAWS, antithetic=antithetic)].values
    assert score(found, EXPECTED[kind]) < 4
    wide = quadratic()[PerturbedLoss(noise(kind, 1.3), DRAWS, antithetic=True)].values
    assert score(wide, EXPECTED[kind]) > 4


def test_truncated_noise() -> None:
    around = TruncatedGaussian(Explicit(torch.tensor(SIGMA).double()), bound=1.0)
    found = quadratic()[PerturbedLoss(around, DRAWS, antithetic=True)].values
    assert score(found, EXPECTED[Gaussian] * around.second_moment) < 4
    assert score(found, EXPECTED[Gaussian]) > 4


@pytest.mark.parametrize("kind", [Gaussian, Uniform])
def test_each_draw_is_the_loss_at_its_weights(kind: type[Perturbation]) -> None:
    """Draw k of the statistic is draw k of the perturbation; antithetic is the mean over both signs."""
    minimum, around = quadratic(), noise(kind)
    w = torch.tensor([1.0, -1.0]).double()
    centre = torch.tensor([0.5, 0.25]).double()

    def loss(at: Tensor) -> Tensor:
        return 0.5 * (at - centre) @ H @ (at - centre)

    us = [around.draw(w, 3, k) for k in range(4)]
    single = minimum[PerturbedLoss(around, 4, seed=3)].values
    both = minimum[PerturbedLoss(around, 4, antithetic=True, seed=3)].values
    for k, u in enumerate(us):
        assert float(single[k]) == pytest.approx(float(loss(w + u) - loss(w)), rel=1e-12)
        assert float(both[k]) == pytest.approx(float(0.5 * u @ H @ u), rel=1e-9)


def test_the_control_is_of_the_same_samples() -> None:
    """Losses of 0 and 1000: without pairing the draws' spread is the samples', a hundred times the effect."""

    def scaled(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] ** 2) + target

    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    x, target = torch.ones(40, 1).double() + 0.001 * torch.arange(40).double()[:, None], torch.zeros(40).double()
    target[::2] = 1000.0
    around = Gaussian(Explicit(torch.tensor([0.1]).double()))
    for known in (False, True):
        minimum = Minimum(model, (x, target), scaled)
        if known:
            minimum[Outputs()]
        found = minimum[PerturbedLoss(around, draws=50, samples=5)].values
        assert float(found.abs().max()) < 2.0
        unpaired = Minimum(model, (x, target), scaled)[PerturbedLoss(around, draws=2, samples=5)].values
        assert torch.allclose(unpaired, found[:2], rtol=1e-9)


def test_blocks_follow_each_other_through_the_order() -> None:
    """Draw k sees samples k*b to (k+1)*b of the seed's order, round and round."""
    torch.manual_seed(0)
    x = torch.randn(7, 2).double()
    model = nn.Linear(2, 1, bias=False).double()
    minimum = Minimum(model, (x, torch.zeros(7, 1).double()), "mse", batch_size=2)
    around = Uniform(Relative(0.1))
    found = minimum[PerturbedLoss(around, draws=3, samples=3, seed=5)].values
    order = minimum.samples.order(5)
    w = model.weight.detach()[0]
    for k, block in enumerate((order[:3], order[3:6], torch.cat([order[6:], order[:2]]))):
        u = around.draw(w, 5, k)
        expected = ((x[block] @ (w + u)) ** 2 - (x[block] @ w) ** 2).mean()
        assert float(found[k]) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_resolution_of_a_difference_of_losses(dtype: torch.dtype) -> None:
    """eps times the mean loss of what was looked at, in the dtype of the weights."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    model.weight.data.fill_(3.0)
    minimum = Minimum(model, (torch.ones(6, 1, dtype=dtype), torch.zeros(6, 1, dtype=dtype)), "mse")
    for samples, whole in ((2, False), (6, True), (100, True)):
        found = minimum[PerturbedLoss(Uniform(Relative(0.1)), draws=2, samples=samples)]
        assert found.resolution == pytest.approx(9 * torch.finfo(dtype).eps, rel=1e-6)
        assert found.whole == whole


def test_at_perturbed_weights() -> None:
    minimum, around = quadratic(), noise(Uniform)
    w = torch.tensor([1.0, -1.0]).double()
    moved = quadratic()
    moved.model.weight.data = (w + around.draw(w, 2, 1))[None]
    expected = Minimum(moved.model, (moved.samples.inputs, moved.samples.targets), moved.loss)[FisherDiagonal()]
    torch.testing.assert_close(minimum[At(FisherDiagonal(), around, 2, 1)], expected, rtol=1e-12, atol=0)
    assert minimum.model.weight.tolist() == [[1.0, -1.0]]


def test_an_overflow_elsewhere_is_undefined() -> None:
    """Not an error: the network at w is fine."""
    huge = Uniform(Explicit(torch.full((2,), 1e300, dtype=torch.float64)))
    minimum = quadratic()
    with pytest.raises(Undefined, match="at perturbed weights"):
        minimum[At(FisherDiagonal(), huge)]
    assert not minimum[PerturbedLoss(huge, draws=2)].values.isfinite().any()


@pytest.mark.parametrize("counts", [{"draws": 0}, {"samples": 0}])
def test_counts(counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PerturbedLoss(Uniform(Relative(0.1)), **counts)
