"""Calculations that decide what Wang et al. say of their bound: closed forms, quadrature, small exact examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import erf, erfinv
from scipy.stats import truncnorm
from torch.distributions import MultivariateNormal, kl_divergence

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random, tiny

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


def eta_optimized() -> Outcome:
    """The best eta gives 2 sqrt((KL + ln 1/delta) / (2 n))."""
    kl = 7.0
    best = minimize_scalar(lambda e: float(bounds.hoeffding(0.0, kl, _N, _DELTA, math.exp(e))), bounds=(-5, 10))
    closed = 2 * math.sqrt((kl + math.log(1 / _DELTA)) / (2 * _N))
    return Outcome(bool(abs(best.fun / closed - 1) < 1e-6), f"{best.fun:.5f} by search, {closed:.5f} by the formula")


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


def _increments(of: Callable[[float], float], at: float) -> Array:
    """What two tenfold steps add, from `at` on: the same twice where it goes with the logarithm."""
    return np.diff([of(at * factor) for factor in (1.0, 10.0, 100.0)])


def _logarithmic(steps: Mapping[str, Array]) -> tuple[bool, str]:
    same = all(abs(step[1] / step[0] - 1) < 1e-3 and abs(step[0]) > 1e-3 for step in steps.values())
    return same, ", ".join(f"{name} {step[0]:+.3f} and {step[1]:+.3f}" for name, step in steps.items())


def bound_logarithmic() -> Outcome:
    """Theorem 2's sum ln(tau / sigma) at tenfold h, rho and kappa; and what m and n do to the bound."""
    m, n = 5, 10_000

    def complexity(h: float, rho: float, kappa: float) -> float:
        sigma = bounds.uniform_sigma(np.full(m, h), rho, kappa, math.sqrt(m * n))
        return float(np.log((1.0 + kappa) / sigma).sum())

    steps = {
        "h": _increments(lambda h: complexity(h, 0.0, 1.0), 1e2),
        "rho": _increments(lambda rho: complexity(0.0, rho, 1.0), 1e3),
        "kappa": _increments(lambda kappa: complexity(0.0, 1.0, kappa), 1e4),
    }
    same, said = _logarithmic(steps)

    def grid(m: int, n: int) -> float:
        return float(bounds.uniform_perturbation_grid(0.0, np.full(m, 1.0), 0.0, 0.1, 1.0, n, _DELTA))

    by_m, by_n = [grid(k, 10_000) for k in (5, 50, 500)], [grid(50, k) for k in (10_000, 1_000, 100)]
    rises = all(a < b for values in (by_m, by_n) for a, b in pairwise(values))
    shown = "; ".join(" ".join(f"{value:.3f}" for value in values) for values in (by_m, by_n))
    return Outcome(same and rises, f"{said}; the bound for m = 5, 50, 500 and for n = 10,000, 1,000, 100: {shown}")


def behind_logarithm() -> Outcome:
    """(8) at tenfold h, rho and w, kappa a tenth of the weight and 0.1: each tenfold adds the same."""

    def bound(h: float, rho: float, w: float) -> float:
        size = np.full(5, w)
        kappa = 0.1 * size + 0.1
        found = bounds.uniform_perturbation_simplified(0.0, np.full(5, h), rho, kappa, size + kappa, _N, _DELTA, _ETA)
        return float(found)

    steps = {
        "h": _increments(lambda h: bound(h, 0.0, 10.0), 1e3),
        "rho": _increments(lambda rho: bound(0.0, rho, 10.0), 1e4),
        "w": _increments(lambda w: bound(1e3, 0.0, w), 1e4),
    }
    return Outcome(*_logarithmic(steps))


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
        abs(linear) < 1e-12 and abs(second - closed) < 1e-12, f"{tiny(linear)}; {second:.6f} against {closed:.6f}"
    )


def third_order() -> Outcome:
    """||u||^3 <= sqrt(m) sum |u_i|^3 <= sqrt(m) sum kappa_i u_i^2, and E u_i^2 = sigma_i^2 / 3."""
    u = random(3).uniform(-1, 1, (_DRAWS, 7)) * 0.3
    left = np.linalg.norm(u, axis=1) ** 3
    middle, right = math.sqrt(7) * (np.abs(u) ** 3).sum(1), math.sqrt(7) * (0.3 * u**2).sum(1)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    mean = float(weights @ (0.3 * nodes) ** 2 / 2)
    holds = bool((left <= middle + 1e-15).all() and (middle <= right + 1e-15).all()) and abs(mean / 0.03 - 1) < 1e-12
    return Outcome(holds, f"in {_DRAWS} of {_DRAWS} draws" if holds else "not in every draw")


