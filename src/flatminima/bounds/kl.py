"""KL divergence of two coins and its inverses (Langford & Seeger 2001). The inverses are rounded outward.

Peers return the midpoint of a bisection bracket, which half of the time lies inside the true bound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, plain
from flatminima.bounds._special import log1p_gap

_EPS = float(np.finfo(np.float64).eps)
_TINY = 1e-290  # smaller arguments are raised to it, which is outward; keeps ratios finite
_NOISE = 8 * _EPS  # relative error of _divergence, with room: at most 4 eps on 60,000 points against mpmath
_SLACK = 1e-6  # starting points lie outside the root by at least this factor
_MAX_STEPS = 100  # 5 to 10 are taken; every iterate is on the outer side, so stopping early stays valid


def binary_kl(q: ArrayLike, p: ArrayLike) -> Result:
    """KL divergence of two coins, kl(q||p) = q ln(q/p) + (1-q) ln((1-q)/(1-p)), in nats.

    Args:
        q, p: probabilities in [0, 1]; they broadcast.

    Returns:
        kl >= 0; inf when p is 0 or 1 and q is not. Accurate also where p is close to q.

    Raises:
        UsageError: outside [0, 1], or NaN.

    Source: docs/reference/formulas.md, kl-inverse.

    >>> abs(binary_kl(0.0, 0.5) - float(np.log(2))) < 1e-15
    True
    """
    return plain(_divergence(*np.broadcast_arrays(*checked(q=q, p=p))))


def kl_inverse(q: ArrayLike, c: ArrayLike) -> Result:
    """Upper inverse, sup{p : kl(q||p) <= c}. CERT when (q, c) come from a bound on kl.

    Args:
        q: empirical risk in [0, 1].
        c: budget >= 0 in nats; inf allowed.

    Returns:
        p in [q, 1], never below the true root and at most 1e-12 (relative) above it; q for c = 0,
        1 - exp(-c) for q = 0, 1 for c = inf. (q or c in (0, 1e-290) count as 1e-290.)

    Raises:
        UsageError: q outside [0, 1], c negative, or NaN.

    Source: docs/reference/formulas.md, kl-inverse; Langford & Seeger (2001).

    >>> abs(kl_inverse(0.0, np.log(2)) - 0.5) < 1e-15
    True
    """
    q_, c_ = np.broadcast_arrays(*checked(q=q, c=c))
    out = np.where(c_ == 0, q_, 1.0)
    zero = (q_ == 0) & (c_ > 0)
    out[zero] = np.minimum(_up(_up(-np.expm1(-c_[zero]))), 1.0)
    inner = (c_ > 0) & (c_ < np.inf) & (q_ > 0) & (q_ < 1)
    out[inner] = _upper(q_[inner], c_[inner])
    return plain(out)


def kl_inverse_lower(q: ArrayLike, c: ArrayLike) -> Result:
    """Lower inverse, inf{p : kl(q||p) <= c}. CERT when (q, c) come from a bound on kl.

    Args:
        q: empirical risk in [0, 1].
        c: budget >= 0 in nats; inf allowed.

    Returns:
        p in [0, q], never above the true root and, down to 1e-200, at most 1e-12 (relative) below it; exp(-c)
        for q = 1.

    Raises:
        UsageError: q outside [0, 1], c negative, or NaN.

    Source: docs/reference/formulas.md, kl-inverse.

    >>> abs(kl_inverse_lower(1.0, np.log(2)) - 0.5) < 1e-15
    True
    """
    q_, c_ = np.broadcast_arrays(*checked(q=q, c=c))
    out = np.where(c_ == 0, q_, 0.0)
    one = (q_ == 1) & (c_ > 0)
    out[one] = np.maximum(_down(_down(np.exp(-c_[one]))), 0.0)
    inner = (c_ > 0) & (c_ < np.inf) & (q_ > 0) & (q_ < 1)
    out[inner] = _lower(q_[inner], c_[inner])
    return plain(out)


def kl_inverse_derivatives(q: ArrayLike, c: ArrayLike) -> tuple[Result, Result]:
    """Derivatives of p = kl_inverse(q, c) by the implicit function theorem.

    dp/dq = ln(p(1-q) / (q(1-p))) p(1-p)/(p-q),   dp/dc = p(1-p)/(p-q).

    Args:
        q: empirical risk in [0, 1].
        c: budget >= 0 in nats.

    Returns:
        (dp/dq, dp/dc): both 0 where p has reached 1; (1, inf) at c = 0; dp/dq = inf at q = 0 < c.
        Relative error about 1e-16 / (p - q).

    Raises:
        UsageError: q outside [0, 1], c negative, or NaN.

    Source: docs/reference/formulas.md, kl-inverse; Reeb et al. (2018), App. A.

    >>> round(kl_inverse_derivatives(0.0, 1.0)[1], 12)  # p = 1 - exp(-c), so exp(-1)
    0.367879441171
    """
    q_, c_ = np.broadcast_arrays(*checked(q=q, c=c))
    p = np.asarray(kl_inverse(q_, c_))
    with np.errstate(divide="ignore", invalid="ignore"):
        by_c = p * (1 - p) / (p - q_)
        by_q = (np.log(p / q_) + np.log((1 - q_) / (1 - p))) * by_c
    flat, still = p == 1, c_ == 0
    by_c = np.where(flat, 0.0, np.where(still, np.inf, by_c))
    by_q = np.where(flat, 0.0, np.where(still, 1.0, by_q))
    return plain(by_q), plain(by_c)


def _divergence(q: FloatArray, p: FloatArray) -> FloatArray:
    """Sum of two terms >= 0, so nothing cancels: a ln(a/b) + b - a, for the coin and its complement."""
    d = p - q
    return _half(q, p, d) + _half(1 - q, 1 - p, -d)


def _half(a: FloatArray, b: FloatArray, d: FloatArray) -> FloatArray:
    """a ln(a/b) + d for d = b - a, with 0 ln 0 = 0."""
    safe = np.maximum(a, _TINY)
    close = (d > -0.5 * safe) & (d < safe)
    with np.errstate(divide="ignore"):
        far = d - safe * np.log(np.where(close, 1.0, b / safe))
    value = np.where(close, safe * log1p_gap(np.where(close, d / safe, 0.0)), far)
    value = np.where(a < _TINY, np.maximum(d, 0.0), value)
    return np.where((b == 0) & (a > 0), np.inf, value)


def _newton(q: FloatArray, c: FloatArray, p: FloatArray) -> FloatArray:
    """kl(q||.) is convex, so Newton started outside the root approaches it from outside."""
    for _ in range(_MAX_STEPS):
        excess = _divergence(q, p) - c
        step = np.where(excess > _NOISE / 8 * c, excess * (p / (p - q)) * (1 - p), 0.0)
        p = np.where(p - step == q, p, p - step)  # rounding must not reach q, where the slope is 0
        if np.all(np.abs(step) <= _EPS * p):
            break
    return p


def _upper(q: FloatArray, c: FloatArray) -> FloatArray:
    q, c = np.maximum(q, _TINY), np.maximum(c, _TINY)
    with np.errstate(over="ignore"):
        complement = (1 - q) * np.exp((q * np.log(q) - c) / (1 - q)) * (1 - _SLACK)
    pinsker = q + np.sqrt(c / 2)
    quadratic = (np.sqrt(q + c / 2) + np.sqrt(c / 2)) ** 2
    start = np.maximum(np.minimum(np.minimum(pinsker, quadratic) * (1 + 4 * _EPS), 1 - complement), _up(q))
    out = np.ones_like(q)
    go = start < 1
    q, c, p = q[go], c[go], _newton(q[go], c[go], start[go])
    out[go] = np.minimum(_up(p + _NOISE * c * (p / (p - q)) * (1 - p)), 1.0)
    return out


def _lower(q: FloatArray, c: FloatArray) -> FloatArray:
    q, c = np.maximum(q, _TINY), np.maximum(c, _TINY)
    with np.errstate(over="ignore"):
        start = q * np.exp(((1 - q) * np.log1p(-q) - c) / q) * (1 - _SLACK)
    quadratic = q - np.sqrt(2 * c) * np.sqrt(q) * (1 + 4 * _EPS) - 4 * _EPS * q
    start = np.minimum(np.maximum(start, quadratic), _down(q))
    out = np.zeros_like(q)
    go = start > 0
    q, c, p = q[go], c[go], _newton(q[go], c[go], start[go])
    out[go] = np.maximum(_down(p - _NOISE * c * (p / (q - p)) * (1 - p)), 0.0)
    return out


def _up(x: FloatArray) -> FloatArray:
    return np.nextafter(x, np.inf)


def _down(x: FloatArray) -> FloatArray:
    return np.nextafter(x, -np.inf)
