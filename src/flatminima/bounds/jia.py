"""Theorem 1 of Jia & Su (2020). It is a score: its prior is built from the training samples (erratum J-l).

Let the volume go to 0 at any interpolating minimum: it "certifies" 0.034 at 50,000 random labels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import SYMBOLS, FloatArray, Result, check, checked, choice, plain, together

_VARIANTS = ("paper", "exact")


def jia_su(
    risk: ArrayLike,
    logdet: ArrayLike,
    n_params: ArrayLike,
    volume: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    *,
    variant: str = "paper",
) -> Result:
    """Right-hand side of Theorem 1, L0 + A + 2 sqrt((2 L0 + 2A + ln(2N/delta))/(N - 1)), A = jia_su_excess.

    Args:
        risk: L0, mean cross-entropy at the minimum, >= 0.
        logdet: gamma = ln det I(w0) of the Fisher matrix.
        n_params: W, at least 1.
        volume: V > 0 of the neighbourhood M(w0).
        n: N samples, at least 2.
        delta: failure probability in (0, 1).
        variant: `paper` (Stirling's A) or `exact`.

    Returns:
        The score; smaller is better. Not clipped at 1.

    Raises:
        UsageError: an argument outside its range, or an unknown variant.

    Kind: SCORE, always: M(w0), the support of the prior, depends on the samples, and cross-entropy is not in
    [0, 1]. fisher_laplace_kl with pac_bayes_kl is the valid replacement.

    Source: J20 Thm 1; errata J-i (A too small), J-j and J-k (loose), J-l (fatal).

    >>> round(jia_su(0.0, 0.0, 2, 1e-300, 50000, 0.05), 3)
    0.034
    """
    loss = check("risk", risk, SYMBOLS["loss"])
    n_, delta_ = checked(2, n=n, delta=delta)
    excess = np.asarray(jia_su_excess(logdet, n_params, volume, variant=variant))
    together({"risk": loss, "logdet, n_params, volume": excess, "n": n_, "delta": delta_})
    height = loss + excess
    return plain(height + 2 * np.sqrt((2 * height + np.log(2 * n_ / delta_)) / (n_ - 1)))


def jia_su_excess(logdet: ArrayLike, n_params: ArrayLike, volume: ArrayLike, *, variant: str = "exact") -> Result:
    """Height of the neighbourhood over its minimum, A = h - L0.

    exact: (V Gamma(W/2 + 1))^(2/W) exp(gamma/W)/(2 pi);  paper: W V^(2/W) pi^(1/W) exp(gamma/W)/(4 pi e).

    Args:
        logdet: gamma = ln det I(w0) of the Fisher matrix.
        n_params: W, at least 1.
        volume: V > 0 of the neighbourhood M(w0).
        variant: `exact` or `paper`, which Stirling's formula and W^((W+1)/W) -> W make smaller.

    Returns:
        A > 0. Ratio paper/exact: 0.652 at W = 2, 0.955 at 100, 0.99998 at 1e6.

    Raises:
        UsageError: an argument outside its range, or an unknown variant.

    Kind: SCORE.

    Source: J20 Thm 1 and its proof; erratum J-i.

    >>> round(jia_su_excess(0.0, 2, 1.0), 12) == round(1 / (2 * math.pi), 12)
    True
    """
    choice("variant", variant, _VARIANTS)
    logdet, w, volume = checked(logdet=logdet, n_params=n_params, volume=volume)
    shared = (2 * np.log(volume) + logdet) / w
    if variant == "paper":
        return plain(np.exp(shared + math.log(math.pi) / w + np.log(w) - math.log(4 * math.pi) - 1))
    from scipy.special import gammaln  # imported here: scipy.special doubles the import time

    return plain(np.exp(shared + 2 / w * gammaln(w / 2 + 1) - math.log(2 * math.pi)))


def jia_su_kl(logdet: ArrayLike, n_params: ArrayLike, volume: ArrayLike) -> Result:
    """KL of the theorem's posterior from its prior, computed where the paper bounds it by h.

    KL = ln V - ln Z - E[s^2/2], Z the mass of exp(-s^2/2) on the ellipsoid s^2 <= 2A, s^2 = (w - w0)' I (w
    - w0).

    Args:
        logdet: gamma = ln det I(w0) of the Fisher matrix.
        n_params: W, at least 1.
        volume: V > 0 of the neighbourhood M(w0).

    Returns:
        KL in [0, A]; tiny, since both distributions live on the same small ellipsoid.

    Raises:
        UsageError: an argument outside its range.

    Kind: SCORE; the prior depends on the samples.

    Source: J20 proof of Thm 1; erratum J-k.

    >>> 0 < jia_su_kl(-3.0, 4, 0.01) < jia_su_excess(-3.0, 4, 0.01)
    True
    """
    return _posterior(logdet, n_params, volume)[0]


def jia_su_expected_excess(logdet: ArrayLike, n_params: ArrayLike, volume: ArrayLike) -> Result:
    """Mean loss increase under the theorem's posterior, E[s^2/2], where the paper uses its maximum A.

    E[s^2/2] = (W/2) P(W/2 + 1, A)/P(W/2, A), with P the regularised incomplete gamma function.

    Args:
        logdet: gamma = ln det I(w0) of the Fisher matrix.
        n_params: W, at least 1.
        volume: V > 0 of the neighbourhood M(w0).

    Returns:
        E[s^2/2] in (0, A).

    Raises:
        UsageError: an argument outside its range.

    Kind: SCORE.

    Source: J20 proof of Thm 1.

    >>> 0 < jia_su_expected_excess(-3.0, 4, 0.01) < jia_su_excess(-3.0, 4, 0.01)
    True
    """
    return _posterior(logdet, n_params, volume)[1]


def _posterior(logdet: ArrayLike, n_params: ArrayLike, volume: ArrayLike) -> tuple[Result, Result]:
    excess = np.asarray(jia_su_excess(logdet, n_params, volume))
    half = np.asarray(checked(n_params=n_params)[0] / 2)
    excess, half = np.broadcast_arrays(excess, half)
    pairs = [_ball(float(a), float(k)) for a, k in zip(excess.flat, half.flat, strict=True)]
    table: FloatArray = np.array(pairs, dtype=np.float64).reshape(*excess.shape, 2)
    return plain(table[..., 0]), plain(table[..., 1])


def _ball(a: float, k: float) -> tuple[float, float]:
    """(KL, E t) for t = s^2/2 on [0, a] with density t^(k-1) exp(-t), against t^(k-1).

    KL = a - E t - ln S_k, where S_k = sum_i a^i/((k+1)...(k+i)) = 1 + a S_(k+1)/(k+1) and E t = k (1 -
    1/S_k). The textbook difference of logarithms loses all digits of a KL of 1e-6.
    """
    if a <= k + 1:
        terms = int(64 + 9 * math.sqrt(k))  # the last one is below exp(-40)
        y = a / (k + 1) * (1.0 + float(np.cumprod(a / (k + 2 + np.arange(terms))).sum()))
        mean = k * y / (1 + y)
        return max(a - mean - math.log1p(y), 0.0), mean
    from scipy.special import gammainc, gammaln

    inside = float(gammainc(k, a))
    mean = k * float(gammainc(k + 1, a)) / inside
    return k * math.log(a) - float(gammaln(k + 1)) - math.log(inside) - mean, mean
