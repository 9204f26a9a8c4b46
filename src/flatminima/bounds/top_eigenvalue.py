"""Noise of any covariance through the Hessian's top eigenvalue (Wang et al., W1 Lemma 5 = W2 Lemma 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import Result, checked, plain, vectors
from flatminima.bounds.hoeffding import temperature_term


def lambda_max(
    risk: ArrayLike,
    top_eigenvalue: ArrayLike,
    second_moment: ArrayLike,
    third_moment: ArrayLike,
    rho: ArrayLike,
    kl: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    eta: ArrayLike,
    *,
    tight: bool = False,
) -> Result:
    """Bound on the noisy risk from the Hessian's top eigenvalue.

    risk + lambda_max E||u||^2/2 + rho E||u||^3/6 + (KL + ln(1/delta))/eta + c eta/n.

    Args:
        risk: L^(w), risk of the network itself, in [0, 1].
        top_eigenvalue: largest eigenvalue of the Hessian of the same loss at w.
        second_moment: E||u||^2 >= 0 of the noise, summed over parameters.
        third_moment: E||u||^3 >= 0, or an upper bound (noise_third_moment).
        rho: Lipschitz constant of the Hessian on the neighbourhood, >= 0.
        kl: KL(w + u || P) >= 0 in nats.
        n: i.i.d. samples, at least 1.
        delta: failure probability in (0, 1).
        eta: temperature > 0, fixed before seeing the data.
        tight: c = 1/8 (Hoeffding's lemma) instead of the paper's 1/2.

    Returns:
        Bound, not clipped at 1; inf for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: SCORE with an estimated top_eigenvalue or rho. CERT only where both are proven, the gradient at w
    is 0 (or u is centred), and u stays in the neighbourhood. u may be correlated.

    Source: W1 Lemma 5 (24), W2 Lemma 4, which hides the condition on the gradient in "local optimal".

    >>> lambda_max(0.5, 2.0, 0.25, 0.0, 0.0, 0.0, 100, 0.5, 1e9) > 0.75
    True
    """
    risk, top, second, third, rho, kl, n, delta, eta = checked(
        risk=risk,
        top_eigenvalue=top_eigenvalue,
        second_moment=second_moment,
        third_moment=third_moment,
        rho=rho,
        kl=kl,
        n=n,
        delta=delta,
        eta=eta,
    )
    return plain(risk + top * second / 2 + rho * third / 6 + temperature_term(kl, n, delta, eta, tight))


def noise_third_moment(second_moment: ArrayLike, fourth_moment: ArrayLike) -> Result:
    """Cauchy-Schwarz bound on the third moment, E||u||^3 <= sqrt(E||u||^2 E||u||^4).

    Args:
        second_moment: E||u||^2 >= 0.
        fourth_moment: E||u||^4 >= 0.

    Returns:
        Upper bound on E||u||^3.

    Raises:
        UsageError: a negative moment.

    Source: W1 Lemma 5.

    >>> noise_third_moment(4.0, 16.0)  # a constant ||u|| = 2
    8.0
    """
    second, fourth = checked(second_moment=second_moment, fourth_moment=fourth_moment)
    return plain(np.sqrt(second) * np.sqrt(fourth))


def uniform_noise_moments(sigma: ArrayLike) -> tuple[Result, Result]:
    """Moments of u_i ~ U(-sigma_i, sigma_i).

    E||u||^2 = sum sigma^2/3,   E||u||^4 = (E||u||^2)^2 + (1/5 - 1/9) sum sigma^4.

    Args:
        sigma: half-widths > 0, (..., m) or a number.

    Returns:
        (E||u||^2, E||u||^4), summed over the last axis.

    Raises:
        UsageError: a half-width that is not positive.

    Source: docs/reference/formulas.md, uniform-noise.

    >>> second, fourth = uniform_noise_moments(1.0)
    >>> round(second, 12) == round(1 / 3, 12) and round(fourth, 12) == 0.2
    True
    """
    (s,) = vectors(sigma=sigma)
    second = (s**2).sum(axis=-1) / 3
    return plain(second), plain(second**2 + (1 / 5 - 1 / 9) * (s**4).sum(axis=-1))


def gaussian_noise_moments(sigma: ArrayLike) -> tuple[Result, Result]:
    """Moments of u_i ~ N(0, sigma_i^2).

    E||u||^2 = sum sigma^2,   E||u||^4 = (E||u||^2)^2 + 2 sum sigma^4.

    Args:
        sigma: standard deviations > 0, (..., m) or a number.

    Returns:
        (E||u||^2, E||u||^4), summed over the last axis.

    Raises:
        UsageError: a standard deviation that is not positive.

    Source: textbook.

    >>> gaussian_noise_moments(1.0)
    (1.0, 3.0)
    """
    (s,) = vectors(sigma=sigma)
    second = (s**2).sum(axis=-1)
    return plain(second), plain(second**2 + 2 * (s**4).sum(axis=-1))
