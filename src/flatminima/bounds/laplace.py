"""KL of Laplace posteriors from a Fisher matrix or a Hessian diagonal: the valid Fisher log-determinant.

Feed it to pac_bayes_kl. Q may be any function of the data; only the prior N(w_p, s^2 I) may not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import FloatArray, Result, checked, plain, vectors
from flatminima.bounds._special import log1p_gap
from flatminima.errors import UsageError

_NEGATIVE = 1e-6  # relative to the largest: eigenvalues of a float32 Gram matrix fall this far below 0


def fisher_laplace_kl(
    eigenvalues: ArrayLike, distance_squared: ArrayLike, prior_sigma: ArrayLike, eta: ArrayLike
) -> Result:
    """KL of N(w0, (eta F + I/s^2)^-1) from the prior N(w_p, s^2 I).

    [sum_k (ln(1 + a_k) - a_k/(1 + a_k)) + ||w0 - w_p||^2/s^2]/2,  a_k = eta s^2 lambda_k(F).

    Args:
        eigenvalues: lambda_k >= 0 of F, (..., k); zeros may be left out, so those of the Gram matrix JJ'/N
            do.
        distance_squared: ||w0 - w_p||^2 over all parameters, >= 0.
        prior_sigma: s > 0, fixed before seeing the data of the bound.
        eta: weight of F > 0; any value, it only shapes Q.

    Returns:
        KL >= 0 in nats. It contains ln det(I + eta s^2 F)/2.

    Raises:
        UsageError: an argument outside its range, or an eigenvalue clearly below 0.

    Kind: exact; with pac_bayes_kl a CERT if the prior does not depend on the samples of the bound.

    Source: ours, in place of J20 Thm 1 (erratum J-l); docs/reference/formulas.md, laplace.

    >>> fisher_laplace_kl([0.0, 0.0], 8.0, 2.0, 1.0)
    1.0
    """
    (values,) = vectors(eigenvalues=eigenvalues)
    distance, s, eta_ = checked(like=values, distance_squared=distance_squared, prior_sigma=prior_sigma, eta=eta)
    if np.any(values < -_NEGATIVE * np.abs(values).max(axis=-1, keepdims=True)):
        raise UsageError(
            f"got eigenvalues down to {values.min():.3g}; expected a Fisher matrix, which has none below 0: "
            "use the Gauss-Newton matrix, not the Hessian"
        )
    a = (eta_ * s**2)[..., None] * np.maximum(values, 0.0)
    return plain((_shrinkage(a).sum(axis=-1) + distance / s**2) / 2)


def diagonal_laplace_kl(hessian_diag: ArrayLike, distance: ArrayLike, prior_sigma: ArrayLike, eta: ArrayLike) -> Result:
    """KL of N(w0, diag(sigma^2)) from the prior N(w_p, s^2 I), with sigma = diagonal_laplace_sigma(...).

    sum_i [ln(1 + a_i) - a_i/(1 + a_i) + (w0_i - w_p,i)^2/s^2]/2,  a_i = eta s^2 max(h_i, 0).

    Args:
        hessian_diag: h_i, (..., m); negative ones count as 0.
        distance: w0 - w_p, (..., m) or a number for every parameter.
        prior_sigma: s > 0, fixed before seeing the data of the bound.
        eta: weight of the curvature > 0; any value, it only shapes Q.

    Returns:
        KL >= 0 in nats, summed over the last axis.

    Raises:
        UsageError: an argument outside its range.

    Kind: exact; with pac_bayes_kl a CERT if the prior does not depend on the samples of the bound.

    Source: ours, the Gaussian twin of W1 Lemma 3; docs/reference/formulas.md, laplace.

    >>> diagonal_laplace_kl([0.0, -1.0], [2.0, 2.0], 2.0, 1.0)
    1.0
    """
    h, distance_ = vectors(hessian_diag=hessian_diag, distance=distance)
    s, eta_ = (x[..., None] for x in checked(like=h, prior_sigma=prior_sigma, eta=eta))
    a = eta_ * s**2 * np.maximum(h, 0.0)
    return plain((_shrinkage(a) + (distance_ / s) ** 2).sum(axis=-1) / 2)


def diagonal_laplace_sigma(hessian_diag: ArrayLike, prior_sigma: ArrayLike, eta: ArrayLike) -> Result:
    """Noise scales of the diagonal Laplace posterior, (eta max(h_i, 0) + 1/s^2)^-1/2.

    Args:
        hessian_diag: h_i, (..., m); negative ones count as 0.
        prior_sigma: s > 0.
        eta: weight of the curvature > 0.

    Returns:
        sigma, float64 (..., m), at most s.

    Raises:
        UsageError: an argument outside its range.

    Source: docs/reference/formulas.md, laplace.

    >>> diagonal_laplace_sigma([3.0, -1.0], 1.0, 1.0)
    array([0.5, 1. ])
    """
    (h,) = vectors(hessian_diag=hessian_diag)
    s, eta_ = (x[..., None] for x in checked(like=h, prior_sigma=prior_sigma, eta=eta))
    return np.asarray(s / np.sqrt(1 + eta_ * s**2 * np.maximum(h, 0.0)))


def _shrinkage(a: FloatArray) -> FloatArray:
    """ln(1 + a) - a/(1 + a), which is x - ln(1 + x) at x = -a/(1 + a): a^2/2 for small a."""
    small = a < 0.5
    x = np.where(small, -a / (1 + a), 0.0)
    return np.where(small, log1p_gap(x), np.log1p(a) + 1 / (1 + a) - 1)
