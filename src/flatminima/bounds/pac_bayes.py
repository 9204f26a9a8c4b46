"""PAC-Bayes bounds on one complexity, B = (KL + ln(2 sqrt(n)/delta))/n, and Catoni's.

The first four follow from kl(risk || L) <= B (Maurer 2004); `pac_bayes_kl` inverts it and is tightest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, plain
from flatminima.bounds.kl import kl_inverse

OUTWARD = 1 + 2.0**-49  # lifts a complexity over its own rounding before it is inverted


def complexity(kl: FloatArray, n: FloatArray, delta: FloatArray) -> FloatArray:
    """B = (KL + ln(2 sqrt(n)/delta))/n, the right-hand side of PAC-Bayes-kl."""
    return np.asarray((kl + math.log(2) + 0.5 * np.log(n) - np.log(delta)) / n)


def pac_bayes_kl(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """PAC-Bayes-kl bound, kl^-1(risk, B). Always report this one.

    Args:
        risk: empirical risk E_Q L^ of the stochastic predictor, in [0, 1]; exact, or lifted by
            monte_carlo_risk.
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples behind `risk`, at least 8 (Maurer).
        delta: failure probability in (0, 1).

    Returns:
        Bound in [risk, 1] on E_Q L, rounded outward; 1 for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT. Holds for all Q at once with probability 1 - delta if the loss lies in [0, 1], the samples are
    i.i.d. and P does not depend on them.

    Source: Seeger (2002), Maurer (2004); docs/reference/formulas.md, pac-bayes-kl.

    >>> round(pac_bayes_kl(0.02, 500, 30000, 0.025), 6)
    0.057311
    """
    risk, kl, n, delta = checked(8, risk=risk, kl=kl, n=n, delta=delta)
    return kl_inverse(risk, complexity(kl, n, delta) * OUTWARD)


def mcallester(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """Classic bound, risk + sqrt(B/2): PAC-Bayes-kl relaxed by Pinsker.

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 8.
        delta: failure probability in (0, 1).

    Returns:
        Bound >= risk, not clipped at 1; inf for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, conditions of pac_bayes_kl.

    Source: McAllester (1999) with Maurer's constant; docs/reference/formulas.md, pac-bayes-relaxations.

    >>> round(mcallester(0.02, 500, 30000, 0.025), 6)
    0.112154
    """
    risk, kl, n, delta = checked(8, risk=risk, kl=kl, n=n, delta=delta)
    return plain(risk + np.sqrt(complexity(kl, n, delta) / 2))


def quadratic(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """Quadratic bound, (sqrt(risk + B/2) + sqrt(B/2))^2: better than the classic one at small risk.

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 8.
        delta: failure probability in (0, 1).

    Returns:
        Bound >= risk, not clipped at 1; equals lambda_bound at optimal_lambda; inf for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, conditions of pac_bayes_kl.

    Source: Rivasplata et al. (2019), Perez-Ortiz et al. (2021); docs/reference/formulas.md, pac-bayes-relaxations.

    >>> round(quadratic(0.02, 500, 30000, 0.025), 6)
    0.068095
    """
    risk, kl, n, delta = checked(8, risk=risk, kl=kl, n=n, delta=delta)
    half = complexity(kl, n, delta) / 2
    return plain((np.sqrt(risk + half) + np.sqrt(half)) ** 2)


def lambda_bound(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike, lam: ArrayLike) -> Result:
    """Lambda bound, risk/(1 - lam/2) + B/(lam (1 - lam/2)): linear in risk and kl, a training objective.

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 8.
        delta: failure probability in (0, 1).
        lam: in (0, 2); may depend on the data, the bound holds for all of them at once.

    Returns:
        Bound >= risk, not clipped at 1; inf for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, conditions of pac_bayes_kl.

    Source: Thiemann et al. (2017); docs/reference/formulas.md, pac-bayes-relaxations.

    >>> round(lambda_bound(0.02, 500, 30000, 0.025, 1.0), 6)
    0.073969
    """
    risk, kl, n, delta, lam = checked(8, risk=risk, kl=kl, n=n, delta=delta, lam=lam)
    return plain((risk + complexity(kl, n, delta) / lam) / (1 - lam / 2))


def optimal_lambda(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """Minimiser of lambda_bound, 2/(sqrt(2 risk/B + 1) + 1).

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 8.
        delta: failure probability in (0, 1).

    Returns:
        lam in (0, 1]; 1 for risk = 0.

    Raises:
        UsageError: an argument outside its range.

    Source: Thiemann et al. (2017); docs/reference/formulas.md, pac-bayes-relaxations.

    >>> optimal_lambda(0.0, 10, 1000, 0.05)
    1.0
    """
    risk, kl, n, delta = checked(8, risk=risk, kl=kl, n=n, delta=delta)
    return plain(2 / (np.sqrt(2 * risk / complexity(kl, n, delta) + 1) + 1))


def catoni(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike, beta: ArrayLike) -> Result:
    """Catoni's bound, (1 - exp(-beta risk - (KL + ln(1/delta))/n))/(1 - exp(-beta)).

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 1.
        delta: failure probability in (0, 1).
        beta: inverse temperature > 0, fixed before seeing the data. A minimum over beta is not a bound.

    Returns:
        Bound >= risk, not clipped at 1; 1/(1 - exp(-beta)) for kl = inf. No ln(2 sqrt(n)): a lucky beta can
        beat pac_bayes_kl slightly.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, conditions of pac_bayes_kl, for one beta.

    Source: Catoni (2007), Thm 1.2.6; docs/reference/formulas.md, catoni.

    >>> round(catoni(0.02, 500, 30000, 0.025, 1.0), 6)
    0.057143
    """
    risk, kl, n, delta, beta = checked(risk=risk, kl=kl, n=n, delta=delta, beta=beta)
    return plain(np.expm1(-beta * risk - (kl - np.log(delta)) / n) / np.expm1(-beta))
