"""Posteriors: their divergence is that of what they draw, against dense algebra, torch.distributions and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, Uniform, kl_divergence

from flatminima import Minimum
from flatminima.certification.gibbs.posteriors import (
    DiagonalGaussian,
    EigenDecomposition,
    LowRankGaussian,
    Posterior,
    TruncatedBox,
    UniformBox,
    _without_rounding,
)
from flatminima.errors import UsageError
from flatminima.statistics import FisherFactor, GaussNewtonFactor, Gram

W = 6


def made(seed: int = 0, size: int = W) -> tuple[Tensor, Tensor]:
    """Distances and noise scales."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=g).double(), torch.rand(size, generator=g).double() * 0.4 + 0.1


def network() -> tuple[nn.Module, Minimum]:
    """A small float64 network with its data: 3-4-3, 31 weights, 12 samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return net, Minimum(net, (torch.randn(12, 3).double(), torch.arange(12) % 3))


def dense(kind: type, minimum: Minimum) -> Tensor:
    """F (W, W) by a loop over samples and, for the Gauss-Newton matrix, labels drawn from the prediction."""
    parameters = list(minimum.model.parameters())
    x, y = minimum.samples.take(torch.arange(12))
    total = torch.zeros(31, 31).double()
    for i in range(12):
        p = minimum.model(x[i : i + 1]).softmax(1)[0].detach()
        for c in range(3):
            share = float(p[c]) if kind is GaussNewtonFactor else float(c == int(y[i]))
            loss = nn.functional.cross_entropy(minimum.model(x[i : i + 1]), torch.tensor([c]))
            g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, parameters)])
            total += share * torch.outer(g, g)
    return total / 12


@pytest.mark.parametrize("kind", [FisherFactor, GaussNewtonFactor])
def test_fisher_laplace_against_dense_algebra(kind: type) -> None:
    """Covariance and divergence of N(w, (eta F + I/s^2)^-1), F formed by autograd: no Gram matrix, no eigenvectors."""
    _, minimum = network()
    eta, s = 300.0, 0.7
    distance = torch.randn(31, generator=torch.Generator().manual_seed(1)).double()
    q = LowRankGaussian(distance, s, EigenDecomposition.of(minimum[kind(12)]), eta)
    eye = torch.eye(31).double()
    covariance = torch.linalg.inv(eta * dense(kind, minimum) + eye / s**2)
    root = q.narrowed(eye)
    assert torch.allclose(root.T @ root, covariance, rtol=0, atol=1e-9 * float(covariance.max()))
    truth = kl_divergence(MultivariateNormal(distance, covariance), MultivariateNormal(0 * distance, s**2 * eye))
    assert q.kl == pytest.approx(float(truth), rel=1e-9)


def test_fisher_laplace_needs_only_the_gram_matrix() -> None:
    """The log-determinant by the kernel trick: the measure's Gram matrix gives the divergence of the draws."""
    _, minimum = network()
    eta, s, distance = 50.0, 0.3, made(2, 31)[0]
    spectrum = EigenDecomposition.of(minimum[FisherFactor(12)])
    gram = minimum[Gram(12, 1)].matrices()[0] / 12
    log_det = torch.linalg.slogdet(torch.eye(12) + eta * s**2 * gram).logabsdet
    shrink = torch.linalg.solve(torch.eye(12) + eta * s**2 * gram, eta * s**2 * gram).trace()
    truth = (log_det - shrink + distance.square().sum() / s**2) / 2
    assert LowRankGaussian(distance, s, spectrum, eta).kl == pytest.approx(float(truth), rel=1e-9)


def test_fisher_laplace_draws_have_its_covariance() -> None:
    g = torch.Generator().manual_seed(3)
    spectrum = EigenDecomposition.of(torch.randn(2, 4, generator=g).double())
    q = LowRankGaussian(torch.zeros(4).double(), 0.5, spectrum, 8.0)
    draws = torch.stack([q.draw(torch.zeros(4).double(), 7, i) for i in range(20_000)])
    truth = torch.linalg.inv(8.0 * spectrum.vectors.T @ spectrum.values.diag() @ spectrum.vectors + 4 * torch.eye(4))
    found = draws.T @ draws / len(draws)
    stderr = ((truth.diagonal().outer(truth.diagonal()) + truth.square()) / len(draws)).sqrt()
    assert bool(((found - truth).abs() < 4.5 * stderr).all())
    assert bool((draws.mean(0).abs() < 4.5 * (truth.diagonal() / len(draws)).sqrt()).all())


def test_without_curvature_it_is_the_prior_moved() -> None:
    spectrum = EigenDecomposition.of(torch.zeros(3, W))
    q = LowRankGaussian(torch.full((W,), 2.0).double(), 1.0, spectrum, 5.0)
    assert q.kl == 0.5 * W * 4
    z = torch.ones(W)
    assert torch.equal(q.narrowed(z), z)


