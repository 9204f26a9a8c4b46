"""The bounds on B = (KL + ln(2 sqrt(n)/delta))/n, and properties that every bound of four numbers shares."""

import functools
import math

import bounds_oracle as oracle
import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import PROPERTY, exact, vector, vector_names
from hypothesis import given, strategies as st

from flatminima import bounds
from flatminima.bounds import catoni, lambda_bound, mcallester, optimal_lambda, pac_bayes_kl, quadratic

FAMILY = vector_names("pac_bayes_family_")
# every bound of (risk, kl, n, delta), with its other arguments fixed
CASES = {
    "catoni": functools.partial(catoni, beta=1.3),
    "hoeffding": functools.partial(bounds.hoeffding, eta=300.0),
    "hoeffding_grid": bounds.hoeffding_grid,
    "hoeffding_grid, tight": functools.partial(bounds.hoeffding_grid, tight=True),
    "lambda_bound": functools.partial(lambda_bound, lam=0.7),
    "mcallester": mcallester,
    "neyshabur_5": bounds.neyshabur_5,
    "neyshabur_6": bounds.neyshabur_6,
    "pac_bayes_kl": pac_bayes_kl,
    "quadratic": quadratic,
}
every_bound = pytest.mark.parametrize("bound", CASES.values(), ids=CASES)

risks = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
kls = st.one_of(st.just(0.0), st.floats(-6, 7).map(lambda x: 10.0**x))
counts = st.floats(0.91, 9).map(lambda x: int(10**x))
deltas = st.floats(1e-12, 0.999)
arguments = st.tuples(risks, kls, counts, deltas)


@pytest.mark.parametrize("name", FAMILY)
def test_vectors(name):
    inputs, expected = vector(name)
    args = (inputs["emp"], inputs["kl"], inputs["n"], inputs["delta"])
    got = {
        "pac_bayes_kl": pac_bayes_kl(*args),
        "classic": mcallester(*args),
        "quad": quadratic(*args),
        "lam_opt": optimal_lambda(*args),
        "lambda_bound_at_opt": lambda_bound(*args, optimal_lambda(*args)),
        "lambda_bound_at_1": lambda_bound(*args, 1.0),
        "catoni_C1": catoni(*args, beta=1.0),
        "catoni_C2": catoni(*args, beta=2.0),
        "mcallester2003_eq5": bounds.neyshabur_5(*args),
        "neyshabur_eq6": bounds.neyshabur_6(*args),
    }
    for key, value in got.items():
        assert value == pytest.approx(expected[key], rel=1e-12), key
    assert bounds.binary_kl(inputs["emp"], got["pac_bayes_kl"]) == pytest.approx(expected["B"], rel=1e-12)
    infimum = min(catoni(*args, beta=np.geomspace(1e-2, 1e2, 20001)))
    assert infimum == pytest.approx(expected["catoni_inf_over_C"], rel=1e-6)


def wide_grid():
    for n in (8, 100, 30_000, 10**9):
        for kl in (0.0, 1e-3, 40.0, 1e7):
            for risk in (0.0, 1e-5, 0.3, 1.0):
                for delta in (1e-12, 0.05, 0.9):
                    yield risk, kl, n, delta


def test_against_mpmath_on_a_wide_grid():
    with mp.workdps(50):
        for risk, kl, n, delta in wide_grid():
            q, b = exact(risk), oracle.complexity(kl, n, delta)
            args = (risk, kl, n, delta)
            certified = pac_bayes_kl(*args)
            if certified < 1:  # outward: kl at the answer is at least B; tight: just inside it is at most B
                inside = q + (exact(certified) - q) * (1 - mp.mpf("1e-12"))
                assert oracle.binary_kl(q, exact(certified)) >= b >= oracle.binary_kl(q, inside)
            else:
                assert oracle.binary_kl(q, 1 - mp.mpf("2e-16")) <= b or risk == 1
            lam = 2 / (mp.sqrt(2 * q / b + 1) + 1)
            close(mcallester(*args), q + mp.sqrt(b / 2))
            close(quadratic(*args), (mp.sqrt(q + b / 2) + mp.sqrt(b / 2)) ** 2)
            close(optimal_lambda(*args), lam)
            close(lambda_bound(*args, 0.25), q / (1 - mp.mpf("0.125")) + b / (mp.mpf("0.21875")))
            rate = (exact(kl) - mp.log(exact(delta))) / n
            for beta in (0.25, 4.0):
                close(catoni(*args, beta=beta), (1 - mp.exp(-beta * q - rate)) / (1 - mp.exp(-beta)))


def test_certificates_without_errors_are_outward():
    """1 - exp(-B) at risk 0: B's own rounding alone puts one value in a thousand inside."""
    rng = np.random.default_rng(6)
    size = 15_000
    kl, delta = 10 ** rng.uniform(-3, 5, size), 10 ** rng.uniform(-6, -0.01, size)
    n = np.floor(10 ** rng.uniform(1, 9, size))
    certified = pac_bayes_kl(0.0, kl, n, delta)
    holdout = bounds.holdout_kl(0.0, n, delta)
    with mp.workdps(50):
        for a, count, d, p, h in zip(kl, n, delta, certified, holdout, strict=True):
            assert exact(p) >= 1 - mp.exp(-oracle.complexity(a, int(count), d))
            assert exact(h) >= 1 - mp.exp(mp.log(exact(d)) / int(count))


