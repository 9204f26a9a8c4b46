"""Hold-out and Monte-Carlo bounds: vectors, exact coverage, and the published MNIST arithmetic."""

import math

import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import PROPERTY, exact, vector, vector_names
from hypothesis import given, strategies as st
from scipy.stats import binom

from flatminima.bounds import binomial_tail_inverse, holdout_kl, kl_inverse, mc_certificate, monte_carlo_risk


@pytest.mark.parametrize("name", vector_names("binomial_tail_inverse_"))
def test_holdout_vectors(name):
    inputs, expected = vector(name)
    assert binomial_tail_inverse(**inputs) == pytest.approx(expected["value"], rel=1e-11)
    risk = inputs["k"] / inputs["n"]
    assert holdout_kl(risk, inputs["n"], inputs["delta"]) == pytest.approx(expected["kl_relaxation"], rel=1e-12)


@pytest.mark.parametrize("name", vector_names("mc_certificate_"))
def test_certificate_vectors(name):
    inputs, expected = vector(name)
    draws, delta_mc, rest = inputs["T"], inputs["delta_mc"], (inputs["kl"], inputs["n"], inputs["delta"])
    for share, label in ((delta_mc, "one_sided"), (delta_mc / 2, "two_sided_PBB")):
        upper = monte_carlo_risk(inputs["phat"], draws, share)
        assert upper == pytest.approx(expected[f"emp_upper_{label}"], rel=1e-12)
        value = mc_certificate(inputs["phat"], draws, share, *rest)
        assert value == pytest.approx(expected[f"certificate_{label}"], rel=1e-12)


@pytest.mark.parametrize("name", vector_names("target_"))
def test_target_vectors(name):
    inputs, expected = vector(name)
    args = [inputs[key] for key in ("emp", "mc", "delta_mc", "kl", "n", "delta")]
    assert mc_certificate(*args) == pytest.approx(expected["certificate"], rel=1e-12)


def lower_tail(k, n, p):
    """P(Bin(n, p) <= k), summed term by term."""
    term = (1 - p) ** n
    total = term
    for i in range(k):
        term *= mp.mpf(n - i) / (i + 1) * p / (1 - p)
        total += term
    return total


BINOMIAL = [(1, 2), (3, 10), (9, 10), (90, 9_000), (90, 10_000), (700, 5_000), (1, 10**6), (20, 10**7), (100, 10**8)]
BINOMIAL += [(1, 10**9), (5, 10**9), (30, 10**9), (101, 10**9), (300, 10**9)]


@pytest.mark.parametrize("k, n", BINOMIAL)
@pytest.mark.parametrize("delta", [1e-12, 0.035, 0.9])
def test_binomial_against_the_summed_tail(k, n, delta):
    """Outward: the tail at the answer is at most delta; 2e-12 further inside it is at least delta.

    scipy's inverse alone fails: 1e-8 inside at k = 1, n = 1e9.
    """
    with mp.workdps(50):
        p = exact(binomial_tail_inverse(k, n, delta))
        assert p == 1 or lower_tail(k, n, p) <= exact(delta)
        assert exact(delta) <= lower_tail(k, n, p * (1 - mp.mpf("2e-12")))


def test_binomial_in_closed_form():
    n = np.array([1, 10, 10**9])
    np.testing.assert_allclose(binomial_tail_inverse(0, n, 0.05), -np.expm1(math.log(0.05) / n), rtol=2e-12)
    np.testing.assert_array_equal(binomial_tail_inverse(n, n, 0.05), 1.0)
    assert type(binomial_tail_inverse(3, 10, 0.05)) is float


@pytest.mark.parametrize("delta", [0.01, 0.2])
def test_binomial_coverage_is_exact(delta):
    """Summed over all outcomes, not sampled: the bound fails with probability at most delta, at any error rate."""
    n = 60
    k = np.arange(n + 1)
    bound = binomial_tail_inverse(k, n, delta)
    worst = max(binom.pmf(k, n, p)[bound < p].sum() for p in np.linspace(0.001, 0.999, 999))
    assert 0.9 * delta < worst <= delta


def test_kl_holdout_coverage_is_exact():
    n, delta = 60, 0.05
    k = np.arange(n + 1)
    bound = holdout_kl(k / n, n, delta)
    assert max(binom.pmf(k, n, p)[bound < p].sum() for p in np.linspace(0.001, 0.999, 999)) <= delta


def test_binomial_coverage_sampled():
    """1,000 held-out sets; 4 standard errors of room, since this bound spends all of its delta."""
    rng = np.random.default_rng(7)
    risk, n, delta = 0.07, 500, 0.1
    failures = (risk > binomial_tail_inverse(rng.binomial(n, risk, 1000), n, delta)).mean()
    assert failures <= delta + 4 * math.sqrt(delta * (1 - delta) / 1000)


@PROPERTY
@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(1e-9, 0.5))
def test_binomial_lies_between_the_rate_and_the_kl_relaxation(n, share, delta):
    k = int(share * n)
    assert k / n <= binomial_tail_inverse(k, n, delta) <= holdout_kl(k / n, n, delta) * (1 + 2e-12)


@PROPERTY
@given(st.floats(0, 1), st.integers(1, 10**6), st.floats(1e-9, 0.99), st.floats(0, 1e6), st.integers(8, 10**6))
def test_certificate_composes_both_steps(empirical, draws, delta_mc, kl, n):
    delta = 0.02
    upper = monte_carlo_risk(empirical, draws, delta_mc)
    value = mc_certificate(empirical, draws, delta_mc, kl, n, delta)
    assert empirical <= upper <= value <= 1
    assert value == pytest.approx(kl_inverse(upper, (kl + math.log(2 * math.sqrt(n) / delta)) / n), rel=1e-12)
    assert mc_certificate(empirical, 10 * draws, delta_mc, kl, n, delta) <= value
