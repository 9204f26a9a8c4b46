"""KL divergences between distributions of weights, and the price of choosing a prior from a grid."""

import math

import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import PROPERTY, exact, vector
from hypothesis import given, strategies as st

from flatminima.bounds import (
    bicriteria_kl,
    kl_diag_gaussian,
    kl_scaled_noise_fixed_prior,
    kl_uniform,
    prior_scale_penalty,
    prior_variance_penalty,
)


def test_vectors():
    inputs, expected = vector("kl_uniform")
    assert kl_uniform(**inputs) == pytest.approx(expected["value"], rel=1e-14)
    inputs, expected = vector("kl_diag_gaussian")
    assert kl_diag_gaussian(**inputs) == pytest.approx(expected["value"], rel=1e-14)
    inputs, expected = vector("dziugaite_roy_prior_union")
    penalty = prior_variance_penalty(inputs["lam"], inputs["b"], inputs["c"])
    assert inputs["kl"] + penalty - math.log(inputs["delta"]) == pytest.approx(expected["penalised"], rel=1e-13)


def gaussian_kl(mu, sigma, mu0, sigma0):
    terms = (
        mp.log(exact(b) / exact(a)) + (exact(a) ** 2 + (exact(m) - exact(c)) ** 2) / (2 * exact(b) ** 2) - mp.mpf(1) / 2
        for m, a, c, b in zip(mu, sigma, mu0, sigma0, strict=True)
    )
    return sum(terms)


def test_gaussian_against_mpmath_also_near_the_prior():
    """ln(s0/s) + s^2/(2 s0^2) - 1/2 loses all digits at s = s0 (1 + 1e-8)."""
    rng = np.random.default_rng(0)
    with mp.workdps(60):
        for shift in (1e-12, 1e-8, 1e-3, 0.3, 0.9):
            mu0, sigma0 = rng.normal(size=5), rng.uniform(0.1, 3, 5)
            sigma = sigma0 * (1 + shift * rng.choice([-1, 1], 5))
            mu = mu0 + shift * rng.normal(size=5)
            truth = gaussian_kl(mu, sigma, mu0, sigma0)
            assert kl_diag_gaussian(mu, sigma, mu0, sigma0) == pytest.approx(float(truth), rel=1e-12, abs=0)
        truth = gaussian_kl([0.5], [1e-9], [-2.0], [1e3])
        assert kl_diag_gaussian(0.5, 1e-9, -2.0, 1e3) == pytest.approx(float(truth), rel=1e-13)


def test_gaussian_of_itself_is_zero():
    assert kl_diag_gaussian([0.3, -2.0], [0.1, 4.0], [0.3, -2.0], [0.1, 4.0]) == 0


@PROPERTY
@given(st.floats(-5, 5), st.floats(1e-6, 1e6), st.floats(-5, 5), st.floats(1e-6, 1e6))
def test_gaussian_is_never_negative(mu, sigma, mu0, sigma0):
    assert kl_diag_gaussian(mu, sigma, mu0, sigma0) >= 0


def test_uniform_is_infinite_outside_the_prior():
    assert kl_uniform([1.0, 1.0], 0.5, [0.5, -0.5]) == pytest.approx(2 * math.log(2))
    assert kl_uniform([1.0, 1.0], 0.5, [0.0, -0.51]) == math.inf
    assert kl_uniform(1.0, 2.0) == math.inf
    assert kl_uniform(3.0, 3.0) == 0
    np.testing.assert_array_equal(kl_uniform(1.0, [[0.5], [1.5]]), [math.log(2), math.inf])


def test_scaled_noise_has_a_fixed_prior():
    """Erratum N-c: the paper's KL drops to a value that no fixed prior reaches, as alpha grows."""
    w, alpha = np.array([1.0, -2.0, 0.1, 0.0]), 0.1
    sigma = alpha * (10 * np.abs(w) + 1)
    fixed = [kl_scaled_noise_fixed_prior(w, sigma, s) for s in np.geomspace(0.01, 100, 400)]
    with mp.workdps(40):
        truth = gaussian_kl(w, sigma, np.zeros(4), np.full(4, 1.7))
        assert kl_scaled_noise_fixed_prior(w, sigma, 1.7) == pytest.approx(float(truth), rel=1e-13)
    assert bicriteria_kl(w, alpha) < min(fixed)


def test_prior_penalties_come_from_weights_that_sum_to_at_most_one():
    j = np.arange(1, 200_001)
    weights = np.exp(-prior_variance_penalty(0.1 * np.exp(-j / 1e4), precision=1e4))
    assert 1 - 1e-5 < weights.sum() <= 1
    assert np.exp(-prior_scale_penalty(np.arange(60)[:, None])).sum() == pytest.approx(1.0, abs=1e-15)
    assert prior_scale_penalty([[0, 0], [1, 2]]).tolist() == pytest.approx([2 * math.log(2), 5 * math.log(2)])
