"""Calculations that decide what Wang et al. say of their bound: closed forms, quadrature, small exact examples."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import erf, erfinv
from scipy.stats import truncnorm

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random

_N, _DELTA, _ETA = 100, 0.05, 39.0
_DRAWS = 2_000


def _bound(h: Array, w: Array, *, rho: float = 0.0, n: int = _N, eta: float = _ETA, eps: float = 0.1) -> float:
    kappa = 0.1 * np.abs(w) + eps
    return float(bounds.uniform_perturbation(0.0, h, rho, kappa, np.abs(w) + kappa, n, _DELTA, eta))


def bound_terms() -> Outcome:
    """Lemma 3's bound moves with the Hessian, its Lipschitz constant, the weights' scale and the samples."""
    h, w = np.full(5, 20.0), np.full(5, 1.0)
    base = _bound(h, w, rho=1.0)
    moved = {"h": _bound(10 * h, w, rho=1.0), "rho": _bound(h, w, rho=1e3), "w": _bound(h, 10 * w, rho=1.0)}
    fewer = _bound(h, w, rho=1.0, n=10)
    changes = ", ".join(f"{name} tenfold or more {value - base:+.3f}" for name, value in moved.items())
    holds = all(abs(value - base) > 1e-3 for value in moved.values()) and fewer > base
    return Outcome(holds, f"{changes}, a tenth of the samples {fewer - base:+.3f} nats")


def hoeffding_covers() -> Outcome:
    """Theorem 1 on a class of 20 classifiers: the bound fails in at most a share delta of the draws."""
    rng, n, delta, eta = random(0), 100, 0.1, 20.0
    risks = np.linspace(0.1, 0.6, 20)
    failed = 0
    for _ in range(_DRAWS):
        seen = rng.binomial(n, risks) / n
        posterior = np.exp(-30 * seen)
        posterior /= posterior.sum()
        kl = float((posterior * np.log(posterior * 20)).sum())
        failed += float(posterior @ risks) > float(bounds.hoeffding(posterior @ seen, kl, n, delta, eta))
    return Outcome(failed / _DRAWS <= delta, f"fails in {failed} of {_DRAWS} draws at delta {delta}")


def eta_optimized() -> Outcome:
    """The best eta gives 2 sqrt((KL + ln 1/delta) / (2 n))."""
    kl = 7.0
    best = minimize_scalar(lambda e: float(bounds.hoeffding(0.0, kl, _N, _DELTA, math.exp(e))), bounds=(-5, 10))
    closed = 2 * math.sqrt((kl + math.log(1 / _DELTA)) / (2 * _N))
    return Outcome(bool(abs(best.fun / closed - 1) < 1e-6), f"{best.fun:.5f} by search, {closed:.5f} by the formula")


def eta_grid() -> Outcome:
    """The grid's bound lies above the best eta's, by a factor that stays below 1 + 1/e and the union's logarithm."""
    ratios = []
    for kl in (1.0, 10.0, 100.0, 1_000.0):
        best = 2 * math.sqrt((kl + math.log(1 / _DELTA)) / (2 * 10_000))
        ratios.append(float(bounds.hoeffding_grid(0.0, kl, 10_000, _DELTA)) / best)
    return Outcome(all(1 <= r < 2 for r in ratios), f"{min(ratios):.2f} to {max(ratios):.2f} times the best eta's")


def noise_tradeoff() -> Outcome:
    """Less noise: a smaller rise of a quadratic loss, and a larger divergence."""
    sigma = np.array([0.01, 0.1, 1.0])
    rise = 0.5 * 3.0 * sigma**2 / 3
    kl = np.array([float(bounds.kl_uniform(np.array([2.0]), np.array([s]))) for s in sigma])
    holds = bool((np.diff(rise) > 0).all() and (np.diff(kl) < 0).all())
    return Outcome(holds, f"sigma 0.01 to 1: rise {rise[0]:.1e} to {rise[-1]:.2f}, KL {kl[0]:.2f} to {kl[-1]:.2f} nats")


def _right_side(sigma: float, h: float, rho: float, kappa: float, m: int, eta: float) -> float:
    """What of (7) depends on one sigma."""
    return (h / 6 + rho * math.sqrt(m) * kappa / 18) * sigma**2 - math.log(sigma) / eta


