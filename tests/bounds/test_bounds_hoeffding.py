"""PAC-Bayes-Hoeffding: the variance factor (erratum W-a) and the grid over eta (errata W-d, W-e)."""

import math

import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import exact, vector

from flatminima.bounds import hoeffding, hoeffding_grid


def args(inputs):
    return inputs["emp"], inputs["kl"], inputs["n"], inputs["delta"]


def test_vectors():
    inputs, expected = vector("wang_thm1")
    for key, tight in (("paper", False), ("tight", True)):
        at = hoeffding(*args(inputs), inputs["eta"], tight=tight)
        assert at == pytest.approx(expected[key], rel=1e-13)
        best = hoeffding(*args(inputs), expected[f"eta_opt_{key}"], tight=tight)
        assert best == pytest.approx(expected[f"infimum_{key}"], rel=1e-13)
        assert hoeffding(*args(inputs), np.geomspace(1, 1e5, 5001), tight=tight).min() >= best * (1 - 1e-15)


def test_grid_vectors():
    inputs, expected = vector("wang_thm2_corrected")
    four = (inputs["emp"], expected["K"], inputs["n"], inputs["delta"])
    assert hoeffding_grid(*four) - inputs["emp"] == pytest.approx(expected["complexity"], rel=1e-12)
    tight = expected["bound_tight_eta8n"] - expected["half_sqrt_m_over_n"]
    assert hoeffding_grid(*four, tight=True) == pytest.approx(tight, rel=1e-12)
    share = inputs["delta"] * 2.0 ** -(expected["j"] + 1)
    member = hoeffding(four[0], four[1], four[2], share, expected["eta_j"])
    assert hoeffding_grid(*four) == pytest.approx(member, rel=1e-12)


@pytest.mark.parametrize("tight, factor", [(False, 0.5), (True, 0.125)])
def test_against_mpmath_on_a_wide_grid(tight, factor):
    with mp.workdps(50):
        for n in (1, 2, 1000, 10**9):
            for kl in (0.0, 3.0, 1e7):
                for delta in (1e-9, 0.05, 0.99):
                    k, inverse = exact(kl), mp.log(1 / exact(delta))
                    want = 1 + (k + inverse) / 7 + mp.mpf(factor) * 7 / n
                    assert hoeffding(1.0, kl, n, delta, 7.0, tight=tight) == pytest.approx(float(want), rel=1e-14)
                    members = []
                    for j in range(61):
                        share = inverse + (j + 1) * mp.log(2)
                        eta = mp.exp(j) * mp.sqrt(n * share / factor)
                        members.append((k + share) / eta + factor * eta / n)
                    assert hoeffding_grid(0.0, kl, n, delta, tight=tight) == pytest.approx(
                        float(min(members)), rel=1e-13
                    )


def test_factor_one_eighth_is_valid_and_sharp():
    """Erratum W-a: ln E exp(eta (L - L^)) <= eta^2/(8n) for every Bernoulli risk; 1/2 is never needed."""
    risk = np.linspace(1e-4, 1 - 1e-4, 1999)[:, None]
    step = np.geomspace(1e-3, 50, 400)[None, :]  # eta/n
    log_moment = step * risk + np.log1p(risk * np.expm1(-step))
    ratio = log_moment / (step**2 / 8)
    assert 0.99999 < ratio.max() <= 1


@pytest.mark.parametrize("tight, infimum_factor", [(False, 2.0), (True, 1.0)])
def test_grid_costs_little_over_the_infimum_that_is_no_bound(tight, infimum_factor):
    """At least inf over eta with the same delta, at most e + 1/e times sqrt(K'/2n) at the sheet's j."""
    n, delta = 1000, 0.05
    kl = np.geomspace(1e-2, 1e12, 400)
    grid = hoeffding_grid(0.0, kl, n, delta, tight=tight)
    assert np.all(grid >= infimum_factor * np.sqrt((kl - math.log(delta)) / (2 * n)))
    j = np.floor(0.5 * np.log1p(kl / -math.log(delta)))
    effective = kl - math.log(delta) + (j + 1) * math.log(2)
    assert np.all(grid <= infimum_factor / 2 * (math.e + 1 / math.e) * np.sqrt(effective / (2 * n)))


def test_grid_shares_of_delta_do_not_exceed_it():
    assert sum(2.0 ** -(j + 1) for j in range(61)) <= 1


def test_tight_is_tighter():
    assert hoeffding_grid(0.1, 20, 1000, 0.05, tight=True) < hoeffding_grid(0.1, 20, 1000, 0.05)
