"""Bounded cross-entropies."""

import numpy as np
import pytest
from bounds_oracle import vector, vector_names

from flatminima.bounds import bounded_cross_entropy, smooth_cross_entropy


@pytest.mark.parametrize("name", vector_names("bounded_ce_"))
def test_vectors(name):
    inputs, expected = vector(name)
    args = (inputs["p"], inputs["pmin"])
    assert bounded_cross_entropy(*args) == pytest.approx(expected["clamped"], rel=1e-12)
    assert smooth_cross_entropy(*args) == pytest.approx(expected["smooth"], rel=1e-12)


def test_range_order_and_monotonicity():
    p = np.concatenate([[0.0], np.geomspace(1e-12, 1, 2001)])
    clamped, smooth = bounded_cross_entropy(p), smooth_cross_entropy(p)
    for loss in (clamped, smooth):
        assert loss[0] == 1 and loss[-1] == 0 and np.all(np.diff(loss) <= 0)
    assert np.all(smooth <= clamped)


def test_smooth_loss_has_a_slope_where_the_clamp_has_none():
    p, step = 1e-6, 1e-8
    assert bounded_cross_entropy(p + step) == bounded_cross_entropy(p)
    slope = (smooth_cross_entropy(p + step) - smooth_cross_entropy(p - step)) / (2 * step)
    assert slope == pytest.approx(-(1 - 1e-5) / (1e-5 + (1 - 1e-5) * p) / np.log(1e5), rel=1e-5)