def quadratic_terms_rise() -> Outcome:
    """sum (h/6 + rho sqrt(m) kappa/18) sigma^2 at rising sigma, and at sigma* against m / (2 eta): 200 random h."""
    rng, m, ratios, rises = random(9), 6, [], True
    for _ in range(200):
        h, kappa, rho = rng.exponential(10.0, m), rng.uniform(0.05, 1, m), float(rng.exponential(5.0))
        weight = h / 6 + rho * math.sqrt(m) * kappa / 18
        squares = np.sort(rng.uniform(0, 1, (20, m)), axis=0)
        rises &= bool((np.diff(squares @ weight) > 0).all())
        sigma = np.asarray(bounds.uniform_sigma(h, rho, kappa, _ETA))
        ratios.append(float(weight @ sigma**2) / (m / (2 * _ETA)))
    said = f"at sigma* {min(ratios):.2f} to {max(ratios):.2f} of m / (2 eta)"
    return Outcome(rises and max(ratios) <= 1 + 1e-12, said)


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
    """Two solutions of equal loss: how their bounds differ beyond sum ln(tau / sigma*) over eta, by (8) and by (7)."""
    kappa, tau, rests = np.array([0.3, 0.3]), 1.0, []
    for bound in (bounds.uniform_perturbation_simplified, bounds.uniform_perturbation):
        values, sums = [], []
        for curvature in (np.array([0.1, 4.0]), np.array([40.0, 400.0])):
            sums.append(float(np.log(tau / bounds.uniform_sigma(curvature, 0.0, kappa, _ETA)).sum()))
            values.append(float(bound(0.2, curvature, 0.0, kappa, tau, _N, _DELTA, _ETA)))
        rests.append((values[1] - values[0]) - (sums[1] - sums[0]) / _ETA)
    by_8, by_7 = rests
    said = f"by (8), which is the lemma's, {tiny(by_8)} nats are left beside it; by (7), where kappa clips, {by_7:.4f}"
    return Outcome(abs(by_8) < 1e-12, said)


def pacgen_from_bound() -> Outcome:
    """Psi, beside sum ln(tau / sigma*) with tau = |w| + kappa: do they differ by a constant, over four solutions?"""
    w, kappa, apart = np.array([0.5, 2.0]), np.array([0.15, 0.3]), []
    for h in (0.0, 1.0, 10.0, 100.0):
        curvature = np.full(2, h)
        psi = float(np.log((w + kappa) * np.maximum(np.sqrt(curvature), 1 / kappa)).sum())
        term = float(np.log((w + kappa) / bounds.uniform_sigma(curvature, 0.0, kappa, _ETA)).sum())
        apart.append(psi - term)
    said = ", ".join(f"{a:+.2f}" for a in apart)
    return Outcome(max(apart) - min(apart) < 1e-9, f"{said} nats at h of 0, 1, 10 and 100: eta / 3 is left out")


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
    """(13) for random weights within the ball of squared radius tau, against PyTorch's KL of the two Gaussians."""
    rng, m, tau, slack = random(10), 5, 3.0, []
    prior = MultivariateNormal(torch.zeros(m, dtype=torch.float64), tau * torch.eye(m, dtype=torch.float64))
    for _ in range(200):
        w, sigma = rng.standard_normal(m), rng.uniform(0.1, 2, m)
        w *= math.sqrt(tau * float(rng.uniform())) / np.linalg.norm(w)
        own = MultivariateNormal(torch.from_numpy(w), torch.from_numpy(np.diag(sigma**2)))
        right = 0.5 * (m * math.log(tau) - np.log(sigma**2).sum() - m + (sigma**2).sum() / tau + 1)
        slack.append(float(right) - float(kl_divergence(own, prior)))
    return Outcome(min(slack) >= -1e-12, f"right less left {min(slack):.1e} to {max(slack):.2f} nats, 200 draws")


