"""Theorem 1 of Jia & Su (2020): its numbers, its Stirling error, and that it certifies memorised noise."""

import math

import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import PROPERTY, exact, vector, vector_names
from hypothesis import given, strategies as st

from flatminima.bounds import jia_su, jia_su_excess, jia_su_expected_excess, jia_su_kl, mcallester, pac_bayes_kl


@pytest.mark.parametrize("name", vector_names("jia_theorem1_"))
def test_vectors(name):
    inputs, expected = vector(name)
    ball = (inputs["gamma"], inputs["W"], inputs["V"])
    n, delta, loss = inputs["N"], inputs["delta"], inputs["L0"]
    for variant in ("paper", "exact"):
        excess = jia_su_excess(*ball, variant=variant)
        assert excess == pytest.approx(expected[f"A_{variant}"], rel=1e-12)
    assert jia_su(loss, *ball, n, delta) == pytest.approx(expected["bound_paper"], rel=1e-12)
    assert jia_su(loss, *ball, n, delta, variant="exact") == pytest.approx(expected["bound_exact_A"], rel=1e-12)
    assert jia_su_kl(*ball) == pytest.approx(expected["kl_exact"], rel=1e-9)
    assert jia_su_excess(*ball) == pytest.approx(expected["kl_cap_tight"], rel=1e-12)
    assert loss + jia_su_excess(*ball) == pytest.approx(expected["kl_cap_paper_h"], rel=1e-12)
    mean = loss + jia_su_expected_excess(*ball)
    assert mean == pytest.approx(expected["expected_train_loss_exact"], rel=1e-12)
    maurer = mcallester(mean, jia_su_kl(*ball), n, delta)
    assert maurer == pytest.approx(expected["maurer_classic_exact"], rel=1e-12)


@pytest.mark.parametrize("w", [1, 2, 5, 60, 1000, 10**5])
@pytest.mark.parametrize("excess", [1e-6, 0.01, 0.9, 30.0, 700.0])
def test_kl_and_mean_against_mpmath(w, excess):
    """KL = ln V - ln Z - E t in incomplete gammas at 80 digits; their float64 difference keeps none of 1e-13."""
    log_volume_squared = math.log(2 * math.pi * excess) * w / 2 - math.lgamma(w / 2 + 1)
    volume = math.exp(log_volume_squared) if -700 < log_volume_squared < 700 else 1.0
    logdet = 0.0 if volume != 1.0 else 2 * log_volume_squared
    a_float = jia_su_excess(logdet, w, volume)
    assert a_float == pytest.approx(excess, rel=1e-9)
    with mp.workdps(80):
        k, a = mp.mpf(w) / 2, exact(a_float)
        mass = mp.gammainc(k, 0, a)
        mean = mp.gammainc(k + 1, 0, a) / mass
        kl = mp.log(a**k / k) - mp.log(mass) - mean
        assert jia_su_expected_excess(logdet, w, volume) == pytest.approx(float(mean), rel=1e-11)
        assert jia_su_kl(logdet, w, volume) == pytest.approx(float(kl), rel=1e-8, abs=1e-15 * a_float)


@PROPERTY
@given(st.floats(-50, 50), st.integers(1, 2000), st.floats(-20, 20).map(math.exp))
def test_kl_is_at_most_the_height(logdet, w, volume):
    """Erratum J-k: the paper bounds KL by h; A = h - L0 already does, and so does A - E t."""
    excess, mean = jia_su_excess(logdet, w, volume), jia_su_expected_excess(logdet, w, volume)
    assert 0 < mean < excess
    assert 0 <= jia_su_kl(logdet, w, volume) <= (excess - mean) * (1 + 1e-9) + 1e-12


def test_excess_is_the_height_of_the_ellipsoid():
    """Volume of {w' I w <= 2A} is pi^(W/2)/Gamma(W/2+1) (2A)^(W/2) |I|^(-1/2)."""
    w, logdet, height = 5, -1.3, 0.2
    volume = math.pi ** (w / 2) / math.gamma(w / 2 + 1) * (2 * height) ** (w / 2) * math.exp(-logdet / 2)
    assert jia_su_excess(logdet, w, volume) == pytest.approx(height, rel=1e-13)


@pytest.mark.parametrize("w, ratio", [(2, 0.652), (10, 0.792), (100, 0.955), (10**6, 0.999986)])
def test_stirling_shrinks_the_excess(w, ratio):
    """Erratum J-i."""
    got = jia_su_excess(0.0, w, 1.0, variant="paper") / jia_su_excess(0.0, w, 1.0)
    assert got == pytest.approx(ratio, abs=6e-4 if w < 10**6 else 6e-7)


def test_it_certifies_a_network_that_memorised_random_labels():
    """Erratum J-l: zero training loss and V -> 0 is all it asks; true error 0.9, "bound" 0.034."""
    n, delta, w = 50_000, 0.05, 2
    bound = [jia_su(0.0, 100.0, w, volume, n, delta, variant="exact") for volume in (1e-22, 1e-40, 1e-60, 1e-300)]
    assert np.all(np.diff(bound) <= 0)
    assert bound[-1] == pytest.approx(2 * math.sqrt(math.log(2 * n / delta) / (n - 1)), rel=1e-6)
    assert bound[-1] == pytest.approx(0.034, abs=5e-4) and bound[-1] < 0.9
    # the exact KL and loss of its posterior do not help: the prior has seen the samples
    assert mcallester(0.0, jia_su_kl(100.0, w, 1e-300), n, delta) < 0.02
    # a certificate cannot: to tell 50,000 random labels of 10 classes apart, KL is about n ln 10
    assert pac_bayes_kl(0.0, n * math.log(10), n, delta) > 0.9


def test_arrays():
    table = jia_su(0.1, np.array([-3.0, 0.0]), np.array([[4], [40]]), 0.1, 1000, 0.05)
    assert table.shape == (2, 2)
    assert jia_su_kl(np.array([-3.0, 0.0]), 4, 0.1).shape == (2,)
    assert type(jia_su_kl(-3.0, 4, 0.1)) is float
