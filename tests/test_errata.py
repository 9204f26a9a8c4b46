"""Errata that no test of a function shows: each derivation of docs/reference/errata.md in numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.bounds import truncated_gaussian_sigma
from flatminima.statistics import BatchGradientSquares, FisherDiagonal


def test_w_b_the_taylor_terms_are_an_upper_bound() -> None:
    """f = rho |w|^3 / 6 + h w^2 / 2 meets it with =; without the modulus it rises by the second term alone."""
    u = np.linspace(-0.5, 0.5, 200_001)
    rho, h = 3.0, 0.7
    bound = h / 2 * np.mean(u**2) + rho / 6 * np.mean(np.abs(u) ** 3)
    assert np.mean(rho / 6 * np.abs(u) ** 3 + h / 2 * u**2) == pytest.approx(bound, rel=1e-12)
    signed = np.mean(rho / 6 * u**3 + h / 2 * u**2)
    assert signed == pytest.approx(h / 2 * np.mean(u**2)) and signed < 0.7 * bound


def test_w_e_the_printed_index_need_not_exist() -> None:
    """j = floor(ln(K / ln(1/delta_j) + 1) / 2), delta_j = delta 2^-(j+1): for some K no j is its own image."""

    def image(j: int, k: float, delta: float) -> int:
        return math.floor(0.5 * math.log(k / (math.log(1 / delta) + (j + 1) * math.log(2)) + 1))

    grid = [(k, delta) for k in np.geomspace(1e-2, 1e6, 400) for delta in (0.01, 0.05, 0.2)]
    without = [pair for pair in grid if not any(image(j, *pair) == j for j in range(60))]
    assert 0 < len(without) < len(grid) / 4


def test_w_h_rho_comes_with_eta() -> None:
    """The width that minimises the bound's terms of one weight has eta on both curvature terms."""
    h, rho, kappa, tau, eta, m = 0.8, 2.0, 0.4, 1.5, 9.0, 4
    sigma = np.linspace(1e-3, 1.5, 400_001)
    terms = (h / 2 + rho * math.sqrt(m) * kappa / 6) * sigma**2 + (sigma**2 / (2 * tau) - np.log(sigma)) / eta
    best = sigma[np.argmin(terms)]
    right = (eta * h + eta * rho * math.sqrt(m) * kappa / 3 + 1 / tau) ** -0.5
    printed = (eta * h + rho * math.sqrt(m) * kappa / 3 + 1 / tau) ** -0.5
    assert best == pytest.approx(right, abs=1e-5) and abs(best - printed) > 0.02
    ours = truncated_gaussian_sigma(np.full(m, h), rho, np.full(m, kappa), tau, eta)
    assert np.asarray(ours) == pytest.approx(right, rel=1e-12)


def _network(classes: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)).double().eval()
    x = torch.randn(64, 4, dtype=torch.float64)
    return net, x, torch.randint(0, classes, (64,))


def _gradients(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))]))
    return torch.stack(rows)


def test_w_n_squares_of_batch_gradients_shrink_with_the_batch() -> None:
    """Once the mean gradient is gone: Fisher / B. Here its square is taken off, as at a minimum it would be."""
    net, x, y = _network()
    minimum = Minimum(net, (x, y))
    mean = _gradients(net, x, y).mean(0)
    fisher = float((minimum[FisherDiagonal()] - mean.square()).sum())
    for batch in (1, 4, 16):
        many = [float((minimum[BatchGradientSquares(batch, seed)] - mean.square()).sum()) for seed in range(60)]
        finite = (64 - batch) / (64 - 1)  # batches of one epoch are drawn without replacement
        assert np.mean(many) == pytest.approx(fisher / batch * finite, rel=0.15)


def test_n_a_the_step_from_frobenius_keeps_a_factor_4_per_layer() -> None:
    """prod 4 ||W||_F^2 <= prod 4 h ||W||_2^2, with equality for orthogonal layers; without the 4 it is false."""
    layers = [np.linalg.qr(np.random.default_rng(k).normal(size=(5, 5)))[0] for k in range(3)]
    frobenius = math.prod(4 * np.linalg.norm(w) ** 2 for w in layers)
    spectral = math.prod(5 * np.linalg.norm(w, 2) ** 2 for w in layers)
    assert frobenius == pytest.approx(4**3 * spectral, rel=1e-12) and frobenius > spectral


