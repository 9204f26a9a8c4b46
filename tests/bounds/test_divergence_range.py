"""Scales at the ends of float64: the divergence is the formula's, or inf where no float64 holds it; never NaN."""

import math
import warnings

import pytest
from mpmath import mp, mpf

from flatminima.bounds import kl_diag_gaussian


def _exact(mu, sigma, mu0, sigma0):
    with mp.workdps(60):
        mu, sigma, mu0, sigma0 = map(mpf, (mu, sigma, mu0, sigma0))
        return float(mp.log(sigma0 / sigma) + (sigma**2 + (mu - mu0) ** 2) / (2 * sigma0**2) - mpf(1) / 2)


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 1e300, 0.0, 1e300),
        (0.0, 1e300, 0.0, 2e300),
        (0.0, 1e-300, 0.0, 2e-300),
        (0.0, 1e-200, 1e-200, 3e-200),
        (0.0, 1e-250, 0.0, 1e250),
        (0.0, 1e200, 0.0, 1.0),
        (1.0, 1.0, 0.0, 1e-200),
        (1e308, 1.0, -1e308, 1.0),
        (0.0, 5e-324, 0.0, 5e-324),
        (0.5, 1.0, 0.0, 2.0),
    ],
)
def test_the_gaussian_divergence_of_extreme_scales(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kl_diag_gaussian(*arguments)
    assert not math.isnan(found) and found == pytest.approx(_exact(*arguments), rel=1e-14)
