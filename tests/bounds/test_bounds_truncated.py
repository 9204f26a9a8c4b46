"""Truncated Gaussian noise: the exact KL, and what the paper's closed form loses (errata W-f, W-g)."""

import math

import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import PROPERTY, vector
from hypothesis import given, strategies as st
from scipy.optimize import minimize

from flatminima.bounds import (
    hoeffding,
    kl_diag_gaussian,
    kl_truncated_gaussian,
    truncated_gaussian,
    truncated_gaussian_moments,
    truncated_gaussian_sigma,
)

INPUTS, EXPECTED = vector("wang_lemma4")
ARGS = tuple(INPUTS[k] for k in ("emp", "w", "hess_diag", "rho", "kappa", "tau", "n", "delta", "eta"))
SHAPE = tuple(INPUTS[k] for k in ("hess_diag", "rho", "kappa", "tau", "eta"))

problems = st.integers(1, 5).flatmap(
    lambda m: st.tuples(
        st.lists(st.floats(-0.4, 0.4), min_size=m, max_size=m),
        st.lists(st.floats(-20, 200), min_size=m, max_size=m),
        st.floats(0, 3),
        st.lists(st.floats(1e-2, 2), min_size=m, max_size=m),
        st.floats(1, 4),
        st.just(1000),
        st.just(0.05),
        st.floats(1, 1e4),
    )
)


def test_vector():
    corrected = truncated_gaussian_sigma(*SHAPE, variant="closed")
    appendix = truncated_gaussian_sigma(*SHAPE)
    np.testing.assert_allclose(corrected, EXPECTED["sigma_corrected"], rtol=1e-12)
    np.testing.assert_allclose(appendix, EXPECTED["sigma_paper_appendixE"], rtol=1e-12)
    np.testing.assert_allclose(truncated_gaussian_sigma(*SHAPE, variant="printed"), appendix, rtol=1e-15)
    inside, second = truncated_gaussian_moments(corrected, INPUTS["kappa"])
    assert inside == pytest.approx(EXPECTED["prob_inside"], rel=1e-12)
    np.testing.assert_allclose(second, EXPECTED["second_moments"], rtol=1e-12)
    kl = kl_truncated_gaussian(INPUTS["w"], corrected, INPUTS["kappa"], 1.0)
    assert kl == pytest.approx(EXPECTED["kl_truncated_exact"], rel=1e-12)
    untruncated = kl_diag_gaussian(INPUTS["w"], corrected, 0.0, 1.0)
    assert untruncated == pytest.approx(EXPECTED["kl_untruncated"], rel=1e-12)
    assert 2 * (untruncated + 1) == pytest.approx(EXPECTED["kl_cap_2KLplus1"], rel=1e-12)
    for key, options in {
        "bound_exact_at_sigma_appendixE": {},
        "bound_exact_truncated_kl": {"sigma": corrected},
        "bound_corrected": {"variant": "closed"},
        "bound_paper_UNPROVEN": {"variant": "printed"},
    }.items():
        assert truncated_gaussian(*ARGS, **options) == pytest.approx(EXPECTED[key], rel=1e-12), key


@pytest.mark.parametrize("sigma, kappa", [(1.0, 1.0), (0.3, 2.0), (5.0, 0.01), (1e4, 1e-3), (0.02, 3.0), (1.0, 1e-12)])
def test_moments_and_kl_against_quadrature(sigma, kappa):
    """1 - 2a phi(a)/Z loses all digits at a = kappa/sigma = 1e-8; the incomplete gammas keep them."""
    w, tau = 0.7, 1.3
    with mp.workdps(40):
        a, s, k = mp.mpf(kappa) / mp.mpf(sigma), mp.mpf(sigma), mp.mpf(kappa)
        mass = mp.erf(a / mp.sqrt(2))
        edges = [-k, -k / 8, 0, k / 8, k] if a > 8 else [-k, 0, k]

        def density(u):
            return mp.npdf(u, 0, s) / mass

        second = mp.quad(lambda u: u**2 * density(u), edges)
        kl = mp.quad(lambda u: density(u) * (mp.log(density(u)) - mp.log(mp.npdf(w + u, 0, mp.sqrt(tau)))), edges)
        got_mass, got_second = truncated_gaussian_moments(sigma, kappa)
        assert got_mass == pytest.approx(float(mass), rel=1e-13)
        assert got_second[0] == pytest.approx(float(second), rel=1e-13)
        assert kl_truncated_gaussian(w, sigma, kappa, tau) == pytest.approx(float(kl), rel=1e-12)


