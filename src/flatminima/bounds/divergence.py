"""KL divergences of noise around a network from a prior, summed over parameters, in nats."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import SYMBOLS, FloatArray, Result, check, checked, plain, vectors
from flatminima.bounds._special import log1p_gap
from flatminima.errors import UsageError


def kl_uniform(tau: ArrayLike, sigma: ArrayLike, distance: ArrayLike = 0.0) -> Result:
    """KL of U(w_i +- sigma_i) from the prior U(w0_i +- tau_i), sum_i ln(tau_i/sigma_i).

    Args:
        tau: half-widths of the prior > 0, (..., m) or a number; fixed before seeing the data.
        sigma: half-widths of the noise > 0, (..., m) or a number.
        distance: w - w0, (..., m) or a number. The prior is one of the weight, not of the noise (erratum
            W-c).

    Returns:
        KL >= 0, summed over the last axis; inf where some |w_i - w0_i| + sigma_i > tau_i.

    Raises:
        UsageError: tau or sigma not positive, or shapes that do not broadcast.

    Source: W1 sec. 4, Lemma 3; erratum W-c.

    >>> kl_uniform([2.0, 2.0], 1.0) == 2 * math.log(2)
    True
    """
    tau, sigma, distance = vectors(tau=tau, sigma=sigma, distance=distance)
    return plain(uniform(tau, sigma, distance))


def uniform(tau: FloatArray, sigma: FloatArray, distance: FloatArray) -> FloatArray:
    """kl_uniform of arrays that have been checked."""
    fits = np.all(np.abs(distance) + sigma <= tau, axis=-1)
    return np.where(fits, _log_ratio(tau, sigma).sum(axis=-1), np.inf)


def kl_diag_gaussian(mu: ArrayLike, sigma: ArrayLike, mu0: ArrayLike, sigma0: ArrayLike) -> Result:
    """KL of N(mu, sigma^2) from the prior N(mu0, sigma0^2), diagonal covariances.

    sum_i ln(sigma0_i/sigma_i) + (sigma_i^2 + (mu_i - mu0_i)^2)/(2 sigma0_i^2) - 1/2.

    Args:
        mu, mu0: means, (..., m) or numbers.
        sigma, sigma0: standard deviations > 0, (..., m) or numbers.

    Returns:
        KL >= 0, summed over the last axis; 0 for equal distributions, without cancellation near it.

    Raises:
        UsageError: a scale that is not positive, or shapes that do not broadcast.

    Source: textbook; Q = N(w, sigma^2) of N17 (8) and of every Gaussian certificate.

    >>> kl_diag_gaussian([1.0, 3.0], 1.0, 0.0, 1.0)  # ||mu - mu0||^2 / 2
    5.0
    """
    mu, sigma, mu0, sigma0 = vectors(mu=mu, sigma=sigma, mu0=mu0, sigma0=sigma0)
    # ln(s0/s) + s^2/(2 s0^2) - 1/2 = (x - ln(1+x))/2 with 1 + x = (s/s0)^2
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):  # beyond float64 it is inf
        squares = (sigma - sigma0) * (sigma + sigma0) / sigma0**2
        ratio = ((sigma - sigma0) / sigma0) * (sigma / sigma0 + 1)
        plain_range = np.maximum(_span(sigma), _span(sigma0)) < _SQUARED
        x = np.where(plain_range, squares, ratio)
        near = np.abs(x) < 0.5
        far = (x - 2 * _log_ratio(sigma, sigma0)) / 2
        shape = np.where(near, log1p_gap(np.where(near, x, 0.0)) / 2, far)
        return plain((shape + ((mu - mu0) / sigma0) ** 2 / 2).sum(axis=-1))


_SQUARED = 340.0  # |ln s| up to which s^2 is neither inf nor subnormal, with room


def _log_ratio(a: FloatArray, b: FloatArray) -> FloatArray:
    """ln(a / b) of positive numbers, also where float64 does not hold their ratio."""
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        log = np.log(a / b)
    return np.where(np.isfinite(log), log, np.log(a) - np.log(b))


def _span(scale: FloatArray) -> FloatArray:
    return np.abs(np.log(scale))


def kl_scaled_noise_fixed_prior(weights: ArrayLike, sigma: ArrayLike, prior_sigma: ArrayLike) -> Result:
    """KL of N(w, sigma_i(w)^2) from the fixed prior N(0, s^2 I): the valid form of N17's weight-scaled noise.

    sum_i ln(s/sigma_i) + (sigma_i^2 + w_i^2)/(2 s^2) - 1/2.

    Args:
        weights: w, (..., m) or a number.
        sigma: noise scales > 0, (..., m) or a number; may depend on w.
        prior_sigma: s > 0, fixed before seeing the data.

    Returns:
        KL >= 0, summed over the last axis.

    Raises:
        UsageError: an argument outside its range.

    Source: N17 sec. 2 (sharpness), erratum N-c: the paper's prior has the variance of the posterior, which
    depends on the weights.

    >>> kl_scaled_noise_fixed_prior([3.0, 4.0], 1.0, 1.0)
    12.5
    """
    weights, sigma, prior = vectors(weights=weights, sigma=sigma, prior_sigma=prior_sigma)
    return kl_diag_gaussian(weights, sigma, 0.0, prior)


def prior_variance_penalty(prior_variance: ArrayLike, precision: ArrayLike = 100.0, scale: ArrayLike = 0.1) -> Result:
    """Nats to add to KL for a prior variance chosen from the grid scale exp(-j/precision), ln(pi^2 j^2/6).

    Args:
        prior_variance: lambda on the grid, j = precision ln(scale/lambda) a whole number of at least 1.
        precision: b > 0 grid points a factor e; fixed before seeing the data.
        scale: c > 0, end of the grid; fixed before seeing the data.

    Returns:
        ln(pi^2 j^2/6), which weighs the j by 6/(pi^2 j^2): they sum to 1.

    Raises:
        UsageError: an argument outside its range, or a variance off the grid.

    Source: Dziugaite & Roy (2017), sec. 3.1; docs/reference/formulas.md, prior-grids.

    >>> abs(prior_variance_penalty(0.1 * math.exp(-3.0)) - math.log(math.pi**2 * 300**2 / 6)) < 1e-12
    True
    """
    variance, precision, scale = checked(prior_variance=prior_variance, precision=precision, scale=scale)
    exact = precision * np.log(scale / variance)
    j = np.round(exact)
    off = (j < 1) | (np.abs(exact - j) > 1e-6 * np.maximum(j, 1))
    if np.any(off):
        raise UsageError(
            f"got prior_variance at j = {float(exact[off].flat[0]):.6g}; expected a whole j of at least 1: "
            "round it to scale * exp(-j/precision)"
        )
    return plain(math.log(math.pi**2 / 6) + 2 * np.log(j))


def prior_scale_penalty(exponents: ArrayLike) -> Result:
    """Nats to add to KL for prior scales tau0 2^j_l chosen layer by layer, sum_l (j_l + 1) ln 2.

    Args:
        exponents: j_l, whole numbers >= 0, (..., layers) or a number.

    Returns:
        Penalty in nats, summed over the last axis: the j are weighed 2^-(j+1) in every layer.

    Raises:
        UsageError: a negative or fractional exponent.

    Source: docs/reference/formulas.md, prior-grids (valid tau chosen from data).

    >>> prior_scale_penalty([0, 1]) == 3 * math.log(2)
    True
    """
    j = np.atleast_1d(check("exponents", exponents, SYMBOLS["exponents"]))
    return plain((j + 1).sum(axis=-1) * math.log(2))
