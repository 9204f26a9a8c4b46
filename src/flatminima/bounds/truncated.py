"""Truncated Gaussian noise (Wang et al., W1 Lemma 4). The paper's closed form drops a factor of its proof.

Four readings: `exact` (default), `corrected` (14), `closed` (the lemma, corrected), `printed` (15).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, choice, plain, vectors
from flatminima.bounds.hoeffding import temperature_term

VARIANTS = ("exact", "corrected", "closed", "printed")
_ROUNDING = 1 + 1e-12  # a sigma that equals its limit passes


def truncated_gaussian(
    risk: ArrayLike,
    weights: ArrayLike,
    hessian_diag: ArrayLike,
    rho: ArrayLike,
    kappa: ArrayLike,
    tau: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    eta: ArrayLike,
    *,
    variant: str = "exact",
    sigma: ArrayLike | None = None,
    tight: bool = False,
) -> Result:
    """Bound on the risk under noise N(0, sigma_i^2) truncated to |u_i| < kappa_i, prior N(w0, tau I).

    exact      risk + sum_i (h_i/2 + rho sqrt(m) kappa_i/6) E u_i^2 + (KL + ln(1/delta))/eta + c eta/n
    corrected  E u_i^2 <= sigma_i^2 and KL <= 2 (untruncated KL + 1) in it, where h_i/2 + ... >= 0
    closed     risk + (m ln tau - sum_i ln sigma_i^2 + 3 + ln(1/delta))/eta + c eta/n
    printed    risk + ((m ln tau - sum_i ln sigma_i^2 + 1)/2 + ln(1/delta))/eta + c eta/n

    exact <= corrected <= closed at the same sigma; `printed` can lie below `exact`.

    Args:
        risk: L^(w), risk of the network itself, in [0, 1].
        weights: w - w0, distance from the prior's centre, (..., m).
        hessian_diag: h_i of the same loss, (..., m); any sign.
        rho: Lipschitz constant of the Hessian on the neighbourhood, >= 0.
        kappa: half-widths of the neighbourhood > 0, (..., m) or a number.
        tau: variance of the prior > 0, a number; fixed before seeing the data.
        n: i.i.d. samples, at least 1.
        delta: failure probability in (0, 1).
        eta: temperature > 0, fixed before seeing the data.
        variant: exact, corrected, closed or printed.
        sigma: noise scales instead of truncated_gaussian_sigma(..., variant=variant).
        tight: c = 1/8 (Hoeffding's lemma) instead of the paper's 1/2.

    Returns:
        Bound, not clipped at 1. `corrected` and `closed` are inf where their conditions fail: ||w - w0||^2
        <= tau, P(|u_i| < kappa_i for all i) >= 1/2 (corrected), sigma at most the variant's own (closed).

    Raises:
        UsageError: an argument outside its range, or an unknown variant.

    Kind: SCORE with an estimated h or rho; `printed` always. CERT only where h and rho are proven on the
    box for a loss in [0, 1], and tau and eta are fixed.

    Source: W1 Lemma 4 (16), App. B (10)-(15), App. E; errata W-f (erf clip), W-g (dropped factor), W-h, W-i.

    >>> args = (0.05, [0.3, -0.4, 0.1], [2.0, 5.0, 0.5], 0.2, [0.25, 0.3, 0.15], 1.0, 5000, 0.05, 100.0)
    >>> round(truncated_gaussian(*args), 7), round(truncated_gaussian(*args, variant="closed"), 7)
    (0.1720225, 0.2660011)
    """
    choice("variant", variant, VARIANTS)
    w, h, kappa_ = vectors(weights=weights, hessian_diag=hessian_diag, kappa=kappa)
    risk, rho, tau, n, delta, eta = checked(like=h, risk=risk, rho=rho, tau=tau, n=n, delta=delta, eta=eta)
    s = limit = _sigma(h, rho, kappa_, tau, eta, variant)
    if sigma is not None:
        s, limit = np.broadcast_arrays(vectors(sigma=sigma, kappa=kappa_)[0], limit)
    m = h.shape[-1]
    curvature = h / 2 + rho[..., None] * math.sqrt(m) * kappa_ / 6
    log_volume = m * np.log(tau) - 2 * np.log(s).sum(axis=-1)
    increase, kl = np.zeros(()), (log_volume + 1) / 2
    if variant == "exact":
        _, moment = _moments(s, kappa_)
        increase, kl = (curvature * moment).sum(axis=-1), _kl(w, s, kappa_, tau)
    elif variant == "corrected":
        increase = (np.maximum(curvature, 0.0) * s**2).sum(axis=-1)
        kl = log_volume - m + (s**2).sum(axis=-1) / tau + 3
        holds = _moments(s, kappa_)[0].sum(axis=-1) >= -math.log(2) * _ROUNDING
        kl = np.where(holds & ((w**2).sum(axis=-1) <= tau), kl, np.inf)
    elif variant == "closed":
        holds = np.all(s <= limit * _ROUNDING, axis=-1)
        kl = np.where(holds & ((w**2).sum(axis=-1) <= tau), log_volume + 3, np.inf)
    return plain(risk + increase + temperature_term(kl, n, delta, eta, tight))


def truncated_gaussian_sigma(
    hessian_diag: ArrayLike, rho: ArrayLike, kappa: ArrayLike, tau: ArrayLike, eta: ArrayLike, *, variant: str = "exact"
) -> Result:
    """Noise scales for truncated_gaussian, from c_i = max(h_i + rho sqrt(m) kappa_i/3, 0).

    exact              (eta c_i + 1/tau)^-1/2, near-optimal, no clip needed
    corrected, closed  min((eta c_i/2 + 1/tau)^-1/2, kappa_i/(sqrt(2) erfinv(1 - 1/(2m))))
    printed            min((eta c_i + 1/tau)^-1/2, kappa_i/(sqrt(2) erfinv(1/(2m))))

    Args:
        hessian_diag: h_i, (..., m).
        rho: Lipschitz constant of the Hessian >= 0.
        kappa: half-widths of the neighbourhood > 0, (..., m) or a number.
        tau: variance of the prior > 0.
        eta: temperature > 0.
        variant: exact, corrected, closed or printed.

    Returns:
        sigma, float64 (..., m).

    Raises:
        UsageError: an argument outside its range, or an unknown variant.

    Source: W1 (16), App. E; errata W-f, W-h.

    >>> truncated_gaussian_sigma([3.0], 0.0, 1.0, 1.0, 1.0)
    array([0.5])
    """
    choice("variant", variant, VARIANTS)
    h, kappa_ = vectors(hessian_diag=hessian_diag, kappa=kappa)
    rho, tau, eta = checked(like=h, rho=rho, tau=tau, eta=eta)
    return _sigma(h, rho, kappa_, tau, eta, variant)


def truncated_gaussian_moments(sigma: ArrayLike, kappa: ArrayLike) -> tuple[Result, Result]:
    """Mass and second moments of N(0, sigma_i^2) on |u_i| < kappa_i.

    Args:
        sigma: noise scales > 0, (..., m) or a number.
        kappa: half-widths > 0, (..., m) or a number.

    Returns:
        (Z, s2): the probability prod_i erf(kappa_i/(sqrt(2) sigma_i)) that an untruncated draw lies in the
        box, and E u_i^2 = sigma_i^2 (1 - 2 a phi(a)/Z_i) of the truncated one, a = kappa_i/sigma_i,
        float64 (..., m).

    Raises:
        UsageError: an argument outside its range.

    Source: docs/reference/formulas.md, truncated-gaussian; W1 App. B.

    >>> inside, second = truncated_gaussian_moments(1e9, 3.0)  # a flat density on (-3, 3)
    >>> bool(abs(second[0] - 3.0) < 1e-12)
    True
    """
    sigma, kappa = vectors(sigma=sigma, kappa=kappa)
    log_inside, second = _moments(sigma, kappa)
    return plain(np.exp(log_inside.sum(axis=-1))), second


def kl_truncated_gaussian(weights: ArrayLike, sigma: ArrayLike, kappa: ArrayLike, tau: ArrayLike) -> Result:
    """Exact KL of the truncated noise around w from the prior N(w0, tau I).

    sum_i -ln Z_i + ln(sqrt(tau)/sigma_i) + (w_i^2 + s_i^2)/(2 tau) - s_i^2/(2 sigma_i^2), s_i^2 = E u_i^2.

    Args:
        weights: w - w0, (..., m) or a number.
        sigma: noise scales > 0, (..., m) or a number.
        kappa: half-widths of the box > 0, (..., m) or a number.
        tau: variance of the prior > 0.

    Returns:
        KL, summed over the last axis; no condition on Z, unlike W1 (12).

    Raises:
        UsageError: an argument outside its range.

    Source: docs/reference/formulas.md, truncated-gaussian; replaces W1 (12)-(13).

    >>> kl_truncated_gaussian([2.0], 1.0, 100.0, 1.0)  # nothing is cut off
    2.0
    """
    w, sigma, kappa = vectors(weights=weights, sigma=sigma, kappa=kappa)
    (tau,) = checked(like=w, tau=tau)
    return plain(_kl(w, sigma, kappa, tau))


def _sigma(
    h: FloatArray, rho: FloatArray, kappa: FloatArray, tau: FloatArray, eta: FloatArray, variant: str
) -> FloatArray:
    from scipy.special import erfcinv, erfinv  # imported here: scipy.special doubles the import time

    m = h.shape[-1]
    curvature = eta[..., None] * np.maximum(h + rho[..., None] * math.sqrt(m) * kappa / 3, 0.0)
    if variant in ("corrected", "closed"):
        curvature = curvature / 2
    sigma = (curvature + 1 / tau[..., None]) ** -0.5
    if variant == "exact":
        return np.asarray(sigma)
    reach = erfinv(1 / (2 * m)) if variant == "printed" else erfcinv(1 / (2 * m))
    return np.asarray(np.minimum(sigma, kappa / (math.sqrt(2) * reach)))


def _moments(sigma: FloatArray, kappa: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(ln Z_i, E u_i^2); the ratio of incomplete gammas is 1 - 2 a phi(a)/Z without its cancellation."""
    from scipy.special import erf, erfc, gammainc

    a = kappa / sigma
    wide = a > 1
    log_inside = np.where(wide, np.log1p(-erfc(np.maximum(a, 1.0) / math.sqrt(2))), 0.0)
    narrow = np.where(wide, 1.0, np.maximum(a, 1e-300))
    log_inside = np.where(wide, log_inside, np.log(erf(narrow / math.sqrt(2))))
    half_square = np.maximum(a, 1e-8) ** 2 / 2
    second = sigma**2 * gammainc(1.5, half_square) / gammainc(0.5, half_square)
    return log_inside, np.where(a > 1e-8, second, kappa**2 / 3)


def _kl(w: FloatArray, sigma: FloatArray, kappa: FloatArray, tau: FloatArray) -> FloatArray:
    log_inside, second = _moments(sigma, kappa)
    tau = tau[..., None]
    terms = -log_inside + np.log(np.sqrt(tau) / sigma) + (w**2 + second) / (2 * tau) - second / (2 * sigma**2)
    return np.asarray(terms.sum(axis=-1))