def test_untruncated_limit():
    w, sigma = np.array([0.5, -1.0]), np.array([0.1, 0.2])
    want = kl_diag_gaussian(w, sigma, 0.0, math.sqrt(1.7))
    assert kl_truncated_gaussian(w, sigma, 50.0, 1.7) == pytest.approx(want, rel=1e-14)


@PROPERTY
@given(problems)
def test_exact_is_at_most_corrected_is_at_most_closed(problem):
    """At the corrected sigma, which obeys the erf clip; ||w||^2 <= tau by construction of the problems."""
    sigma = truncated_gaussian_sigma(*(problem[i] for i in (1, 2, 3, 4, 7)), variant="closed")
    exact, corrected, closed = (
        truncated_gaussian(0.1, *problem, variant=v, sigma=sigma) for v in ("exact", "corrected", "closed")
    )
    assert exact <= corrected * (1 + 1e-12) <= closed * (1 + 1e-11) < math.inf


@PROPERTY
@given(problems, st.floats(0.05, 3))
def test_the_papers_factor_two_and_the_sharper_form_hold(problem, scale):
    """(12): KL of the truncated noise <= (KL + H_b(Z))/Z, and <= 2 (KL + 1) once Z >= 1/2."""
    w, kappa, tau = np.array(problem[0]), np.array(problem[3]), problem[4]
    sigma = scale * kappa
    inside, _ = truncated_gaussian_moments(sigma, kappa)
    kl = kl_diag_gaussian(w, sigma, 0.0, math.sqrt(tau))
    truncated = kl_truncated_gaussian(w, sigma, kappa, tau)
    entropy = -inside * math.log(inside) - (1 - inside) * math.log1p(-inside) if inside < 1 else 0.0
    assert truncated <= (kl + entropy) / inside * (1 + 1e-12)
    if inside >= 0.5:
        assert truncated <= 2 * (kl + 1)


def test_printed_form_is_below_the_bound_of_its_own_posterior():
    """Erratum W-g at m = 1, w^2 = tau: (15) lies ln(2)/eta below the exact value, so it cannot be right."""
    from scipy.special import erfinv

    kappa = math.sqrt(2) * float(erfinv(0.5))  # P(|u| < kappa) = 1/2 at sigma = 1
    args = (0.1, [1.0], [0.0], 0.0, kappa, 1.0, 1000, 0.05, 10.0)
    exact = truncated_gaussian(*args, sigma=1.0)
    printed = truncated_gaussian(*args, variant="printed", sigma=1.0)
    assert exact - printed == pytest.approx(math.log(2) / 10, rel=1e-10)
    assert exact <= truncated_gaussian(*args, variant="closed", sigma=1.0)


@pytest.mark.parametrize("m", [1, 2, 100])
def test_erf_clip(m):
    """Erratum W-f: the corrected clip keeps P >= 1/2; the printed one allows P = (1/(2m))^m."""
    flat = ([0.0] * m, 0.0, 1e-3, 1.0, 1.0)
    inside, _ = truncated_gaussian_moments(truncated_gaussian_sigma(*flat, variant="closed"), 1e-3)
    assert inside * (1 + 1e-12) >= 0.5
    printed, _ = truncated_gaussian_moments(truncated_gaussian_sigma(*flat, variant="printed"), 1e-3)
    assert printed == pytest.approx((1 / (2 * m)) ** m, rel=1e-10)


