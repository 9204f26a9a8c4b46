"""PAC-Bayes bounds of Neyshabur et al. (2017), by equation number; bi-criteria KL; Theorem 1.

(6) is about six times looser than `mcallester`; the bi-criteria KL uses a prior that depends on the weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import Result, checked, choice, plain, vectors
from flatminima.errors import UsageError


def neyshabur_5(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """McAllester's bound, risk + sqrt(risk K) + K with K = 2 (KL + ln(2n/delta))/(n - 1).

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 2.
        delta: failure probability in (0, 1).

    Returns:
        Bound >= risk, not clipped at 1; inf for kl = inf.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT for a loss in [0, 1], i.i.d. samples and a P that does not depend on them.

    Source: N17 (5), McAllester (2003).

    >>> round(neyshabur_5(0.02, 500, 30000, 0.025), 6)
    0.080511
    """
    risk, kl, n, delta = checked(2, risk=risk, kl=kl, n=n, delta=delta)
    k = 2 * (kl + np.log(2 * n / delta)) / (n - 1)
    return plain(risk + np.sqrt(risk) * np.sqrt(k) + k)


def neyshabur_6(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Result:
    """Weaker form of (5), risk + 4 sqrt((KL + ln(2n/delta))/n).

    Args:
        risk: empirical risk of the stochastic predictor, in [0, 1].
        kl: KL(Q||P) >= 0 in nats.
        n: i.i.d. samples, at least 2.
        delta: failure probability in (0, 1).

    Returns:
        Bound >= risk, not clipped at 1; inf for kl = inf. 4 sqrt(2) = 5.7 times the complexity of
        `mcallester`.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT, conditions of neyshabur_5.

    Source: N17 (6).

    >>> round(neyshabur_6(0.02, 500, 30000, 0.025), 6)
    0.543929
    """
    risk, kl, n, delta = checked(2, risk=risk, kl=kl, n=n, delta=delta)
    return plain(risk + 4 * np.sqrt((kl + np.log(2 * n / delta)) / n))


def neyshabur_8(
    risk: ArrayLike,
    sharpness: ArrayLike,
    norm_squared: ArrayLike,
    sigma: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
) -> Result:
    """Expected sharpness and norm, risk + sharpness + 4 sqrt((||w||^2/(2 sigma^2) + ln(2n/delta))/n).

    Args:
        risk: L^(w), risk of the network itself, in [0, 1].
        sharpness: E L^(w + u) - L^(w) under u ~ N(0, sigma^2 I).
        norm_squared: ||w||^2, or ||w - w0||^2 from the prior's centre.
        sigma: noise scale > 0, fixed before seeing the data.
        n: i.i.d. samples, at least 2.
        delta: failure probability in (0, 1).

    Returns:
        neyshabur_6 at the noisy risk, not clipped at 1.

    Raises:
        UsageError: an argument outside its range.

    Kind: CERT if sigma is fixed and the sharpness exact or bounded by monte_carlo_risk; SCORE for a
    sigma_i that scales with the weights (erratum N-c; kl_scaled_noise_fixed_prior is the valid form).

    Source: N17 (8).

    >>> round(neyshabur_8(0.01, 0.02, 40.0, 0.1, 50000, 0.05), 6)
    0.832896
    """
    risk, sharpness, norm, sigma, n, delta = checked(
        2, risk=risk, sharpness=sharpness, norm_squared=norm_squared, sigma=sigma, n=n, delta=delta
    )
    return plain(risk + sharpness + 4 * np.sqrt((norm / (2 * sigma**2) + np.log(2 * n / delta)) / n))


def bicriteria_kl(weights: ArrayLike, alpha: ArrayLike, *, variant: str = "main") -> Result:
    """KL of the weight-scaled noise sigma_i = alpha (10 |w_i| + 1), sum_i w_i^2/(2 sigma_i^2).

    Args:
        weights: w, (..., m) or a number.
        alpha: relative noise scale > 0.
        variant: `main` (the main text), or `appendix`, which misses the factor 1/2 (erratum N-d).

    Returns:
        KL, summed over the last axis; at most m/(200 alpha^2) for `main`.

    Raises:
        UsageError: an argument outside its range, or an unknown variant.

    Kind: SCORE: the prior has the posterior's variance, which depends on the weights (erratum N-c).

    Source: N17 sec. 4 and App. A; errata N-c, N-d.

    >>> bicriteria_kl([1.0], 1.0) == 1 / (2 * 11**2)
    True
    """
    choice("variant", variant, ("main", "appendix"))
    (w,) = vectors(weights=weights)
    (alpha_,) = checked(like=w, alpha=alpha)
    full = ((w / (10 * np.abs(w) + 1)) ** 2).sum(axis=-1) / alpha_**2
    return plain(full / 2 if variant == "main" else full)


def neyshabur_score(
    output_norm: float,
    frobenius: ArrayLike,
    widths: ArrayLike,
    sigma: ArrayLike,
    smoothness: float,
    c2: float,
    c3: float,
    n: int,
    delta: float,
    *,
    lipschitz: float = 1.0,
    active_frobenius: ArrayLike | None = None,
) -> float:
    """Right-hand side of Theorem 1, a bound on E L(f_(w+u)) - L^ up to a constant, which is taken as 1.

    [prod(1 + g_i) - 1 + prod(1 + g_i C2 C3) (prod(1 + g_i C_delta C2) - 1)] C_L output_norm
    + sqrt((sum ||W_i||_F^2/sigma_i^2 + ln(2n/delta))/n),
    g_i = sigma_i sqrt(h_i h_(i-1))/(mu^2 ||W_i||_F), C_delta = 2 sqrt(ln(d h/delta)), h = max_i h_i.

    Args:
        output_norm: mean over the samples of ||f_w(x)||_F.
        frobenius: ||W_i||_F > 0 of the d layers.
        widths: h_0, ..., h_d, the input dimension first.
        sigma: noise scale > 0 of each layer, or one number.
        smoothness: mu > 0 of condition C1, in the range that the proof needs (erratum N-e).
        c2, c3: constants > 0 of conditions C2 and C3.
        n: samples, at least 2.
        delta: failure probability in (0, 1).
        lipschitz: C_L, Lipschitz constant of the loss.
        active_frobenius: ||D_i W_i||_F over active units, which the proof has in g_i; without it, the
            theorem's ||W_i||_F, which understates g_i (erratum N-g).

    Returns:
        The score; smaller is better.

    Raises:
        UsageError: an argument outside its range, or lengths that do not match.

    Kind: SCORE: hidden constant, measured mu, C2 and C3, and a sigma that may depend on the weights.

    Source: N17 Thm 1; errata N-e, N-g, N-h, N-i (it mixes two events, so the confidence is 1 - 2 delta).

    >>> round(neyshabur_score(0.0, [1.0], [1, 1], [1.0], 1.0, 1.0, 1.0, 2, 0.5), 6)  # sqrt((1 + ln 8)/2)
    1.240855
    """
    norms, s = vectors(frobenius=frobenius, sigma=sigma)
    output, mu, c2_, c3_, n_, delta_, loss = checked(
        2, output_norm=output_norm, smoothness=smoothness, c2=c2, c3=c3, n=n, delta=delta, lipschitz=lipschitz
    )
    (h,) = vectors(widths=widths)
    if h.shape != (norms.shape[-1] + 1,):
        raise UsageError(
            f"got {h.size} widths for {norms.shape[-1]} layers; expected one more than layers: "
            "put the input dimension first"
        )
    active = norms if active_frobenius is None else vectors(active_frobenius=active_frobenius, frobenius=norms)[0]
    gain = s * np.sqrt(h[1:] * h[:-1]) / (mu**2 * active)
    c_delta = 2 * np.sqrt(np.log(norms.shape[-1] * h.max() / delta_))
    direct = np.expm1(np.log1p(gain).sum())
    crossed = np.exp(np.log1p(gain * c2_ * c3_).sum()) * np.expm1(np.log1p(gain * c_delta * c2_).sum())
    complexity = np.sqrt((((norms / s) ** 2).sum() + np.log(2 * n_ / delta_)) / n_)
    return float((direct + crossed) * loss * output + complexity)
