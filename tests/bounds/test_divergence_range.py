"""Scales at the ends of float64: the divergence is the formula's, or inf where no float64 holds it; never NaN."""

import inspect
import itertools
import math
import warnings

import numpy as np
import pytest
from mpmath import mp, mpf

from flatminima import bounds
from flatminima.bounds import kl_diag_gaussian, kl_uniform
from flatminima.errors import FlatMinimaError


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


@pytest.mark.parametrize(("tau", "sigma"), [(1e308, 1e-308), (3e-300, 1e-300), (1e300, 1e300)])
def test_the_uniform_divergence_of_extreme_scales(tau, sigma):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kl_uniform(tau, sigma) == pytest.approx(float(mp.log(mpf(tau)) - mp.log(mpf(sigma))), rel=1e-13)


def _numbers_only():
    """The bounds of a few numbers each, by the parameters that must be given."""
    for name in bounds.__all__:
        required = [p for p in inspect.signature(getattr(bounds, name)).parameters.values() if p.default is p.empty]
        if inspect.isfunction(getattr(bounds, name)) and len(required) <= 4:
            yield name, [p.name for p in required]


@pytest.mark.parametrize(("name", "parameters"), list(_numbers_only()))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_bound_is_nan(name, parameters):
    """A NaN is below no threshold and above none: what uses it as a bound would go wrong in silence."""
    for values in itertools.product([1e300, 1e-300, 1e-160, 1.0], repeat=len(parameters)):
        try:
            found = getattr(bounds, name)(**dict(zip(parameters, values, strict=True)))
        except (FlatMinimaError, MemoryError):
            continue
        numbers = found if isinstance(found, tuple) else (found,)
        assert not any(np.isnan(np.asarray(n, dtype=float)).any() for n in numbers), (name, values)