def test_conditions_of_the_closed_forms():
    wide = (0.1, [2.0, 0.0], [1.0, 1.0], 0.1, 0.5, 1.0, 1000, 0.05, 10.0)  # ||w||^2 = 4 > tau = 1
    assert truncated_gaussian(*wide, variant="corrected") == math.inf
    assert truncated_gaussian(*wide, variant="closed") == math.inf
    assert truncated_gaussian(*wide) < math.inf
    assert truncated_gaussian(*ARGS, variant="corrected", sigma=1.0) == math.inf  # P(inside) < 1/2
    assert truncated_gaussian(*ARGS, variant="closed", sigma=0.2) == math.inf
    assert truncated_gaussian(*ARGS, sigma=1.0) < math.inf


def test_exact_variant_written_out():
    risk, w, h, rho, kappa, tau, n, delta, eta = ARGS
    sigma = truncated_gaussian_sigma(*SHAPE)
    _, second = truncated_gaussian_moments(sigma, kappa)
    increase = (np.array(h) / 2 + rho * math.sqrt(3) * np.array(kappa) / 6) @ second
    want = hoeffding(0.0, kl_truncated_gaussian(w, sigma, kappa, tau), n, delta, eta) + risk + increase
    assert truncated_gaussian(*ARGS) == pytest.approx(want, rel=1e-14)
    assert truncated_gaussian(*ARGS, tight=True) == pytest.approx(want - 3 / 8 * eta / n, rel=1e-13)


def test_corrected_variant_written_out():
    """(14) with the factor that the paper drops: 2 (KL + 1) of the untruncated noise, equal at ||w||^2 = tau."""
    risk, h, rho, kappa, n, delta, eta = 0.1, np.array([2.0, 5.0]), 0.2, np.array([0.5, 0.6]), 5000, 0.05, 100.0
    w, tau, sigma = np.array([0.6, 0.8]), 1.0, np.array([0.1, 0.05])
    kl = 2 * (kl_diag_gaussian(w, sigma, 0.0, 1.0) + 1)
    increase = (h / 2 + rho * math.sqrt(2) * kappa / 6) @ sigma**2
    got = truncated_gaussian(risk, w, h, rho, kappa, tau, n, delta, eta, variant="corrected", sigma=sigma)
    assert got == pytest.approx(hoeffding(risk, kl, n, delta, eta) + increase, rel=1e-13)


def test_default_sigma_is_near_the_numeric_optimum():
    """The sheet's claim: .1720225 against .1720 by numeric minimisation."""

    def objective(log_sigma):
        return truncated_gaussian(*ARGS, sigma=np.exp(log_sigma))

    found = minimize(objective, np.log(truncated_gaussian_sigma(*SHAPE)), method="BFGS")
    assert found.fun <= truncated_gaussian(*ARGS) <= found.fun + 3e-5


def test_negative_curvature_keeps_sigma_at_the_priors_scale():
    sigma = truncated_gaussian_sigma([-100.0, 3.0], 0.0, 0.1, 4.0, 10.0)
    np.testing.assert_allclose(sigma, [2.0, (30 + 0.25) ** -0.5], rtol=1e-15)


def test_a_grid_of_networks_at_once():
    rng = np.random.default_rng(0)
    h, w, risk = rng.uniform(0, 9, (4, 3, 2)), rng.uniform(-0.3, 0.3, (4, 3, 2)), rng.uniform(0, 1, (4, 3))
    for variant in ("exact", "corrected", "closed", "printed"):
        table = truncated_gaussian(risk, w, h, 0.1, 0.5, 1.0, 100, 0.05, 39.0, variant=variant)
        one = truncated_gaussian(risk[2, 1], w[2, 1], h[2, 1], 0.1, 0.5, 1.0, 100, 0.05, 39.0, variant=variant)
        assert table.shape == (4, 3) and table[2, 1] == pytest.approx(one, rel=1e-14)
    sigmas = np.array([[0.01, 0.01], [0.1, 0.1]])
    assert truncated_gaussian(0.1, w[0, 0], h[0, 0], 0.1, 0.5, 1.0, 100, 0.05, 39.0, sigma=sigmas).shape == (2,)