def test_diagonal_gaussian_against_torch() -> None:
    distance, sigma = made()
    truth = kl_divergence(Normal(distance, sigma), Normal(0 * distance, 0.3 + 0 * distance))
    assert DiagonalGaussian(distance, 0.3, sigma).kl == pytest.approx(float(truth.sum()), rel=1e-9)


def test_uniform_against_torch_and_outside_of_the_box() -> None:
    distance, sigma = made()
    q = UniformBox(distance, 5.0, sigma)
    box = torch.full((W,), 5.0).double()
    truth = kl_divergence(Uniform(distance - sigma, distance + sigma), Uniform(-box, box)).sum()
    assert q.kl == pytest.approx(float(truth), rel=1e-9)
    assert UniformBox(distance, float((distance.abs() + sigma).max()) - 1e-9, sigma).kl == math.inf


@pytest.mark.parametrize("box", [math.inf, 3.0])
def test_truncated_gaussian_against_quadrature(box: float) -> None:
    """Both densities are scipy's; a forgotten normaliser of either shows."""
    distance, sigma = made(size=3)
    kappa, s = 1.5 * sigma + 0.2, 0.8
    q = TruncatedBox(distance, s, sigma, kappa, box)
    truth = 0.0
    for d, width, k in zip(distance.tolist(), sigma.tolist(), kappa.tolist(), strict=True):
        own = stats.truncnorm(-k / width, k / width, d, width)
        prior = stats.truncnorm(-box / s, box / s, 0, s)
        truth += integrate.quad(lambda x, a=own, b=prior: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), d - k, d + k)[0]
    assert q.kl == pytest.approx(truth, rel=1e-9)
    assert TruncatedBox(distance, s, sigma, kappa, float((distance.abs() + kappa).max()) - 1e-9).kl == math.inf


@pytest.mark.parametrize("sigma", [0.1, 0.1 * (1 - 1e-9), float(np.float32(0.1))])
@pytest.mark.parametrize("box", [1e-6, 1e-2, 0.1, 1.0, 3.0, math.inf])
def test_a_truncated_gaussian_that_is_its_prior_costs_nothing(box: float, sigma: float) -> None:
    """kappa = box at the prior's centre: terms that cancel to 0, of which rounding left -5.7e-14."""
    size = 22
    kappa, sigmas = (torch.full((size,), value, dtype=torch.float64) for value in (min(box, 4.0), sigma))
    q = TruncatedBox(torch.zeros(size).double(), 0.1, sigmas, kappa, box)
    assert 0.0 <= q.kl < 1e-3


def test_a_divergence_that_is_truly_negative_is_not_hidden() -> None:
    assert _without_rounding(-1e-9, 100.0) == -1e-9
    assert _without_rounding(-1e-11, 100.0) == 0.0
    assert _without_rounding(math.inf, math.inf) == math.inf and _without_rounding(0.5, 1.0) == 0.5


def test_truncated_gaussian_draws() -> None:
    sigma, kappa = torch.tensor([1.0, 1.0, 0.2]), torch.tensor([0.5, 10.0, 0.4])
    q = TruncatedBox(torch.zeros(3).double(), 1.0, sigma, kappa)
    draws = torch.stack([q.draw(torch.zeros(3).double(), 1, i) for i in range(4000)]).numpy()
    assert bool((np.abs(draws) <= kappa.numpy()).all())
    for column, width, k in zip(draws.T, sigma.tolist(), kappa.tolist(), strict=True):
        assert stats.kstest(column, stats.truncnorm(-k / width, k / width, 0, width).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    "q",
    [
        DiagonalGaussian(made()[0], 1.0, made()[1].float()),
        UniformBox(made()[0], 9.0, made()[1].float()),
        TruncatedBox(made()[0], 1.0, made()[1].float(), made()[1] * 2),
        LowRankGaussian(made()[0], 1.0, EigenDecomposition.of(torch.ones(1, W)), 2.0),
    ],
    ids=lambda q: type(q).__name__,
)
def test_a_draw_is_its_seed_and_index(q: Posterior) -> None:
    w = torch.zeros(W)
    assert torch.equal(q.draw(w, 3, 4), q.draw(w, 3, 4))
    assert not torch.equal(q.draw(w, 3, 4), q.draw(w, 3, 5))
    assert not torch.equal(q.draw(w, 3, 4), q.draw(w, 4, 4))
    assert q.draw(w, 0, 0).dtype == torch.float32
    assert q.kl > 0
    several = q.draws(w, 3, range(4, 7))
    assert torch.allclose(several, torch.stack([q.draw(w, 3, i) for i in (4, 5, 6)]), rtol=1e-5, atol=1e-7)


def test_nan_in_the_gradients_is_refused() -> None:
    with pytest.raises(UsageError, match="NaN or Inf in the gradients"):
        EigenDecomposition.of(torch.tensor([[1.0, math.nan]]))
