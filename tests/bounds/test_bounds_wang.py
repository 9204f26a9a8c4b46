"""Uniform noise (W1 Lemma 3, Theorem 2) and the top-eigenvalue lemma: optimality, order, and the invalid constant."""

import math

import numpy as np
import pytest
from bounds_oracle import PROPERTY, vector
from hypothesis import given, strategies as st
from scipy.optimize import minimize

from flatminima.bounds import (
    gaussian_noise_moments,
    hoeffding,
    hoeffding_grid,
    kl_uniform,
    lambda_max,
    noise_third_moment,
    uniform_noise_moments,
    uniform_perturbation,
    uniform_perturbation_grid,
    uniform_perturbation_printed,
    uniform_perturbation_simplified,
    uniform_sigma,
)

problems = st.integers(1, 6).flatmap(
    lambda m: st.tuples(
        st.lists(st.floats(-50, 500), min_size=m, max_size=m),
        st.floats(0, 5),
        st.lists(st.floats(1e-3, 2), min_size=m, max_size=m),
        st.floats(2, 10),
    )
)


def neighbourhood(inputs):
    return inputs["gamma"] * np.abs(inputs["w"]) + inputs["epsilon"]


def test_sigma_vector_with_negative_curvature():
    inputs, expected = vector("wang_sigma_negative_curvature")
    sigma = uniform_sigma(
        inputs["hess_diag"],
        inputs["rho"],
        neighbourhood(inputs),
        inputs["eta"],
    )
    np.testing.assert_allclose(sigma, expected["sigma_star"], rtol=1e-13)


def test_theorem_2_vector():
    inputs, expected = vector("wang_thm2_corrected")
    kappa, n, m = neighbourhood(inputs), inputs["n"], len(inputs["w"])
    head = (inputs["emp"], inputs["hess_diag"], inputs["rho"], kappa, inputs["tau"], n, inputs["delta"])
    sigma = uniform_sigma(inputs["hess_diag"], inputs["rho"], kappa, math.sqrt(m * n))
    np.testing.assert_allclose(sigma, expected["sigma_check"], rtol=1e-13)
    assert kl_uniform(inputs["tau"], sigma) == pytest.approx(expected["K"], rel=1e-13)
    assert uniform_perturbation_grid(*head, distance=inputs["w"]) == pytest.approx(expected["bound"], rel=1e-12)
    tight = uniform_perturbation_grid(*head, distance=inputs["w"], tight=True)
    assert tight == pytest.approx(expected["bound_tight_eta8n"], rel=1e-12)
    printed = uniform_perturbation_printed(*head) - inputs["emp"] - expected["half_sqrt_m_over_n"]
    assert printed == pytest.approx(expected["paper_appendixD_INVALID_complexity"], rel=1e-12)


def test_lemma_3_written_out():
    """(7) and (8) by hand, coordinate by coordinate, with one coordinate clipped."""
    h, rho, kappa, tau, n, delta, eta = [4.0, 0.1], 0.5, [0.3, 0.2], 2.0, 500, 0.05, 50.0
    a = [h[i] / 3 + rho * math.sqrt(2) * kappa[i] / 9 for i in range(2)]
    sigma = [min(1 / math.sqrt(eta * a[i]), kappa[i]) for i in range(2)]
    assert sigma[0] < kappa[0] and sigma[1] == kappa[1]
    kl = sum(math.log(tau / s) for s in sigma)
    tail = (kl + math.log(1 / delta)) / eta + eta / (2 * n)
    seven = 0.1 + sum((h[i] / 6 + rho * math.sqrt(2) * kappa[i] / 18) * sigma[i] ** 2 for i in range(2)) + tail
    eight = 0.1 + (2 / 2) / eta + tail
    args = (0.1, h, rho, kappa, tau, n, delta, eta)
    assert uniform_perturbation(*args) == pytest.approx(seven, rel=1e-14)
    assert uniform_perturbation_simplified(*args) == pytest.approx(eight, rel=1e-14)
    saved = 3 / 8 * eta / n
    assert uniform_perturbation(*args, tight=True) == pytest.approx(seven - saved, rel=1e-13)


@PROPERTY
@given(problems, st.floats(0.1, 1e4))
def test_the_default_is_at_most_the_papers_simpler_form(problem, eta):
    h, rho, kappa, tau = problem
    args = (0.1, h, rho, kappa, tau, 1000, 0.05, eta)
    assert uniform_perturbation(*args) <= uniform_perturbation_simplified(*args) * (1 + 1e-12)


