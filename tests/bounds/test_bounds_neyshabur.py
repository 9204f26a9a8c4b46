"""Neyshabur et al. (2017): (5), (6), (8), the bi-criteria KL and Theorem 1."""

import math

import numpy as np
import pytest
from bounds_oracle import PROPERTY, vector
from hypothesis import given, strategies as st

from flatminima.bounds import (
    bicriteria_kl,
    kl_diag_gaussian,
    mcallester,
    neyshabur_5,
    neyshabur_6,
    neyshabur_8,
    neyshabur_score,
)

problems = st.tuples(
    st.floats(0, 1), st.floats(0, 1e6), st.integers(8, 10**7), st.floats(1e-9, 0.99)
)  # risk, kl, n, delta


def test_vectors():
    inputs, expected = vector("neyshabur_eq8")
    emp, sharp, norm, n, delta = (inputs[k] for k in ("emp", "sharp", "w_norm_sq", "m", "delta"))
    assert neyshabur_8(emp, sharp, norm, inputs["sigma"], n, delta) == pytest.approx(expected["bound"], rel=1e-13)
    kl = kl_diag_gaussian(math.sqrt(norm), inputs["sigma"], 0.0, inputs["sigma"])
    assert kl == pytest.approx(expected["kl"], rel=1e-13)
    assert mcallester(emp + sharp, kl, n, delta) == pytest.approx(expected["tight_maurer"], rel=1e-13)
    inputs, expected = vector("neyshabur_bicriteria_kl")
    assert bicriteria_kl(inputs["w"], inputs["alpha"]) == pytest.approx(expected["main_text"], rel=1e-13)
    appendix = bicriteria_kl(inputs["w"], inputs["alpha"], variant="appendix")
    assert appendix == pytest.approx(expected["appendixA_missing_half"], rel=1e-13)
    assert bicriteria_kl(np.full(4, 1e12), inputs["alpha"]) == pytest.approx(expected["cap"], rel=1e-9)


@PROPERTY
@given(problems)
def test_6_follows_from_5(args):
    """For n >= 2 wherever the bound says anything, that is below 1."""
    assert min(neyshabur_5(*args), 1.0) <= neyshabur_6(*args)


def test_6_follows_from_5_at_small_n():
    risk = np.linspace(0, 1, 101)[:, None, None]
    kl = np.geomspace(1e-6, 1e3, 200)[:, None]
    five, six = (f(risk, kl, np.arange(2, 40), 0.999) for f in (neyshabur_5, neyshabur_6))
    assert np.all(np.minimum(five, 1) <= six)


@PROPERTY
@given(problems)
def test_6_is_far_looser_than_mcallester(args):
    """4 sqrt(2) in the complexity: sqrt((KL + ln(2 sqrt n/delta))/(2n)) against 4 sqrt((KL + ln(2n/delta))/n)."""
    risk = args[0]
    assert neyshabur_6(*args) - risk >= 4 * math.sqrt(2) * (mcallester(*args) - risk) * (1 - 1e-6)


@PROPERTY
@given(problems)
def test_theorem_1s_root_and_jia_sus_root_dominate_maurers(args):
    """Errata N-i and J-j are harmless: both papers' roots, without factors 4 and 2, are above mcallester's."""
    _, kl, n, delta = args
    complexity = mcallester(0.0, kl, n, delta)
    assert math.sqrt((2 * kl + math.log(2 * n / delta)) / n) >= complexity
    assert 2 * math.sqrt((2 * kl + math.log(2 * n / delta)) / (n - 1)) >= complexity


def test_bicriteria_kl_is_at_most_its_cap():
    w = np.random.default_rng(0).standard_cauchy(1000)
    assert bicriteria_kl(w, 0.01) <= 1000 / (200 * 0.01**2)


def score_by_hand(output, norms, widths, sigma, mu, c2, c3, n, delta, active):
    d, h = len(norms), max(widths)
    gain = [s * math.sqrt(widths[i + 1] * widths[i]) / (mu**2 * active[i]) for i, s in enumerate(sigma)]
    c_delta = 2 * math.sqrt(math.log(d * h / delta))
    first = math.prod(1 + g for g in gain) - 1
    second = math.prod(1 + g * c2 * c3 for g in gain) * (math.prod(1 + g * c_delta * c2 for g in gain) - 1)
    norm = sum((w / s) ** 2 for w, s in zip(norms, sigma, strict=True))
    return (first + second) * output + math.sqrt((norm + math.log(2 * n / delta)) / n)


def test_theorem_1_written_out():
    norms, widths, sigma, active = [2.0, 1.5, 0.5], [2, 3, 2, 2], [0.01, 0.02, 0.03], [1.2, 1.1, 0.5]
    rest = (1.3, norms, widths, sigma, 0.4, 1.4, 2.0, 1000, 0.05)
    assert neyshabur_score(*rest) == pytest.approx(score_by_hand(*rest, norms), rel=1e-12)
    with_active = neyshabur_score(*rest, active_frobenius=active)
    assert with_active == pytest.approx(score_by_hand(*rest, active), rel=1e-12)
    assert with_active > neyshabur_score(*rest)  # erratum N-g: the theorem's norm understates the gain
    doubled = neyshabur_score(*rest, lipschitz=2.0)
    assert doubled == pytest.approx(score_by_hand(2.6, *rest[1:], norms), rel=1e-12)
    assert type(doubled) is float


def test_theorem_1_gains_follow_the_vectors():
    """gamma_i of the reference vectors: the products' first-order term is output * sum gamma_i as C2 -> 0."""
    _, expected = vector("neyshabur_C1_C3")
    mu, sigma, widths = 1 / expected["inv_mu_proof_a_le_c"], 0.01, [2, 3, 2, 2]
    for key in ("gamma_i_theorem", "gamma_i_proof"):
        gain = np.array(expected[key])
        active = sigma * np.sqrt(np.multiply(widths[1:], widths[:-1])) / (mu**2 * gain)
        args = (active, widths, sigma, mu, 1e-12, 1.0, 10**6, 0.05)
        base = neyshabur_score(0.0, *args, active_frobenius=active)
        got = neyshabur_score(1.0, *args, active_frobenius=active) - base
        assert got == pytest.approx(np.prod(1 + gain) - 1, rel=1e-6)
