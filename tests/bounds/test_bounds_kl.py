"""The inverse of the binary KL: outward, to 1e-12, at every scale."""

import math

import bounds_oracle as oracle
import mpmath as mp
import numpy as np
import pytest
from bounds_oracle import PROPERTY, exact, vector, vector_names
from hypothesis import given, strategies as st

from flatminima.bounds import binary_kl, kl_inverse, kl_inverse_derivatives, kl_inverse_lower

probabilities = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1e-16, 1 - 2**-53]),
    st.floats(0, 1),
    st.floats(-40, 0).map(lambda x: 10.0**x),
    st.floats(-15, 0).map(lambda x: 1 - 10.0**x),
)
budgets = st.one_of(st.sampled_from([0.0, math.inf, 1e-300, 1e300]), st.floats(-30, 7).map(lambda x: 10.0**x))


def test_binary_kl_vector():
    inputs, expected = vector("binary_kl")
    assert binary_kl(**inputs) == pytest.approx(expected["value"], rel=1e-14)


@pytest.mark.parametrize("name", vector_names("kl_inv_"))
def test_inverse_vectors(name):
    inputs, expected = vector(name)
    assert kl_inverse(**inputs) == pytest.approx(expected["upper"], rel=1e-12, abs=0)
    assert kl_inverse_lower(**inputs) == pytest.approx(expected["lower"], rel=1e-12, abs=0)


def grid(rng, count):
    """(q, c) from 1e-60 to 1 - 1e-16 and 1e-40 to 1e4."""
    third = count // 3
    q = np.concatenate(
        [10 ** rng.uniform(-60, 0, third), 1 - 10 ** rng.uniform(-16, 0, third), rng.uniform(0, 1, third)]
    )
    q = q[(q > 0) & (q < 1)]
    return q, 10 ** rng.uniform(-40, 4, len(q))


def test_binary_kl_against_mpmath_also_where_p_is_close_to_q():
    """The textbook formula has no correct digit at |p - q| = 1e-9 q; a sum of two terms >= 0 keeps them all."""
    rng = np.random.default_rng(0)
    q, _ = grid(rng, 1500)
    t = 10 ** rng.uniform(-15, 0, len(q))
    p = np.where(rng.random(len(q)) < 0.5, q + (1 - q) * t, q * (1 - t))
    with mp.workdps(150):
        truth = [oracle.binary_kl(exact(a), exact(b)) for a, b in zip(q, p, strict=True)]
        for got, want in zip(binary_kl(q, p), truth, strict=True):
            assert abs(got - want) <= 1e-15 * want


def test_binary_kl_at_the_ends():
    assert binary_kl(0.3, 0.3) == 0
    assert binary_kl(0.0, 0.0) == binary_kl(1.0, 1.0) == 0
    assert binary_kl(0.5, 0.0) == binary_kl(0.5, 1.0) == math.inf
    assert binary_kl(1e-300, 0.0) == binary_kl(1e-300, 1.0) == math.inf
    assert binary_kl(0.0, 1e-289) == 1e-289
    assert binary_kl(1.0, 0.25) == pytest.approx(math.log(4), rel=1e-15)


@pytest.mark.parametrize("inverse, side", [(kl_inverse, 1), (kl_inverse_lower, -1)])
def test_inverse_is_outward_and_within_1e12(inverse, side):
    """A midpoint, as peers return, is inside the true bound half of the time."""
    q, c = grid(np.random.default_rng(1), 3000)
    with mp.workdps(120):
        for a, b, p in zip(q, c, inverse(q, c), strict=True):
            if p < 1e-200 or p == 1:  # the next test
                continue
            assert oracle.binary_kl(exact(a), exact(p)) >= exact(b)
            inside = exact(p) * (1 - side * mp.mpf("1e-12"))
            assert (inside - a) * side <= 0 or oracle.binary_kl(exact(a), inside) <= exact(b)


def test_inverse_saturates_only_where_the_root_does():
    q, c = grid(np.random.default_rng(2), 3000)
    upper, lower = kl_inverse(q, c), kl_inverse_lower(q, c)
    with mp.workdps(120):
        for a, b in zip(q[upper == 1], c[upper == 1], strict=True):
            assert a > 1 - 1e-15 or oracle.binary_kl(exact(a), 1 - mp.mpf("1e-15")) <= exact(b)
        for a, b in zip(q[lower == 0], c[lower == 0], strict=True):
            assert oracle.binary_kl(exact(a), mp.mpf("1e-300")) <= exact(b)