def test_both_forms_agree_where_nothing_is_clipped():
    args = (0.1, [50.0, 80.0, 60.0], 0.3, 1.0, 3.0, 1000, 0.05, 100.0)
    assert np.all(uniform_sigma(args[1], 0.3, 1.0, 100.0) < 1.0)
    assert uniform_perturbation(*args) == pytest.approx(uniform_perturbation_simplified(*args), rel=1e-14)


@PROPERTY
@given(problems, st.floats(0.1, 1e4), st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_no_other_sigma_in_the_box_is_better(problem, eta, shrink):
    h, rho, kappa, tau = problem
    sigma = np.array(kappa) * shrink[: len(kappa)]
    args = (0.1, h, rho, kappa, tau, 1000, 0.05, eta)
    assert uniform_perturbation(*args) <= uniform_perturbation(*args, sigma=sigma) * (1 + 1e-12)


def test_numeric_minimisation_agrees_with_sigma_star():
    h, rho, kappa, tau, eta = np.array([3.0, 0.2, 40.0]), 0.4, np.array([0.5, 0.3, 0.4]), 2.0, 80.0
    args = (0.1, h, rho, kappa, tau, 1000, 0.05, eta)

    def objective(log_sigma):
        return uniform_perturbation(*args, sigma=np.exp(log_sigma))

    bounds = [(-12, math.log(k)) for k in kappa]
    found = minimize(objective, np.log(kappa / 2), bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15})
    assert uniform_perturbation(*args) == pytest.approx(found.fun, rel=1e-10)
    np.testing.assert_allclose(np.exp(found.x), uniform_sigma(h, rho, kappa, eta), rtol=1e-3)


def test_outside_the_neighbourhood_or_the_prior_there_is_no_bound():
    args = (0.1, [1.0, 1.0], 0.0, 0.5, 2.0, 1000, 0.05, 1.0)
    assert uniform_perturbation(*args, sigma=0.6) == math.inf
    assert uniform_perturbation(*args, distance=[0.0, 1.6]) == math.inf
    assert uniform_perturbation_simplified(*args, distance=1.6) == math.inf
    assert uniform_perturbation_grid(*args[:7], distance=1.9) == math.inf
    assert uniform_perturbation(*args, distance=1.5) < math.inf


def test_flat_coordinates_without_rho_take_all_of_kappa():
    np.testing.assert_array_equal(uniform_sigma([0.0, -1.0], 0.0, [0.1, 0.2], 10.0), [0.1, 0.2])


def test_a_grid_of_networks_at_once():
    """The bound over a loss surface: parameters on the last axis, everything else broadcasts."""
    rng = np.random.default_rng(0)
    h, risk = rng.uniform(0, 9, (4, 3, 2)), rng.uniform(0, 1, (4, 3))
    table = uniform_perturbation(risk, h, 0.2, 0.5, 2.0, 100, 0.05, 39.0)
    assert table.shape == (4, 3)
    assert table[2, 1] == pytest.approx(uniform_perturbation(risk[2, 1], h[2, 1], 0.2, 0.5, 2.0, 100, 0.05, 39.0))
    etas = uniform_perturbation(0.1, h[0, 0], 0.2, 0.5, 2.0, 100, 0.05, np.array([1.0, 39.0, 1000.0]))
    assert etas.shape == (3,)
    assert uniform_perturbation_grid(risk, h, 0.2, 0.5, 2.0, 100, 0.05).shape == (4, 3)


def complexities(kl, delta, n=1000):
    """(printed complexity of Theorem 2, K) through the public function: m = 1, sigma = kappa = 1, ln tau = K."""
    args = (0.0, [0.0], 0.0, 1.0, math.exp(kl), n, delta)
    return uniform_perturbation_printed(*args) - math.sqrt(1 / n) / 2


@pytest.mark.parametrize("kl", [0.0, 0.3, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-6])
def test_printed_theorem_2_is_below_the_bound_at_every_eta(kl, delta):
    """Erratum W-d: 1 + 1/e < 2, so no eta of the paper's own Theorem 1 attains the printed value."""
    every_eta = hoeffding(0.0, kl, 1000, delta, np.geomspace(1e-1, 1e6, 2000)).min()
    assert complexities(kl, delta) < every_eta


def test_printed_theorem_2_is_rescued_by_hoeffdings_lemma():
    """Not in the paper or the sheet: the tight grid (c = 1/8) lies below the printed value everywhere.

    So the number that Theorem 2 prints is a true bound for losses in [0, 1], for a reason its proof does not have.
    The ratio depends on K and delta alone; 0.852 is its maximum, near delta = 1.
    """
    kl = np.concatenate([[0.0], np.geomspace(1e-6, 1e14, 1200)])[:, None]
    delta = np.concatenate([np.geomspace(1e-15, 0.999, 120), 1 - np.geomspace(1e-12, 1e-3, 40)])[None, :]
    inverse = -np.log(delta)
    effective = kl + inverse + math.log(2) / 2 * (2 + np.log1p(kl / inverse))
    printed = (1 + 1 / math.e) * np.sqrt(effective / 2)
    assert printed[500, 60] == pytest.approx(complexities(kl[500, 0], delta[0, 60], n=1), rel=1e-6)
    assert (hoeffding_grid(0.0, kl, 1, delta, tight=True) / printed).max() < 0.86
    assert (hoeffding_grid(0.0, kl, 1, delta) / printed)[:, delta[0] < 0.9].min() > 1