def test_n_b_path_norm_is_no_minimum_for_several_outputs() -> None:
    """Two identity layers: path norm 2 over both outputs, product of the largest rows 1."""
    first, second = np.eye(2), np.eye(2)
    paths = float((np.abs(second) @ np.abs(first)).sum())
    product = np.abs(first).sum(1).max() * np.abs(second).sum(1).max()
    assert (paths, product) == (2.0, 1.0)


def test_n_h_the_simplified_form_lacks_a_factor() -> None:
    """sigma_i from gamma_i = sigma / (C_delta d) puts C_delta^2 d^2 / mu^4 before the sum."""
    norms, widths, mu, sigma, c_delta = np.array([2.0, 1.5, 0.7]), np.array([4, 3, 5, 2]), 0.6, 0.05, 3.1
    d, products = len(norms), widths[1:] * widths[:-1]
    gamma = sigma / (c_delta * d)
    sigmas = gamma * mu**2 * norms / np.sqrt(products)
    exact = float((norms**2 / sigmas**2).sum())
    assert exact == pytest.approx(c_delta**2 * d**2 / mu**4 * products.sum() / sigma**2, rel=1e-12)


def test_j_b_the_two_gram_matrices_share_their_spectrum() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 7))
    large, small = np.linalg.eigvalsh(rows.T @ rows)[-3:], np.linalg.eigvalsh(rows @ rows.T)
    assert large == pytest.approx(small, rel=1e-10)


def test_j_c_the_estimate_falls_with_the_subset() -> None:
    """(m/N') E ln det xi - m ln m, over all subsets of each size, down to ln det F at N' = m (Han's inequality)."""
    from itertools import combinations

    rows = np.random.default_rng(1).normal(size=(5, 5))
    m = 5
    values = []
    for size in range(1, m + 1):
        logs = [np.linalg.slogdet(rows[list(c)] @ rows[list(c)].T)[1] for c in combinations(range(m), size)]
        values.append(m / size * np.mean(logs) - m * math.log(m))
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(np.linalg.slogdet(rows.T @ rows / m)[1], rel=1e-10)


def test_j_e_the_log_determinant_follows_the_loss() -> None:
    """Logits 3 times as large fit the same labels better: the loss falls, and so does the log-determinant."""
    net, x, _ = _network()
    y = net(x).argmax(1)
    found = []
    for factor in (1.0, 3.0, 9.0):
        scaled, _, _ = _network()
        scaled.load_state_dict(net.state_dict())
        with torch.no_grad():
            scaled[2].weight *= factor
            scaled[2].bias *= factor
        value = measures.fisher_logdet(Minimum(scaled, (x, y)), subset=10, trials=5)
        found.append((value.details["train_loss"], float(value)))
    assert found == sorted(found, reverse=True)


def test_j_f_the_detached_gradient_is_half() -> None:
    """L = w^T H w / 2: R = a ||Hw||^2 - a^2 g^T H g / 2; detached, its gradient is a H g, half the whole."""
    hessian = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    w = torch.tensor([0.4, -1.1], dtype=torch.float64, requires_grad=True)
    alpha = 1e-6

    def loss(v: Tensor) -> Tensor:
        return 0.5 * v @ hessian @ v

    g = hessian @ w.detach()
    (detached,) = torch.autograd.grad(loss(w) - loss(w - alpha * g), w)
    (whole,) = torch.autograd.grad(alpha * (hessian @ w).square().sum(), w)
    assert torch.allclose(detached, whole / 2, rtol=1e-9, atol=0)


def test_j_g_the_regularizer_holds_the_mean_gradient_too() -> None:
    """E ||g_B||^2 over all pairs drawn with replacement = ||g||^2 + (tr F - ||g||^2) / 2."""
    net, x, y = _network()
    rows = _gradients(net, x[:12], y[:12])
    pairs = ((rows[:, None] + rows[None]) / 2).square().sum(-1).mean()
    mean, trace = rows.mean(0).square().sum(), rows.square().sum(1).mean()
    assert float(pairs) == pytest.approx(float(mean + (trace - mean) / 2), rel=1e-12)
