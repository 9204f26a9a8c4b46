"""KL of Laplace posteriors against dense linear algebra."""

import math

import numpy as np
import pytest
from bounds_oracle import PROPERTY, vector
from hypothesis import given, strategies as st

from flatminima.bounds import diagonal_laplace_kl, diagonal_laplace_sigma, fisher_laplace_kl, kl_diag_gaussian


def dense_kl(mean, covariance, prior_variance):
    m = len(mean)
    _, logdet = np.linalg.slogdet(covariance)
    return (
        np.trace(covariance) / prior_variance + mean @ mean / prior_variance - m + m * math.log(prior_variance) - logdet
    ) / 2


def test_diagonal_vector():
    inputs, expected = vector("diag_laplace_kl")
    h, dw, s, eta = inputs["hess_diag"], inputs["dw"], inputs["s"], inputs["eta"]
    np.testing.assert_allclose(diagonal_laplace_sigma(h, s, eta), expected["sigma"], rtol=1e-13)
    assert diagonal_laplace_kl(h, dw, s, eta) == pytest.approx(expected["kl"], rel=1e-13)


def test_fisher_vector():
    """The vector's weights are not in the selection, but they enter as ||w0||^2/(2 s^2) alone."""
    inputs, expected = vector("fisher_laplace_kl")
    s, eta, values = inputs["s"], inputs["eta"], expected["lam"]
    spectral = fisher_laplace_kl(values, 0.0, s, eta)
    logdet = sum(math.log1p(eta * s**2 * v) for v in values)
    assert logdet == pytest.approx(expected["logdet"], rel=1e-8)
    norm = 2 * s**2 * (expected["kl"] - spectral)
    assert norm == pytest.approx(round(norm, 4), abs=1e-8)  # weights of one or two decimals
    assert fisher_laplace_kl(values, round(norm, 4), s, eta) == pytest.approx(expected["kl"], rel=1e-8)


def test_fisher_against_dense_algebra():
    rng = np.random.default_rng(0)
    jacobian, w, s, eta = rng.normal(size=(4, 9)), rng.normal(size=9), 0.7, 30.0
    fisher = jacobian.T @ jacobian / 4
    covariance = np.linalg.inv(eta * fisher + np.eye(9) / s**2)
    gram = np.linalg.eigvalsh(jacobian @ jacobian.T / 4)
    truth = dense_kl(w, covariance, s**2)
    assert fisher_laplace_kl(gram, w @ w, s, eta) == pytest.approx(truth, rel=1e-10)
    assert fisher_laplace_kl(np.linalg.eigvalsh(fisher), w @ w, s, eta) == pytest.approx(truth, rel=1e-10)


@PROPERTY
@given(
    st.lists(st.floats(-5, 1e4), min_size=1, max_size=6), st.floats(-3, 3), st.floats(1e-3, 10), st.floats(1e-9, 1e6)
)
def test_diagonal_is_the_gaussian_kl_at_its_own_sigma(h, distance, s, eta):
    sigma = diagonal_laplace_sigma(h, s, eta)
    want = kl_diag_gaussian(distance, sigma, 0.0, s)
    assert diagonal_laplace_kl(h, distance, s, eta) == pytest.approx(want, rel=1e-6, abs=1e-25)
    assert np.all(sigma <= s)


def test_small_curvature_keeps_its_digits():
    """ln(1 + a) - a/(1 + a) is a^2/2 - 2a^3/3 for small a; the plain difference gives 0 at 1e-9."""
    for a in (1e-12, 1e-9, 1e-5):
        assert fisher_laplace_kl([a], 0.0, 1.0, 1.0) == pytest.approx(a**2 / 4 - a**3 / 3, rel=1e-9)


def test_rounding_below_zero_is_forgiven_a_hessian_is_not():
    assert fisher_laplace_kl([-1e-9, 1.0], 0.0, 1.0, 1.0) == fisher_laplace_kl([0.0, 1.0], 0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"got eigenvalues down to -0\.1"):
        fisher_laplace_kl([-0.1, 1.0], 0.0, 1.0, 1.0)


def test_arrays():
    etas = np.array([1.0, 10.0, 100.0])
    assert np.all(np.diff(fisher_laplace_kl([0.3, 2.0], 1.0, 1.0, etas)) > 0)
    assert np.all(np.diff(diagonal_laplace_kl([0.3, 2.0], 1.0, 1.0, etas)) > 0)
    assert diagonal_laplace_sigma([0.3, 2.0], 1.0, etas).shape == (3, 2)