def test_theorem_2_taylor_term_is_at_most_half_root_m_over_n():
    rng = np.random.default_rng(1)
    for m, n in ((1, 10), (7, 500), (40, 20)):
        h, kappa = rng.uniform(-5, 300, m), rng.uniform(0.01, 1, m)
        bound = uniform_perturbation_grid(0.0, h, 0.3, kappa, 3.0, n, 0.05)
        kl = kl_uniform(3.0, uniform_sigma(h, 0.3, kappa, math.sqrt(m * n)))
        assert bound - hoeffding_grid(0.0, kl, n, 0.05) <= math.sqrt(m / n) / 2 * (1 + 1e-12)


def test_uniform_noise_moments_and_the_papers_third_moment():
    """E||u||^3 sampled: below Cauchy-Schwarz, below the paper's sqrt(m) sum kappa sigma^2/3."""
    rng = np.random.default_rng(2)
    kappa = np.array([0.5, 0.1, 0.9, 0.3])
    sigma = 0.7 * kappa
    norm = np.linalg.norm(rng.uniform(-sigma, sigma, (200_000, 4)), axis=1)
    second, fourth = uniform_noise_moments(sigma)
    for power, value in ((2, second), (4, fourth)):
        draws = norm**power
        assert abs(draws.mean() - value) < 4 * draws.std() / math.sqrt(len(draws))
    third = (norm**3).mean()
    assert third < noise_third_moment(second, fourth)
    assert noise_third_moment(second, fourth) < math.sqrt(4) * (kappa * sigma**2).sum() / 3


def test_gaussian_noise_moments_sampled():
    rng = np.random.default_rng(3)
    sigma = np.array([0.5, 0.1, 0.9])
    square = (rng.normal(0, sigma, (200_000, 3)) ** 2).sum(axis=1)
    for draws, value in zip((square, square**2), gaussian_noise_moments(sigma), strict=True):
        assert abs(draws.mean() - value) < 4 * draws.std() / math.sqrt(len(draws))


def test_taylor_terms_bound_the_increase_of_a_cubic():
    """A function with a known Hessian-Lipschitz constant: f = h.u^2/2 + rho/6 sum u_i^3 stays under (7)'s terms."""
    rng = np.random.default_rng(4)
    h, rho, kappa = np.array([2.0, 0.5]), 3.0, np.array([0.4, 0.6])
    sigma = uniform_sigma(h, rho, kappa, 5.0)
    u = rng.uniform(-sigma, sigma, (400_000, 2))
    increase = (h * u**2).sum(axis=1) / 2 + rho / 6 * np.abs(u**3).sum(axis=1)
    args = (0.0, h, rho, kappa, 2.0, 1000, 0.05, 5.0)
    terms = uniform_perturbation(*args) - hoeffding(0.0, kl_uniform(2.0, sigma), 1000, 0.05, 5.0)
    assert increase.mean() < terms


def test_lambda_max_written_out():
    got = lambda_max(0.1, 4.0, 0.02, 0.003, 2.0, 5.0, 1000, 0.05, 100.0)
    want = 0.1 + 4 * 0.02 / 2 + 2 * 0.003 / 6 + (5 + math.log(20)) / 100 + 100 / 2000
    assert got == pytest.approx(want, rel=1e-14)
    assert lambda_max(0.1, 4.0, 0.02, 0.003, 2.0, 5.0, 1000, 0.05, 100.0, tight=True) == pytest.approx(
        want - 3 / 8 * 0.1, rel=1e-13
    )


def test_lambda_max_never_beats_the_diagonal_on_independent_noise():
    """h_i <= lambda_max, so with the same noise, moments and KL the diagonal form is smaller."""
    h, kappa, eta = np.array([5.0, 1.0, 0.1]), 1.0, 20.0
    sigma = uniform_sigma(h, 0.0, kappa, eta)
    second, _ = uniform_noise_moments(sigma)
    bound = lambda_max(0.1, 5.0, second, 0.0, 0.0, kl_uniform(3.0, sigma), 1000, 0.05, eta)
    assert uniform_perturbation(0.1, h, 0.0, kappa, 3.0, 1000, 0.05, eta) < bound