def truncated_bound() -> Outcome:
    """(14) of one weight, w^2 = tau, against Theorem 1 with the exact KL and variance of the same truncated noise."""
    kappa = math.sqrt(2) * float(erfinv(0.5))  # P(|u| < kappa) = 1/2 at sigma = 1
    at = (0.1, [1.0], [0.0], 0.0, kappa, 1.0, 1_000, _DELTA, 10.0)
    exact = float(bounds.truncated_gaussian(*at, sigma=1.0))
    printed = float(bounds.truncated_gaussian(*at, variant="printed", sigma=1.0))
    return Outcome(
        printed >= exact, f"{printed:.4f} as printed, {exact:.4f} by Theorem 1: 2 (KL + 1) of (12) is left out"
    )


def printed_grid_constant() -> Outcome:
    """App. D's closed form at sum ln(tau / sigma) = 10, n = 10,000, delta 0.05, against the least over all eta."""
    k, n = 10.0, 10_000
    inverse = -math.log(_DELTA)
    inside = k + inverse + math.log(2) / 2 * (2 + math.log(k / inverse + 1))
    printed, least = (1 + 1 / math.e) * math.sqrt(inside / (2 * n)), 2 * math.sqrt((k + inverse) / (2 * n))
    return Outcome(printed >= least, f"{printed:.4f} as printed, {least:.4f} at the best eta, which no grid goes below")


def grid_index() -> Outcome:
    """j = floor(ln(K / ln(1/delta_j) + 1) / 2) with delta_j = delta 2^-(j+1): for how many K and delta is there a j?"""
    pairs = [(k, delta) for k in np.geomspace(1e-2, 1e6, 400) for delta in (0.01, 0.05, 0.2)]

    def image(j: int, k: float, delta: float) -> int:
        return math.floor(0.5 * math.log(k / (math.log(1 / delta) + (j + 1) * math.log(2)) + 1))

    without = sum(not any(image(j, *pair) == j for j in range(60)) for pair in pairs)
    return Outcome(
        without == 0, f"no such j for {without} of {len(pairs)} pairs: delta_j depends on the j that it picks"
    )


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
    return Outcome(holds, ", ".join(f"{r:.1e}" for r in ratios) + "; bounded as in (8), the ratio does not fall")


def sigma_of_negative_curvature() -> Outcome:
    """sigma* where h + rho sqrt(m) kappa / 3 is not above 0, by the library and by a search: kappa."""
    kappa, cases = 0.3, ((-1.0, 0.0), (-1.0, 1.0), (0.0, 0.0))
    found = [
        value
        for h, rho in cases
        for value in (_least(h, rho, kappa, 4, _ETA), float(bounds.uniform_sigma(np.full(4, h), rho, kappa, _ETA)[0]))
    ]
    return Outcome(
        max(abs(v / kappa - 1) for v in found) < 1e-4, f"{min(found):.4f} to {max(found):.4f}, kappa {kappa}"
    )


def blog_sigma() -> Outcome:
    """sigma* over 1 / sqrt(h + rho N(w)) of 10,000 weights, h of 0.01 to 100 and |w| of 0 to 3: proportional?"""
    rng, m, rho = random(11), 10_000, 1.0
    h, radius = 10.0 ** rng.uniform(-2, 2, m), 0.1 * rng.uniform(0, 3, m) + 0.1
    ratio = np.asarray(bounds.uniform_sigma(h, rho, radius, _ETA)) * np.sqrt(h + rho * radius)
    low, high = np.quantile(ratio, (0.05, 0.95))
    return Outcome(bool(high / low < 2), f"the middle nine tenths of the ratios span a factor of {high / low:.1f}")


def window() -> Outcome:
    """Mean of h u^2 / 2 over a window of half-width 1 around two minima of equal loss."""
    flat, sharp = (h / 2 / 3 for h in (1.0, 10.0))
    return Outcome(flat < sharp, f"{flat:.3f} for h = 1, {sharp:.3f} for h = 10")


def m_equation() -> Outcome:
    """E L(w + u) - L(w) against the right side, for cos at its minimum (h = 1, rho = 1)."""
    sigma = 1.0
    left = 1 - math.sin(sigma) / sigma
    right = sigma**2 / 6 + sigma**3 / 24
    return Outcome(abs(left - right) < 1e-9, f"{left:.4f} against {right:.4f}: a bound, not an equation")


def cifar_sizes() -> Outcome:
    """Training images of the data sets: has CIFAR-10 fewer than each of the other two?"""
    ten, hundred, tiny = 50_000, 50_000, 100_000
    return Outcome(
        ten < hundred and ten < tiny,
        f"CIFAR-10 has {ten:,}, as CIFAR-100 has, and Tiny ImageNet {tiny:,}: fewer than the one, not than the other",
    )
