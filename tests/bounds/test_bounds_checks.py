"""Every rule and every message: seen, expected, remedy, on one line."""

import inspect
import math

import numpy as np
import pytest

from flatminima import bounds
from flatminima.bounds._checks import SYMBOLS
from flatminima.errors import UsageError

GOOD = {
    "active_frobenius": [1.0, 1.0],
    "frobenius": [1.0, 1.0],
    "widths": [2, 2, 2],
    "exponents": [0, 1],
    "prior_variance": 0.1 * math.exp(-0.03),
    "precision": 100.0,
    "scale": 0.1,
    "k": 2,
    "n": 100,
    "draws": 10,
    "n_params": 3,
    "delta": 0.05,
    "delta_mc": 0.05,
    "p_min": 1e-5,
    "smoothness": 0.5,
}
# for every rule, a function that takes the argument, and a value that breaks the rule
BROKEN = {
    "active_frobenius": (bounds.neyshabur_score, [1.0, 0.0]),
    "alpha": (bounds.bicriteria_kl, 0.0),
    "beta": (bounds.catoni, 0.0),
    "c": (bounds.kl_inverse, -1e-9),
    "c2": (bounds.neyshabur_score, 0.0),
    "c3": (bounds.neyshabur_score, -1.0),
    "delta": (bounds.pac_bayes_kl, 1.0),
    "delta_mc": (bounds.monte_carlo_risk, 0.0),
    "distance": (bounds.kl_uniform, math.inf),
    "distance_squared": (bounds.fisher_laplace_kl, -1.0),
    "draws": (bounds.monte_carlo_risk, 0),
    "eigenvalues": (bounds.fisher_laplace_kl, math.nan),
    "empirical": (bounds.mc_certificate, 1.01),
    "eta": (bounds.hoeffding, 0.0),
    "exponents": (bounds.prior_scale_penalty, -1),
    "fourth_moment": (bounds.noise_third_moment, -1.0),
    "frobenius": (bounds.neyshabur_score, [0.0, 1.0]),
    "hessian_diag": (bounds.uniform_sigma, [1.0, math.nan]),
    "k": (bounds.binomial_tail_inverse, 0.5),
    "kappa": (bounds.uniform_sigma, 0.0),
    "kl": (bounds.pac_bayes_kl, -1e-9),
    "lam": (bounds.lambda_bound, 2.0),
    "lipschitz": (bounds.neyshabur_score, 0.0),
    "logdet": (bounds.jia_su, -math.inf),
    "loss": (bounds.jia_su, -0.1),
    "mu": (bounds.kl_diag_gaussian, math.nan),
    "mu0": (bounds.kl_diag_gaussian, math.inf),
    "n": (bounds.hoeffding, 0),
    "n_params": (bounds.jia_su_excess, 0),
    "norm_squared": (bounds.neyshabur_8, -1.0),
    "output_norm": (bounds.neyshabur_score, -1.0),
    "p": (bounds.binary_kl, 1.5),
    "p_min": (bounds.bounded_cross_entropy, 0.0),
    "precision": (bounds.prior_variance_penalty, 0.0),
    "prior_sigma": (bounds.diagonal_laplace_kl, 0.0),
    "prior_variance": (bounds.prior_variance_penalty, 0.0),
    "probability": (bounds.smooth_cross_entropy, -0.1),
    "q": (bounds.kl_inverse_lower, math.nan),
    "rho": (bounds.lambda_max, -1.0),
    "risk": (bounds.pac_bayes_kl, 1.01),
    "scale": (bounds.prior_variance_penalty, math.inf),
    "second_moment": (bounds.lambda_max, -1.0),
    "sharpness": (bounds.neyshabur_8, math.nan),
    "sigma": (bounds.kl_uniform, 0.0),
    "sigma0": (bounds.kl_diag_gaussian, -1.0),
    "smoothness": (bounds.neyshabur_score, 0.0),
    "tau": (bounds.kl_uniform, 0.0),
    "third_moment": (bounds.lambda_max, -1.0),
    "top_eigenvalue": (bounds.lambda_max, math.nan),
    "volume": (bounds.jia_su, 0.0),
    "weights": (bounds.truncated_gaussian, math.nan),
    "widths": (bounds.neyshabur_score, [2, 0, 2]),
}


def call(function, **changes):
    """`function` with good values for all its required arguments, but for `changes`."""
    required = [n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty]
    return function(**{name: GOOD.get(name, 0.5) for name in required} | changes)


def test_every_rule_has_a_case():
    assert sorted(BROKEN) == sorted(SYMBOLS)


@pytest.mark.parametrize("rule", BROKEN)
def test_every_rule_is_reached(rule):
    function, value = BROKEN[rule]
    name = "risk" if rule == "loss" else rule
    with pytest.raises(UsageError) as caught:
        call(function, **{name: value})
    message = str(caught.value)
    assert message.startswith(f"got {name}") and "\n" not in message
    assert f"expected {SYMBOLS[rule].expected}: {SYMBOLS[rule].remedy}" in message


