"""The followed eigenvalue against dense eigenvalues of matrices that drift, turn and cross."""

import pytest
import torch

from flatminima.core.space import Space
from flatminima.errors import UsageError
from flatminima.track.eigenvalue import Follower

N = 200


def _turned(basis, seed, amount):
    skew = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * amount
    return torch.matrix_exp(skew - skew.T) @ basis


def _orthogonal(seed=0):
    return torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def _spectrum(*top, seed=1):
    rest = torch.rand(N - len(top), generator=torch.Generator().manual_seed(seed)).double() - 0.5
    return torch.cat([torch.tensor(top, dtype=torch.float64), rest])


def _look(follower, basis, values):
    matrix = (basis * values) @ basis.T
    return follower.look(lambda v: matrix.to(v.dtype) @ v, Space.whole(N))


def test_a_still_matrix_costs_two_products_after_the_first_look():
    follower, basis, values = Follower(tolerance=0.01), _orthogonal(), _spectrum(5.0, 2.0)
    first = _look(follower, basis, values)
    again = [_look(follower, basis, values) for _ in range(3)][-1]
    assert first.fresh and first.converged and first.value == pytest.approx(5.0, rel=0.01)
    assert not again.fresh and again.products == 2 and again.value == pytest.approx(5.0, rel=1e-3)
    assert again.second == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("rise", [0.2, 0.3, 0.4])
def test_a_challenger_from_far_below_is_seen_at_the_look_at_which_it_overtakes(rise):
    """It steps at every look: one that rests while it is far below is 17% late here."""
    follower, basis = Follower(tolerance=0.01, fresh_every=0), _orthogonal()
    for i in range(30):
        found = _look(follower, _turned(basis, 3, 0.001 * i), _spectrum(5.0, rise * i))
        assert found.value == pytest.approx(max(5.0, rise * i), rel=0.01), i


@pytest.mark.parametrize("turn", [0.002, 0.01, 0.03])
def test_a_direction_that_turns_is_followed_within_the_tolerance(turn):
    """A fixed number of products is a third too low here: the residual must decide."""
    follower, basis, values = Follower(tolerance=0.01), _orthogonal(), _spectrum(5.0, 3.0, 2.5)
    for i in range(25):
        basis = _turned(basis, 10 + i, turn)
        found = _look(follower, basis, values)
        assert found.converged
        assert found.value == pytest.approx(5.0, rel=0.02)
        assert found.value <= 5.0 + 1e-4  # a Rayleigh quotient never exceeds it


def test_a_second_direction_that_overtakes_is_seen_before_a_fresh_search():
    follower, basis = Follower(tolerance=0.01, fresh_every=0), _orthogonal()
    for i in range(30):
        values = _spectrum(5.0, 4.0 + 0.1 * i)  # equal at i = 10
        basis = _turned(basis, i, 0.002)
        found = _look(follower, basis, values)
        if i:
            assert found.value == pytest.approx(max(5.0, 4.0 + 0.1 * i), rel=0.02), i
    assert not found.fresh


def test_a_direction_from_nowhere_is_found_by_the_fresh_search():
    """Orthogonal to all that is carried, in a matrix that does not turn, nothing but chance can find it."""
    follower, basis = Follower(tolerance=0.01, fresh_every=5), _orthogonal()
    for _ in range(3):
        _look(follower, basis, _spectrum(5.0, 4.0, 0.1))
    seen = [_look(follower, basis, _spectrum(5.0, 4.0, 9.0)) for _ in range(3)]
    assert seen[-1].fresh and seen[-1].value == pytest.approx(9.0, rel=0.01)


def test_what_has_not_converged_says_so():
    follower = Follower(tolerance=1e-3, cap=3)
    found = _look(follower, _orthogonal(), torch.linspace(0, 1, N).double())
    assert not found.converged and found.residual > 1e-3 * found.value
    assert found.products <= 3


def test_the_largest_is_not_the_largest_in_magnitude():
    follower, basis = Follower(tolerance=0.01), _orthogonal()
    values = torch.cat([_spectrum(2.0)[:-1], torch.tensor([-9.0]).double()])
    for i in range(4):
        found = _look(follower, _turned(basis, i, 0.005), values)
        assert found.value == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_matrices_and_zeros(size):
    follower = Follower()
    diagonal = torch.arange(1.0, size + 1)
    for _ in range(3):
        found = follower.look(lambda v: diagonal * v, Space.whole(size))
        assert found.converged and found.value == pytest.approx(size, rel=0.01)
    zero = follower.look(lambda v: 0 * v, Space.whole(size))
    assert zero.converged and zero.value == 0.0


def test_the_part_of_the_trace_that_the_basis_holds_is_exact():
    follower, basis, values = Follower(), _orthogonal(), _spectrum(5.0, 2.0)
    found = _look(follower, basis, values)
    matrix = (basis * values) @ basis.T
    q = found.basis.double()
    assert found.diagonal == pytest.approx(float((q @ matrix @ q.T).trace()), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"cap": 1}, {"fresh_every": -1}])
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match="got"):
        Follower(**wrong)