def close(got, want):
    assert abs(got - want) <= 1e-13 * want


@PROPERTY
@given(arguments)
def test_quadratic_is_the_lambda_bound_at_its_optimum(args):
    assert lambda_bound(*args, optimal_lambda(*args)) == pytest.approx(quadratic(*args), rel=1e-12)


@PROPERTY
@given(arguments, st.floats(1e-3, 1.999))
def test_no_lambda_beats_the_optimal_one(args, lam):
    assert lambda_bound(*args, lam) >= quadratic(*args) * (1 - 1e-12)


@PROPERTY
@given(arguments)
def test_kl_bound_is_the_tightest_on_the_same_complexity(args):
    certified = pac_bayes_kl(*args)
    assert certified <= quadratic(*args) * (1 + 1e-13)
    assert certified <= mcallester(*args) * (1 + 1e-13)


@PROPERTY
@given(arguments)
def test_catoni_never_passes_the_inverse_of_its_own_complexity(args):
    """inf over beta is kl^-1(risk, (KL + ln(1/delta))/n): a lower value would mean a wrong exponent."""
    risk, kl, n, delta = args
    floor = bounds.kl_inverse(risk, (kl - math.log(delta)) / n)
    assert catoni(*args, beta=np.geomspace(1e-3, 1e3, 200)).min() >= floor * (1 - 1e-12)


@every_bound
@PROPERTY
@given(arguments)
def test_bound_is_at_least_the_risk(bound, args):
    assert bound(*args) >= args[0]


@every_bound
@PROPERTY
@given(arguments, risks, kls, counts, deltas)
def test_bound_is_monotone(bound, args, risk, kl, n, delta):
    """Rising in risk, kl and 1/delta, falling in n; slack for rounding."""
    if "grid" in str(bound):
        delta = args[3]  # see the next test
    low = (min(args[0], risk), min(args[1], kl), max(args[2], n), max(args[3], delta))
    high = (max(args[0], risk), max(args[1], kl), min(args[2], n), min(args[3], delta))
    assert bound(*low) <= bound(*high) * (1 + 1e-12)


def test_the_grid_of_theorem_2_is_not_monotone_in_delta():
    """delta moves the grid of eta: a smaller failure probability may cost less. Both values are valid bounds."""
    at_half, at_quarter = (bounds.hoeffding_grid(0.0, 10**1.5, 31, delta) for delta in (0.5, 0.25))
    assert at_half / at_quarter == pytest.approx(1.0324, abs=1e-4)


@every_bound
def test_infinite_kl_certifies_nothing(bound):
    assert bound(0.1, math.inf, 1000, 0.05) >= 1


@every_bound
def test_bound_broadcasts(bound):
    risk, kl = np.array([0.0, 0.1, 1.0]), np.array([[0.0], [50.0]])
    table = bound(risk, kl, 1000, 0.05)
    assert table.shape == (2, 3) and table.dtype == np.float64
    assert table[1, 2] == bound(1.0, 50.0, 1000, 0.05)
    assert type(bound(0.1, 5, 1000, 0.05)) is float


def finite_class(rng, draws, size=60, n=400):
    """A finite class with known risks, and for each of `draws` samples a posterior that overfits it."""
    risk = rng.uniform(0.2, 0.6, size)
    empirical = rng.binomial(n, risk, size=(draws, size)) / n
    weight = np.exp(-3 * n * (empirical - empirical.min(axis=1, keepdims=True)))
    posterior = weight / weight.sum(axis=1, keepdims=True)
    kl = (posterior * np.log(np.maximum(posterior, 1e-300) * size)).sum(axis=1)
    return (posterior * empirical).sum(axis=1), (posterior * risk).sum(axis=1), np.maximum(kl, 0.0), n


@pytest.mark.parametrize("name", ["pac_bayes_kl", "mcallester", "quadratic", "hoeffding_grid, tight", "catoni"])
def test_coverage_on_a_class_with_known_risks(name):
    """At most delta of 1,000 samples violate the bound, with a posterior fitted to each of them."""
    delta = 0.05
    empirical, truth, kl, n = finite_class(np.random.default_rng(4), 1000)
    assert (truth > CASES[name](empirical, kl, n, delta)).mean() <= delta


def test_coverage_notices_a_forgotten_kl():
    """The same samples refute the bound once KL is dropped, so the simulation can fail."""
    rng = np.random.default_rng(4)
    empirical, truth, kl, n = finite_class(rng, 1000, size=5000, n=50)
    assert (truth > pac_bayes_kl(empirical, 0.0, n, 0.9)).mean() > 0.5
    assert (truth > pac_bayes_kl(empirical, kl, n, 0.9)).mean() <= 0.01


def test_coverage_of_the_two_step_certificate():
    """Draws of (weights, sample) pairs: the Monte-Carlo estimate is binomial around the empirical risk."""
    rng = np.random.default_rng(5)
    delta, delta_mc, draws = 0.025, 0.025, 300
    empirical, truth, kl, n = finite_class(rng, 1000)
    estimate = rng.binomial(draws, np.clip(empirical, 0, 1)) / draws
    assert (truth > bounds.mc_certificate(estimate, draws, delta_mc, kl, n, delta)).mean() <= delta + delta_mc
    assert (empirical > bounds.monte_carlo_risk(estimate, draws, delta_mc)).mean() <= delta_mc
    assert (empirical > estimate).mean() > 0.3  # without the Monte-Carlo step, often below the truth