def test_inverse_against_bisection():
    """Independent of Newton and of the kernel: bisection at 50 digits."""
    with mp.workdps(50):
        for q in (1e-9, 0.003, 0.4, 0.97):
            for c in (1e-12, 1e-4, 0.3, 2.0):
                assert kl_inverse(q, c) == pytest.approx(float(oracle.kl_root(q, c)), rel=1e-13)
                truth = float(oracle.kl_root(q, c, upper=False))
                assert kl_inverse_lower(q, c) == pytest.approx(truth, rel=1e-13, abs=1e-40)


def test_inverse_in_closed_form():
    c = np.array([1e-300, 1e-20, 1e-9, 0.1, 1.0, 30.0, 800.0])
    np.testing.assert_allclose(kl_inverse(0.0, c), -np.expm1(-c), rtol=1e-15)
    assert np.all(kl_inverse(0.0, c) >= -np.expm1(-c))
    np.testing.assert_allclose(kl_inverse_lower(1.0, c), np.exp(-c), rtol=1e-15, atol=1e-320)
    assert np.all(kl_inverse_lower(1.0, c) <= np.exp(-c))
    q = np.array([0.0, 1e-300, 0.3, 1.0])
    np.testing.assert_array_equal(kl_inverse(q, 0.0), q)
    np.testing.assert_array_equal(kl_inverse_lower(q, 0.0), q)
    np.testing.assert_array_equal(kl_inverse(q, math.inf), 1.0)
    np.testing.assert_array_equal(kl_inverse_lower(q, math.inf), 0.0)
    np.testing.assert_array_equal(kl_inverse(1.0, c), 1.0)
    np.testing.assert_array_equal(kl_inverse_lower(0.0, c), 0.0)


def test_inverse_of_denormals_stays_outside():
    """Below 1e-290 ratios overflow: q and c are raised to it, never lost."""
    tiny = np.array([5e-324, 1e-310, 1e-291, 1e-290])
    assert np.all(kl_inverse(tiny, 0.1) >= kl_inverse(0.0, 0.1))
    assert np.all(kl_inverse(0.3, tiny) > 0.3)
    assert np.all(kl_inverse_lower(0.3, tiny) < 0.3)
    assert np.all(kl_inverse(tiny, tiny) > tiny)
    assert np.all(np.isfinite(binary_kl(tiny, 0.5)))


@PROPERTY
@given(probabilities, budgets)
def test_inverse_brackets_q_and_spends_the_budget(q, c):
    upper, lower = kl_inverse(q, c), kl_inverse_lower(q, c)
    assert 0 <= lower <= q <= upper <= 1
    if 1e-290 < c < math.inf:
        assert upper == 1 or binary_kl(q, upper) >= c * (1 - 1e-14)
        assert lower == 0 or binary_kl(q, lower) >= c * (1 - 1e-14)


@PROPERTY
@given(probabilities, probabilities, budgets, budgets)
def test_inverse_is_monotone(q1, q2, c1, c2):
    (q1, q2), (c1, c2) = sorted([q1, q2]), sorted([c1, c2])
    assert kl_inverse(q1, c1) <= kl_inverse(q2, c2) * (1 + 1e-12)
    assert kl_inverse_lower(q1, c2) <= kl_inverse_lower(q2, c1) * (1 + 1e-12)


def test_derivatives_against_mpmath():
    q, c = np.array([1e-4, 0.02, 0.3, 0.9]), np.array([1e-3, 0.01, 0.2, 0.05])
    by_q, by_c = kl_inverse_derivatives(q, c)
    with mp.workdps(50):
        for a, b, slope_q, slope_c in zip(q, c, by_q, by_c, strict=True):
            assert slope_q == pytest.approx(float(mp.diff(lambda x, b=b: oracle.kl_root(x, b), a)), rel=1e-11)
            assert slope_c == pytest.approx(float(mp.diff(lambda x, a=a: oracle.kl_root(a, x), b)), rel=1e-11)


def test_derivatives_at_the_ends():
    assert kl_inverse_derivatives(0.2, 0.0) == (1.0, math.inf)
    assert kl_inverse_derivatives(0.2, math.inf) == (0.0, 0.0)
    assert kl_inverse_derivatives(1.0, 0.1) == (0.0, 0.0)
    assert kl_inverse_derivatives(0.0, 0.1) == (math.inf, pytest.approx(math.exp(-0.1), rel=1e-12))


def test_numbers_in_numbers_out_arrays_in_arrays_out():
    assert type(kl_inverse(0.1, 0.1)) is float
    assert type(binary_kl(np.float64(0.1), 0.2)) is float
    assert kl_inverse([0.1, 0.2, 0.3], [[0.1], [0.2]]).shape == (2, 3)
    assert kl_inverse_lower(np.zeros((0,)), 0.1).shape == (0,)
    assert all(type(x) is float for x in kl_inverse_derivatives(0.1, 0.1))
