"""Uniform noise with eta chosen from a grid (Wang et al., W1 Theorem 2).

The closed form that the paper prints does not follow from its proof; it is kept for comparison.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import Result, checked, plain, vectors
from flatminima.bounds.divergence import uniform
from flatminima.bounds.hoeffding import grid_term
from flatminima.bounds.wang import increase, sigma_star


def uniform_perturbation_grid(
    risk: ArrayLike,
    hessian_diag: ArrayLike,
    rho: ArrayLike,
    kappa: ArrayLike,
    tau: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    *,
    distance: ArrayLike = 0.0,
    tight: bool = False,
) -> Result:
    """Uniform noise without a free eta: sigma* at eta = sqrt(m n), and hoeffding_grid for the complexity.

    risk + sum_i a_i sigma_i^2/2 + min_j [...], a_i as in uniform_perturbation; the sum is at most sqrt(m/n)/2.

    Args:
        risk, hessian_diag, rho, kappa, tau, n, delta, distance, tight: as in uniform_perturbation.

    Returns:
        Bound, not clipped at 1; inf where |w_i - w0_i| + sigma_i > tau_i.

    Raises:
        UsageError: an argument outside its range.

    Kind: as uniform_perturbation, with no eta to fix.

    Source: W1 Thm 2 (4), W2 Thm 2, in the computable form of errata W-d and W-e.

    >>> 0.1 < uniform_perturbation_grid(0.1, [1.0, 2.0], 0.0, 0.1, 1.0, 10**6, 0.05) < 0.11
    True
    """
    h, kappa_, tau_, distance_ = vectors(hessian_diag=hessian_diag, kappa=kappa, tau=tau, distance=distance)
    risk, rho, n, delta = checked(like=h, risk=risk, rho=rho, n=n, delta=delta)
    s = sigma_star(h, rho, kappa_, np.sqrt(h.shape[-1] * n))
    kl = uniform(tau_, s, distance_)
    return plain(risk + increase(h, rho, kappa_, s) + grid_term(kl, n, delta, tight))


def uniform_perturbation_printed(
    risk: ArrayLike,
    hessian_diag: ArrayLike,
    rho: ArrayLike,
    kappa: ArrayLike,
    tau: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    *,
    distance: ArrayLike = 0.0,
) -> Result:
    """Theorem 2 with the closed form that its appendix prints; the paper's proof does not support it.

    risk + sqrt(m/n)/2 + (1 + 1/e) sqrt(K'/(2n)),  K' = K + ln(1/delta) + (ln 2)/2 (2 + ln(K/ln(1/delta) + 1)),
    K the KL of uniform_perturbation_grid. With the paper's c = 1/2 no eta gets a factor below 2; 1 + 1/e is 1.37.

    Args:
        risk, hessian_diag, rho, kappa, tau, n, delta, distance: as in uniform_perturbation.

    Returns:
        The printed value; inf where |w_i - w0_i| + sigma_i > tau_i.

    Raises:
        UsageError: an argument outside its range.

    Kind: SCORE, for comparison with the paper. Use uniform_perturbation_grid(..., tight=True): it is proven, and
    smaller (checked for K from 0 to 1e14), which makes the printed value true for a reason the paper does not give.

    Source: W1 App. D; erratum W-d.

    >>> printed = uniform_perturbation_printed(0.1, [1.0], 0.0, 0.1, 1.0, 1000, 0.05)
    >>> printed < uniform_perturbation_grid(0.1, [1.0], 0.0, 0.1, 1.0, 1000, 0.05)
    True
    """
    h, kappa_, tau_, distance_ = vectors(hessian_diag=hessian_diag, kappa=kappa, tau=tau, distance=distance)
    risk, rho, n, delta = checked(like=h, risk=risk, rho=rho, n=n, delta=delta)
    m = h.shape[-1]
    kl = uniform(tau_, sigma_star(h, rho, kappa_, np.sqrt(m * n)), distance_)
    log_inverse = -np.log(delta)
    effective = kl + log_inverse + math.log(2) / 2 * (2 + np.log1p(kl / log_inverse))
    return plain(risk + np.sqrt(m / n) / 2 + (1 + 1 / math.e) * np.sqrt(effective / (2 * n)))