@pytest.mark.parametrize("name", bounds.__all__)
def test_good_values_pass_and_nan_never_does(name):
    """One NaN in any argument of any function raises; it is never averaged in."""
    function = getattr(bounds, name)
    call(function)
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty:
            with pytest.raises(UsageError, match=f"got {argument}"):
                call(function, **{argument: math.nan})


@pytest.mark.parametrize("function", [bounds.pac_bayes_kl, bounds.mcallester, bounds.quadratic, bounds.optimal_lambda])
def test_maurers_bounds_need_eight_samples(function):
    call(function, n=8)
    with pytest.raises(UsageError, match=r"got n = 7.0; expected a whole number of at least 8: with fewer samples"):
        call(function, n=7)


@pytest.mark.parametrize("function", [bounds.neyshabur_5, bounds.neyshabur_6, bounds.neyshabur_8, bounds.jia_su])
def test_bounds_over_n_minus_one_need_two(function):
    call(function, n=2)
    with pytest.raises(UsageError, match=r"expected a whole number of at least 2: this bound divides by n - 1"):
        call(function, n=1)


def test_the_first_bad_entry_is_named():
    with pytest.raises(UsageError, match=r"got risk\[1, 0\] = 1.5; expected a number in \[0, 1\]"):
        bounds.mcallester([[0.1, 0.2], [1.5, 2.0]], 1.0, 100, 0.05)


@pytest.mark.parametrize("value", ["half", None, object(), {}, 1j])
def test_what_is_no_number(value):
    with pytest.raises(UsageError, match="got risk = "):
        bounds.pac_bayes_kl(value, 1.0, 100, 0.05)


def test_fractions_of_samples():
    with pytest.raises(UsageError, match=r"got n = 99.5; expected a whole number"):
        bounds.hoeffding(0.1, 1.0, 99.5, 0.05, 1.0)
    with pytest.raises(UsageError, match="got n = inf"):
        bounds.hoeffding(0.1, 1.0, math.inf, 0.05, 1.0)


def test_shapes_that_do_not_broadcast():
    with pytest.raises(UsageError, match=r"got shapes risk \(2,\), kl \(3,\).*: make them equal"):
        bounds.pac_bayes_kl([0.1, 0.2], [1, 2, 3], 100, 0.05)
    with pytest.raises(UsageError, match=r"got shapes risk \(2,\).*parameters without their last axis \(4,\)"):
        bounds.uniform_perturbation([0.1, 0.2], np.ones((4, 3)), 0.0, 1.0, 2.0, 100, 0.05, 1.0)
    with pytest.raises(UsageError, match=r"got shapes sigma \(2,\), kappa \(3,\)"):
        bounds.truncated_gaussian(0.1, np.ones(3), np.ones(3), 0.0, 1.0, 2.0, 100, 0.05, 1.0, sigma=[0.1, 0.1])


def test_no_parameters():
    with pytest.raises(UsageError, match="got 0 parameters in hessian_diag, kappa; expected at least 1"):
        bounds.uniform_sigma([], 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "function, known",
    [
        (bounds.truncated_gaussian, "exact, corrected, closed, printed"),
        (bounds.truncated_gaussian_sigma, "exact, corrected, closed, printed"),
        (bounds.jia_su, "paper, exact"),
        (bounds.jia_su_excess, "paper, exact"),
        (bounds.bicriteria_kl, "main, appendix"),
    ],
)
def test_unknown_variants(function, known):
    with pytest.raises(UsageError, match=f"got variant = 'tight'; expected one of {known}: pick one of them"):
        call(function, variant="tight")


def test_more_errors_than_samples():
    with pytest.raises(UsageError, match="got k = 11 errors among n = 10 samples; expected k <= n: check the count"):
        bounds.binomial_tail_inverse(11, 10, 0.05)


def test_a_prior_variance_off_its_grid():
    for variance in (0.1 * math.exp(-0.015), 0.1, 0.2):  # j = 1.5, 0, negative
        with pytest.raises(UsageError, match="expected a whole j of at least 1: round it to"):
            bounds.prior_variance_penalty(variance)


def test_widths_and_layers():
    with pytest.raises(UsageError, match="got 2 widths for 2 layers; expected one more than layers"):
        call(bounds.neyshabur_score, widths=[2, 2])


@pytest.mark.parametrize("name", ["risk", "q", "p"])
def test_a_share_of_one_is_one_and_the_next_number_is_none(name):
    """The edge itself: a rule that lets rounding through gives bounds of errors above 1."""
    function, _ = BROKEN[name]
    for edge in (0.0, 1.0):
        call(function, **{name: edge})
    for beyond in (math.nextafter(1.0, 2.0), math.nextafter(0.0, -1.0)):
        with pytest.raises(UsageError, match=name):
            call(function, **{name: beyond})
