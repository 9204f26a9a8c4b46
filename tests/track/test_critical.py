"""The critical step against closed forms."""

import math

import pytest

from flatminima.errors import Undefined
from flatminima.track.critical import critical


@pytest.mark.parametrize("curvature", [0.01, 1.0, 37.0])
@pytest.mark.parametrize("guess", [0.5, 0.99, 1.03, 40.0])
def test_of_a_quadratic_it_is_the_curvature(curvature, guess):
    found = critical(lambda s: 5 - s + curvature * s * s / 2, guess * 2 / curvature)
    assert found.sharpness == pytest.approx(curvature, rel=1e-6)
    assert found.evaluations <= 12


def test_beside_the_last_step_it_costs_four_passes():
    assert critical(lambda s: 5 - s + s * s / 2, 1.95).evaluations <= 4
    assert critical(lambda s: 5 - s + s * s / 2, 1.95, start=5.0).evaluations <= 3


def test_of_other_losses_it_is_the_smallest_root():
    assert critical(lambda s: math.cosh(s - 1), 0.3).step == pytest.approx(2.0, rel=0.03)
    assert critical(lambda s: abs(s - 1.0), 1.9).step == pytest.approx(2.0, rel=0.03)
    with_walls = critical(lambda s: 1 - s if s < 3 else math.inf, 0.5)  # a loss that overflows has risen
    assert with_walls.step == pytest.approx(3.0, rel=0.05)


def test_without_a_root_there_is_no_number():
    with pytest.raises(Undefined, match="does not rise"):
        critical(lambda s: math.exp(-s), 1.0)  # a cross-entropy that falls for ever
    with pytest.raises(Undefined, match="lowers"):
        critical(lambda s: 1 + s, 1.0)
    with pytest.raises(Undefined, match="does not rise"):
        critical(lambda s: 1.0, 1.0)