def _least(h: float, rho: float, kappa: float, m: int, eta: float) -> float:
    found = minimize_scalar(
        lambda s: _right_side(math.exp(s), h, rho, kappa, m, eta),
        bounds=(-12.0, math.log(kappa)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return math.exp(float(found.x))


def sigma_minimizes() -> Outcome:
    """sigma* is where the right side of (7) is least."""
    cases = [(5.0, 2.0, 1.0, 4, 39.0), (0.0, 2.0, 1.0, 4, 39.0), (0.1, 0.0, 0.2, 1, 1.0)]
    worst = max(
        abs(_least(h, rho, kappa, m, eta) / float(bounds.uniform_sigma(np.full(m, h), rho, kappa, eta)[0]) - 1)
        for h, rho, kappa, m, eta in cases
    )
    return Outcome(worst < 1e-4, f"relative difference to a search at most {worst:.0e}")


def other_radius() -> Outcome:
    """The same for a radius that does not depend on the weight, and one of its square."""
    worst = max(
        abs(_least(4.0, 1.0, kappa, 3, 20.0) / float(bounds.uniform_sigma(np.full(3, 4.0), 1.0, kappa, 20.0)[0]) - 1)
        for kappa in (0.5, 0.7**2)
    )
    return Outcome(worst < 1e-4, f"relative difference to a search at most {worst:.0e}")


def perturbed_loss_bounded() -> Outcome:
    """Theorem 2 for the mean of uniform samples under loss (w - x)^2 / 4: how often the bound fails."""
    rng, n, delta, kappa = random(1), 200, 0.1, 0.5
    failed, gap = 0, 0.0
    for _ in range(_DRAWS):
        x = rng.uniform(-1, 1, n)
        w = float(np.clip(x.mean(), -0.5, 0.5))
        h, tau = np.array([0.5]), np.array([abs(w) + kappa])
        risk = float(((w - x) ** 2).mean() / 4)
        bound = float(bounds.uniform_perturbation_grid(risk, h, 0.0, kappa, tau, n, delta))
        sigma = min(math.sqrt(1 / (math.sqrt(n) * 0.5 / 3)), kappa)
        true = (w**2 + sigma**2 / 3 + 1 / 3) / 4
        failed, gap = failed + (true > bound), gap + (bound - true) / _DRAWS
    return Outcome(
        failed / _DRAWS <= delta, f"fails in {failed} of {_DRAWS} draws; {gap:.2f} above the loss on average"
    )


def bound_logarithmic() -> Outcome:
    """Each tenfold h or rho adds the same."""
    w = np.full(5, 10.0)
    by_h = np.diff([_bound(np.full(5, h), w) for h in (1e3, 1e4, 1e5)])
    by_rho = np.diff([_bound(np.zeros(5), w, rho=r) for r in (1e4, 1e5, 1e6)])
    spread = max(abs(d[1] / d[0] - 1) for d in (by_h, by_rho))
    return Outcome(
        bool(spread < 1e-6), f"{by_h[0]:.4f} and {by_h[1]:.4f} nats for h, {by_rho[0]:.4f}, {by_rho[1]:.4f} for rho"
    )


def sigma_of_curvature() -> Outcome:
    """A hundredfold curvature, a tenth of the noise, where kappa does not cap it."""
    few, many = (float(bounds.uniform_sigma(np.array([h]), 0.0, 100.0, _ETA)[0]) for h in (1.0, 100.0))
    return Outcome(abs(few / many - 10) < 1e-9, f"sigma {few:.4f} at h = 1, {many:.4f} at h = 100")


def bound_explodes() -> Outcome:
    """Theorem 2's right side for a hundred parameters a sample, of a loss in [0, 1]."""
    m, n = 100_000, 1_000
    h, kappa = np.full(m, 0.1), np.full(m, 0.1)
    found = float(bounds.uniform_perturbation_grid(0.0, h, 0.0, kappa, 2 * kappa, n, _DELTA))
    return Outcome(found > 1, f"{found:.0f} for m = {m:,} and n = {n:,}")


def taylor_terms() -> Outcome:
    """E g u = 0 and E u H u / 2 = sum H_ii sigma_i^2 / 6, by a quadrature that is exact for both."""
    rng, m = random(2), 6
    g, a, sigma = rng.standard_normal(m), rng.standard_normal((m, m)), rng.uniform(0.1, 1, m)
    hessian = a + a.T
    signs = np.array(np.meshgrid(*[[-1, 1]] * m)).reshape(m, -1).T
    u = signs * sigma / math.sqrt(3)
    linear = float((u @ g).mean())
    second = float(np.einsum("ki,ij,kj->k", u, hessian, u).mean() / 2)
    closed = float((np.diag(hessian) * sigma**2).sum() / 6)
    return Outcome(
        abs(linear) < 1e-12 and abs(second - closed) < 1e-12, f"{linear:.0e}; {second:.6f} against {closed:.6f}"
    )


def third_order() -> Outcome:
    """||u||^3 <= sqrt(m) sum |u_i|^3 <= sqrt(m) sum kappa_i u_i^2, and the right side rises with sigma."""
    u = random(3).uniform(-1, 1, (_DRAWS, 7)) * 0.3
    left = np.linalg.norm(u, axis=1) ** 3
    middle, right = math.sqrt(7) * (np.abs(u) ** 3).sum(1), math.sqrt(7) * (0.3 * u**2).sum(1)
    holds = bool((left <= middle + 1e-15).all() and (middle <= right + 1e-15).all())
    return Outcome(holds, f"in {_DRAWS} of {_DRAWS} draws" if holds else "not in every draw")


def norm_inequality() -> Outcome:
    """||u||_2 <= m^(1/6) ||u||_3, with equality for equal entries."""
    u = random(4).standard_normal((_DRAWS, 9))
    ratio = np.linalg.norm(u, axis=1) / (9 ** (1 / 6) * (np.abs(u) ** 3).sum(1) ** (1 / 3))
    equal = 3.0 / (9 ** (1 / 6) * 9 ** (1 / 3))
    return Outcome(bool(ratio.max() <= 1 and abs(equal - 1) < 1e-12), f"left over right at most {ratio.max():.3f}")


def sigma_scales() -> Outcome:
    """Weights tenfold, curvature a hundredth: does sigma* become a tenth?"""
    before = float(bounds.uniform_sigma(np.array([5.0]), 0.0, np.array([3.0]), _ETA)[0])
    after = float(bounds.uniform_sigma(np.array([0.05]), 0.0, np.array([30.0]), _ETA)[0])
    return Outcome(abs(after / before - 0.1) < 1e-9, f"sigma* is {after / before:.3g} times as large, not 0.1 times")


def only_relevant_term() -> Outcome:
    """Two solutions of equal loss: their bounds (8) differ by the difference of sum ln(tau / sigma) over eta."""
    h, kappa = np.array([4.0, 400.0]), np.array([0.3, 0.3])
    values, sums = [], []
    for curvature in (h, 10 * h):
        sigma = bounds.uniform_sigma(curvature, 0.0, kappa, _ETA)
        sums.append(float(np.log(1.0 / sigma).sum()))
        values.append(len(h) / 2 / _ETA + sums[-1] / _ETA + math.log(1 / _DELTA) / _ETA + _ETA / 2 / _N)
    rest = (values[1] - values[0]) - (sums[1] - sums[0]) / _ETA
    return Outcome(abs(rest) < 1e-12, f"what is left beside it: {rest:.0e}")


def first_order_of_one_draw() -> Outcome:
    """g u of one draw has mean zero, a deviation that is not, and vanishes with g."""
    u = random(5).uniform(-1, 1, (_DRAWS, 50))
    g = random(6).standard_normal(50)
    one, mean, small = float((u @ g).std()), float((u @ g).mean()), float((u @ (1e-6 * g)).std())
    return Outcome(
        one > 1 and small < 1e-4 and abs(mean) < 4 * one / math.sqrt(_DRAWS), f"deviation {one:.2f}, then {small:.0e}"
    )


def truncation_radius() -> Outcome:
    """sigma just below kappa / (sqrt(2) erfinv(1 / 2m)), as printed: is P(E) at least a half?"""
    m, kappa = 100, 1.0
    as_printed, as_meant = (0.999 * kappa / (math.sqrt(2) * float(erfinv(p))) for p in (1 / (2 * m), 1 - 1 / (2 * m)))
    printed, meant = (float(erf(kappa / (s * math.sqrt(2)))) ** m for s in (as_printed, as_meant))
    return Outcome(printed >= 0.5, f"P(E) is {printed:.0e} as printed, {meant:.2f} with 1 - 1/(2m), for m = {m}")


def truncated_kl() -> Outcome:
    """KL of the truncated Gaussian against 2 (KL of the Gaussian + 1), at the largest sigma that is meant."""
    ratios = []
    for m in (2, 20, 200):
        kappa, tau = 0.5, 4.0
        sigma = kappa / (math.sqrt(2) * float(erfinv(1 - 1 / (2 * m))))
        w = np.full(m, math.sqrt(tau / m) / 2)
        whole = float(0.5 * (m * math.log(tau / sigma**2) - m + m * sigma**2 / tau + (w**2).sum() / tau))
        cut = float(bounds.kl_truncated_gaussian(w, np.full(m, sigma), np.full(m, kappa), tau))
        ratios.append(cut / (2 * (whole + 1)))
    return Outcome(max(ratios) <= 1, f"left over right {min(ratios):.2f} to {max(ratios):.2f}, m of 2 to 200")


def truncated_variance() -> Outcome:
    """Variance of a standard Gaussian cut at 0.5 to 4 deviations."""
    found = [float(truncnorm(-a, a).var()) for a in (0.5, 1.0, 2.0, 4.0)]
    return Outcome(max(found) < 1, f"{found[0]:.3f} to {found[-1]:.3f} of the Gaussian's")


def truncated_sigma() -> Outcome:
    """Is (16), as printed, where (14) is least?"""
    h, rho, kappa, tau, eta, m = 2.0, 3.0, 100.0, 50.0, 10.0, 4
    least = minimize_scalar(
        lambda s: (h / 2 + rho * math.sqrt(m) * kappa / 6 + 1 / (2 * tau * eta)) * s**2 - math.log(s) / eta,
        bounds=(1e-6, 1.0),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    printed = (eta * h + rho * math.sqrt(m) * kappa / 3 + 1 / tau) ** -0.5
    proved = (eta * h + rho * eta * math.sqrt(m) * kappa / 3 + 1 / tau) ** -0.5
    return Outcome(
        bool(abs(printed / least - 1) < 1e-3),
        f"{printed:.4f} as printed, {proved:.4f} by the proof, {least:.4f} by search",
    )


def gaussian_kl() -> Outcome:
    """(13) for weights on the sphere of squared radius tau: equality."""
    m, tau = 5, 3.0
    sigma = np.linspace(0.1, 1, m)
    kl = 0.5 * (m * math.log(tau) - np.log(sigma**2).sum() - m + (sigma**2).sum() / tau + 3.0 / tau)
    right = 0.5 * (m * math.log(tau) - np.log(sigma**2).sum() - m + (sigma**2).sum() / tau + 1)
    return Outcome(bool(kl <= right + 1e-12), f"{kl:.4f} against {right:.4f} nats")


def rayleigh() -> Outcome:
    """u H u <= lambda_max ||u||^2 and its mean, for correlated u with a mean of its own."""
    rng = random(7)
    a, mix = rng.standard_normal((6, 6)), rng.standard_normal((6, 6))
    hessian = a + a.T
    u = rng.standard_normal((_DRAWS, 6)) @ mix + 0.5
    left, top = np.einsum("ki,ij,kj->k", u, hessian, u), float(np.linalg.eigvalsh(hessian)[-1])
    right = top * (u**2).sum(1)
    return Outcome(bool((left <= right + 1e-9).all()), f"mean {left.mean():.1f} against {right.mean():.1f}")


def third_order_small() -> Outcome:
    """Third- over second-order term of one weight at sigma of 1, 0.1 and 0.01."""
    ratios = [(2.0 / 6 * s**3 / 4) / (0.5 * 3.0 * s**2 / 3) for s in (1.0, 0.1, 0.01)]
    holds = ratios[0] > ratios[1] > ratios[2]
    return Outcome(holds, ", ".join(f"{r:.1e}" for r in ratios) + "; as bounded in (8) the ratio stays")


def window() -> Outcome:
    """Mean of h u^2 / 2 over a window of half-width 1 around two minima of equal loss."""
    flat, sharp = (h / 2 / 3 for h in (1.0, 10.0))
    return Outcome(flat < sharp, f"{flat:.3f} for h = 1, {sharp:.3f} for h = 10")


def m_equation() -> Outcome:
    """E L(w + u) - L(w) against the right side, for cos at its minimum (h = 1, rho = 1)."""
    sigma = 1.0
    left = 1 - math.sin(sigma) / sigma
    right = sigma**2 / 6 + sigma**3 / 24
    return Outcome(left <= right, f"{left:.4f} at most {right:.4f}: a bound, not an equation")


def cifar_sizes() -> Outcome:
    """Training images of the two data sets."""
    ten, hundred = 50_000, 50_000
    return Outcome(
        ten < hundred, f"CIFAR-10 has {ten:,} training images, CIFAR-100 {hundred:,}; fewer a class has CIFAR-100"
    )
