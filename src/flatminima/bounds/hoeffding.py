"""PAC-Bayes-Hoeffding (Wang et al., W1 Thm 1) and its valid form for a data-chosen eta, a union-bound grid.

The paper's variance factor 1/2 is loose: Hoeffding's lemma gives 1/8 for losses in [0, 1] (erratum W-a).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, plain

PAPER, TIGHT = 1 / 2, 1 / 8
_GRID = 61  # j = 0 .. 60: eta_j spans a factor e^60, KL up to e^120 times ln(1/delta)


def hoeffding(
    risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike, eta: ArrayLike, tight: bool = False
) -> Result:
    """PAC-Bayes-Hoeffding bound, risk + (KL + ln(1/delta))/eta + c eta/n.

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 1.
        delta: failure probability in (0, 1).
        eta: temperature > 0, fixed before seeing the data.
        tight: c = 1/8 (Hoeffding's lemma) instead of the paper's 1/2.

    Returns:
        Bound >= risk, not clipped at 1; inf for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT for a loss in [0, 1], i.i.d. samples, and P and eta that do not depend on them. Minimising
    over eta needs hoeffding_grid.

    Source: W1 Thm 1 (2), W2 (3); erratum W-a (loose, not wrong).

    >>> round(hoeffding(0.1, 20, 1000, 0.05, eta=200), 9)
    0.314978661
    """
    risk, kl, n, delta, eta = checked(risk=risk, kl=kl, n=n, delta=delta, eta=eta)
    return plain(risk + temperature_term(kl, n, delta, eta, tight))


def hoeffding_grid(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike, tight: bool = False) -> Result:
    """PAC-Bayes-Hoeffding with the best eta of a grid, paid for by a union bound.

    risk + min_j [(KL + ln(1/delta_j))/eta_j + c eta_j/n],  delta_j = delta 2^-(j+1),
    eta_j = e^j sqrt(n ln(1/delta_j)/c),  j = 0 .. 60.

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 1.
        delta: failure probability in (0, 1).
        tight: c = 1/8 (Hoeffding's lemma) instead of the paper's 1/2.

    Returns:
        Bound >= risk, not clipped at 1; inf for kl = inf. Not monotone in delta, which moves the grid: at
        KL = 32 and c = 1/2, delta = 0.5 costs 3% more than 0.25.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT for a loss in [0, 1], i.i.d. samples and a P that does not depend on them.

    Source: W1 Thm 2 and App. D, as corrected by errata W-d and W-e: the grid itself, not its closed form.

    >>> hoeffding_grid(0.1, 20, 1000, 0.05) > 0.31445620659497825  # the infimum over eta, which is no bound
    True
    """
    risk, kl, n, delta = checked(risk=risk, kl=kl, n=n, delta=delta)
    return plain(risk + grid_term(kl, n, delta, tight))


def temperature_term(kl: FloatArray, n: FloatArray, delta: FloatArray, eta: FloatArray, tight: bool) -> FloatArray:
    """(KL + ln(1/delta))/eta + c eta/n."""
    return np.asarray((kl - np.log(delta)) / eta + (TIGHT if tight else PAPER) * eta / n)


def grid_term(kl: FloatArray, n: FloatArray, delta: FloatArray, tight: bool) -> FloatArray:
    """The least temperature_term over the grid, each member with its share of delta."""
    factor = TIGHT if tight else PAPER
    kl, n, delta = np.broadcast_arrays(kl, n, delta)
    j = np.arange(float(_GRID)).reshape(-1, *[1] * kl.ndim)
    log_inverse = (j + 1) * math.log(2) - np.log(delta)
    eta = np.exp(j) * np.sqrt(n * log_inverse / factor)
    return np.asarray(((kl + log_inverse) / eta + factor * eta / n).min(axis=0))
