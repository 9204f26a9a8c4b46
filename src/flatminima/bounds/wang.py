"""Uniform noise on a smooth, locally convex risk (Wang et al., W1 Lemma 3 and Theorem 2).

The default is the paper's (7) at its own optimum, which is at most its simpler (8).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, plain, vectors
from flatminima.bounds.divergence import uniform
from flatminima.bounds.hoeffding import temperature_term


def uniform_sigma(hessian_diag: ArrayLike, rho: ArrayLike, kappa: ArrayLike, eta: ArrayLike) -> Result:
    """Noise half-widths that minimise uniform_perturbation, sigma*_i = min((eta a_i)^-1/2, kappa_i).

    a_i = h_i/3 + rho sqrt(m) kappa_i/9, and sigma*_i = kappa_i where a_i <= 0.

    Args:
        hessian_diag: h_i, (..., m).
        rho: Lipschitz constant of the Hessian >= 0.
        kappa: half-widths of the neighbourhood > 0, (..., m) or a number.
        eta: temperature > 0.

    Returns:
        sigma*, float64 (..., m).

    Raises:
        UsageError: an argument outside its range.

    Source: W1 (9) = (19), W2 (10), (12).

    >>> uniform_sigma([3.0, 0.0], 0.0, 10.0, 4.0)
    array([ 0.5, 10. ])
    """
    h, kappa = vectors(hessian_diag=hessian_diag, kappa=kappa)
    rho, eta = checked(like=h, rho=rho, eta=eta)
    return sigma_star(h, rho, kappa, eta)


def uniform_perturbation(
    risk: ArrayLike,
    hessian_diag: ArrayLike,
    rho: ArrayLike,
    kappa: ArrayLike,
    tau: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    eta: ArrayLike,
    *,
    sigma: ArrayLike | None = None,
    distance: ArrayLike = 0.0,
    tight: bool = False,
) -> Result:
    """Bound on the risk under uniform noise, by default the best one.

    risk + sum_i a_i sigma_i^2/2 + (sum_i ln(tau_i/sigma_i) + ln(1/delta))/eta + c eta/n,
    a_i = h_i/3 + rho sqrt(m) kappa_i/9.

    Args:
        risk: L^(w), risk of the network itself, in [0, 1].
        hessian_diag: h_i of the same loss, (..., m); any sign.
        rho: Lipschitz constant of the Hessian on the neighbourhood, >= 0.
        kappa: half-widths of the neighbourhood |w'_i - w_i| <= kappa_i > 0, (..., m) or a number.
        tau: half-widths of the prior > 0, (..., m) or a number.
        n: i.i.d. samples, at least 1.
        delta: failure probability in (0, 1).
        eta: temperature > 0, fixed before seeing the data.
        sigma: noise half-widths instead of uniform_sigma(...).
        distance: w - w0 from the prior's centre; 0 is right only where |w_i - w0_i| + kappa_i <= tau_i is
            known.
        tight: c = 1/8 (Hoeffding's lemma) instead of the paper's 1/2.

    Returns:
        Bound, not clipped at 1; inf where sigma_i > kappa_i or |w_i - w0_i| + sigma_i > tau_i.

    Raises:
        UsageError: an argument outside its range.

    Kind: SCORE with an estimated h or rho, or a tau chosen from the data. CERT only where h and rho are
    proven on the box for a loss in [0, 1], and tau and eta are fixed.

    Source: W1 (7) at (9), W2 (9); errata W-a, W-b, W-c.

    >>> round(uniform_perturbation(0.1, [0.0], 0.0, 1.0, 1.0, 1000, math.exp(-1.0), 100.0), 12)
    0.16
    """
    h, kappa_, tau_, distance_ = vectors(hessian_diag=hessian_diag, kappa=kappa, tau=tau, distance=distance)
    risk, rho, n, delta, eta = checked(like=h, risk=risk, rho=rho, n=n, delta=delta, eta=eta)
    s = sigma_star(h, rho, kappa_, eta)
    if sigma is not None:
        s = vectors(sigma=sigma, kappa=kappa_)[0]
    kl = np.where(np.all(s <= kappa_, axis=-1), uniform(tau_, s, distance_), np.inf)
    return plain(risk + increase(h, rho, kappa_, s) + temperature_term(kl, n, delta, eta, tight))


def uniform_perturbation_simplified(
    risk: ArrayLike,
    hessian_diag: ArrayLike,
    rho: ArrayLike,
    kappa: ArrayLike,
    tau: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    eta: ArrayLike,
    *,
    distance: ArrayLike = 0.0,
    tight: bool = False,
) -> Result:
    """The paper's simpler form, risk + (m/2 + sum_i ln(tau_i/sigma*_i) + ln(1/delta))/eta + c eta/n.

    At least uniform_perturbation, and equal to it where no sigma*_i is clipped at kappa_i.

    Args:
        risk, hessian_diag, rho, kappa, tau, n, delta, eta, distance, tight: as in uniform_perturbation.

    Returns:
        Bound, not clipped at 1; inf where |w_i - w0_i| + sigma*_i > tau_i.

    Raises:
        UsageError: an argument outside its range.

    Kind: as uniform_perturbation.

    Source: W1 Lemma 3 (8), W2 (11).

    >>> round(uniform_perturbation_simplified(0.1, [0.0], 0.0, 1.0, 1.0, 1000, math.exp(-1.0), 100.0), 12)
    0.165
    """
    h, kappa_, tau_, distance_ = vectors(hessian_diag=hessian_diag, kappa=kappa, tau=tau, distance=distance)
    risk, rho, n, delta, eta = checked(like=h, risk=risk, rho=rho, n=n, delta=delta, eta=eta)
    kl = uniform(tau_, sigma_star(h, rho, kappa_, eta), distance_)
    return plain(risk + temperature_term(h.shape[-1] / 2 + kl, n, delta, eta, tight))


def sigma_star(h: FloatArray, rho: FloatArray, kappa: FloatArray, eta: FloatArray) -> FloatArray:
    curvature = 2 * _weight(h, rho, kappa) * eta[..., None]
    with np.errstate(divide="ignore"):
        return np.minimum(np.maximum(curvature, 0.0) ** -0.5, kappa)


def increase(h: FloatArray, rho: FloatArray, kappa: FloatArray, sigma: FloatArray) -> FloatArray:
    """Taylor bound on E L^(w + u) - L^(w): sum_i a_i sigma_i^2/2."""
    return np.asarray((_weight(h, rho, kappa) * sigma**2).sum(axis=-1))


def _weight(h: FloatArray, rho: FloatArray, kappa: FloatArray) -> FloatArray:
    """a_i/2 = h_i/6 + rho sqrt(m) kappa_i/18; ||u||_2 <= m^(1/6) ||u||_3 brings the sqrt(m)."""
    return np.asarray(h / 6 + rho[..., None] * math.sqrt(h.shape[-1]) * kappa / 18)
