"""Hold-out bounds, the risk of a stochastic predictor from draws, and the two-step PAC-Bayes certificate.

Draws are counted as independent draws of the weights: samples that share one draw in a batch are one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, plain
from flatminima.bounds.kl import kl_inverse
from flatminima.bounds.pac_bayes import OUTWARD, pac_bayes_kl
from flatminima.errors import UsageError

_SLACK = 1e-12  # lifts the exact bound over its own rounding
# boost's inverse beta, in scipy 1.17, is off by 1e-12 (n = 1e6) to 1e-8 (n = 1e9) for k below about 40, to either side
_SUMMED_K, _SUMMED_N = 100, 10_000


def binomial_tail_inverse(k: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """Exact hold-out bound, sup{p : P(Bin(n, p) <= k) >= delta} (Clopper & Pearson 1934).

    Args:
        k: errors on the held-out samples, whole, 0 <= k <= n.
        n: held-out samples, at least 1.
        delta: failure probability in (0, 1).

    Returns:
        Bound in [k/n, 1] on the error rate; 1 - delta^(1/n) for k = 0, 1 for k = n. For delta > 1/2 it may
        lie below k/n. At most 1e-12 (relative) above the exact value.

    Raises:
        UsageError: an argument outside its range, or k > n.

    Kind: CERT for one fixed predictor, 0-1 loss, and i.i.d. samples that nothing else has touched.

    Source: Langford (2005), Thm 3.3; docs/reference/formulas.md, holdout.

    >>> abs(binomial_tail_inverse(0, 10, 0.5) - (1 - 0.5**0.1)) < 1e-12
    True
    """
    from scipy.special import betainccinv  # imported here: scipy.special doubles the import time

    k, n, delta = np.broadcast_arrays(*checked(k=k, n=n, delta=delta))
    if np.any(k > n):
        raise UsageError(f"got k = {k.max():g} errors among n = {n.min():g} samples; expected k <= n: check the count")
    inner = (k > 0) & (k < n)
    p = np.asarray(betainccinv(np.where(inner, k + 1, 1.0), np.where(inner, n - k, 1.0), delta))
    few = inner & (k <= _SUMMED_K) & (n >= _SUMMED_N)
    p[few] = _polished(p[few], k[few], n[few], np.log(delta[few]))
    p = np.where(k == 0, -np.expm1(np.log(delta) / n), p)
    return plain(np.where(k == n, 1.0, np.minimum(p * (1 + _SLACK * (1 - p) + 1e-15), 1.0)))


def holdout_kl(risk: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """Chernoff hold-out bound, kl^-1(risk, ln(1/delta)/n): any loss in [0, 1], looser than the binomial.

    Args:
        risk: mean loss on the held-out samples, in [0, 1].
        n: held-out samples, at least 1.
        delta: failure probability in (0, 1).

    Returns:
        Bound in [risk, 1], rounded outward.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT for one fixed predictor and i.i.d. samples that nothing else has touched.

    Source: Langford (2005), Cor. 3.7; docs/reference/formulas.md, holdout.

    >>> abs(holdout_kl(0.0, 10, 0.5) - (1 - 0.5**0.1)) < 1e-12
    True
    """
    risk, n, delta = checked(risk=risk, n=n, delta=delta)
    return kl_inverse(risk, -np.log(delta) / n * OUTWARD)


def monte_carlo_risk(empirical: ArrayLike, draws: ArrayLike, delta_mc: ArrayLike) -> Result:
    """Empirical risk of a stochastic predictor from draws, kl^-1(empirical, ln(1/delta_mc)/draws).

    One-sided: peers spend ln(2/delta_mc), which is valid and looser.

    Args:
        empirical: mean of independent losses in [0, 1], whose expectation is the empirical risk E_Q L^.
        draws: independent draws of the weights, made after Q was frozen, at least 1.
        delta_mc: failure probability in (0, 1).

    Returns:
        Upper bound in [empirical, 1] on E_Q L^, rounded outward.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, with the independence above (Hoeffding 1963: the draws need not be identically distributed).

    Source: Langford & Caruana (2002); docs/reference/formulas.md, pipeline.

    >>> round(monte_carlo_risk(0.012, 150000, 0.01), 9)
    0.012873299
    """
    risk, n, delta = checked(empirical=empirical, draws=draws, delta_mc=delta_mc)
    return kl_inverse(risk, -np.log(delta) / n * OUTWARD)


def mc_certificate(
    empirical: ArrayLike, draws: ArrayLike, delta_mc: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike
) -> Result:
    """Certificate, kl^-1(kl^-1(empirical, ln(1/delta_mc)/draws), (KL + ln(2 sqrt(n)/delta))/n).

    Args:
        empirical: Monte-Carlo estimate of the empirical risk on the n samples, in [0, 1].
        draws: independent draws of the weights behind it, at least 1.
        delta_mc: failure probability of the Monte-Carlo step, in (0, 1).
        kl: KL(Q||P) >= 0 in nats.
        n: samples of the bound, at least 8; not those that the prior was learnt from.
        delta: failure probability of the PAC-Bayes step, in (0, 1).

    Returns:
        Bound in [empirical, 1] on E_Q L, rounded outward, with probability 1 - delta - delta_mc.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, conditions of pac_bayes_kl and monte_carlo_risk. It speaks of the stochastic predictor, fresh
    weights a prediction; divide delta by k for the best of k certificates.

    Source: Dziugaite & Roy (2017), Perez-Ortiz et al. (2021); docs/reference/formulas.md, pipeline.

    >>> round(mc_certificate(0.012, 150000, 0.01, 300, 30000, 0.025), 9)
    0.036231251
    """
    return pac_bayes_kl(monte_carlo_risk(empirical, draws, delta_mc), kl, n, delta)


def _polished(p: FloatArray, k: FloatArray, n: FloatArray, log_delta: FloatArray) -> FloatArray:
    """Two Newton steps on ln P(Bin(n, p) <= k) = ln delta, the tail summed term by term."""
    for _ in range(2):
        last = n * np.log1p(-p)
        total = last
        for i in range(int(k.max(initial=0))):
            more = i < k
            last = np.where(more, last + np.log((n - i) / (i + 1) * (p / (1 - p))), last)
            total = np.where(more, np.logaddexp(total, last), total)
        p = p + (total - log_delta) * np.exp(total - last) * (1 - p) / (n - k)
    return p
