"""x - ln(1 + x) without cancellation: Bernoulli and Gaussian KL divergences are sums of it."""

from __future__ import annotations

import numpy as np

from flatminima.bounds._checks import FloatArray

# -1/2 < x < 1 means |u| < 1/3 below, and 9^-17 is under float64's resolution
_SERIES = [2.0 / (2 * k + 3) for k in range(17)]


def log1p_gap(x: FloatArray) -> FloatArray:
    """x - ln(1 + x) for x > -1; relative error of a few ulp near 0."""
    small = (x > -0.5) & (x < 1.0)
    x_small = np.where(small, x, 0.0)
    u = x_small / (2.0 + x_small)  # ln(1 + x) = 2 artanh(u) and x - 2u = x u
    tail = np.zeros_like(u)
    for coefficient in reversed(_SERIES):
        tail = tail * u * u + coefficient
    return np.where(small, x_small * u - u**3 * tail, x - np.log1p(np.where(small, 0.0, x)))
