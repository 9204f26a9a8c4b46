"""Calculations that decide what Wang et al. say of their bound: closed forms, quadrature, small exact examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize_scalar

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random, tiny

_N, _DELTA, _ETA = 100, 0.05, 39.0
_DRAWS = 2_000


def _bound(h: Array, w: Array, *, rho: float = 0.0, n: int = _N, eta: float = _ETA, eps: float = 0.1) -> float:
    kappa = 0.1 * np.abs(w) + eps
    return float(bounds.uniform_perturbation(0.0, h, rho, kappa, np.abs(w) + kappa, n, _DELTA, eta))


def bound_terms() -> Outcome:
    """Lemma 3's bound rises with the Hessian, its Lipschitz constant and the weights' scale, and with fewer samples.

    Of curvatures so large that kappa clips no noise.
    """
    h, w = np.full(5, 20.0), np.full(5, 1.0)
    base = _bound(h, w, rho=1.0)
    rises = {
        "h tenfold": _bound(10 * h, w, rho=1.0) - base,
        "rho a thousandfold": _bound(h, w, rho=1e3) - base,
        "w tenfold": _bound(h, 10 * w, rho=1.0) - base,
        "a tenth of the samples": _bound(h, w, rho=1.0, n=10) - base,
    }
    said = ", ".join(f"{name} {rise:+.3f}" for name, rise in rises.items())
    return Outcome(min(rises.values()) > 1e-3, f"the bound: {said} nats")


def eta_optimized() -> Outcome:
    """The best eta gives 2 sqrt((KL + ln 1/delta) / (2 n))."""
    kl = 7.0
    best = minimize_scalar(lambda e: float(bounds.hoeffding(0.0, kl, _N, _DELTA, math.exp(e))), bounds=(-5, 10))
    closed = 2 * math.sqrt((kl + math.log(1 / _DELTA)) / (2 * _N))
    return Outcome(bool(abs(best.fun / closed - 1) < 1e-6), f"{best.fun:.5f} by search, {closed:.5f} by the formula")


def noise_tradeoff() -> Outcome:
    """Rise of a quadratic loss by its curvature and the noise, and by the noise the bound's other term, with the KL."""
    sigma, curvatures = np.array([0.01, 0.1, 1.0]), np.array([3.0, 30.0])
    rise = 0.5 * curvatures[:, None] * sigma**2 / 3
    kl = np.array([float(bounds.kl_uniform(np.array([2.0]), np.array([s]))) for s in sigma])
    other = (kl + math.log(1 / _DELTA)) / _ETA + _ETA / (2 * _N)
    holds = bool((np.diff(rise, axis=1) > 0).all() and (np.diff(rise, axis=0) > 0).all() and (np.diff(other) < 0).all())
    said = f"M {rise[0, 0]:.1e} to {rise[0, -1]:.2f} at h = 3, tenfold at h = 30; KL {kl[0]:.2f} to {kl[-1]:.2f}"
    return Outcome(holds, f"sigma 0.01 to 1: {said}, the term with it {other[0]:.3f} to {other[-1]:.3f} nats")


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
    """sigma* is where the right side of (7) is least: five weights, of which each has a level of its own."""
    cases = [(5.0, 2.0, 1.0, 4, 39.0), (0.5, 2.0, 0.4, 4, 39.0), (0.0, 2.0, 1.0, 4, 39.0), (0.1, 0.0, 0.2, 1, 1.0)]
    cases.append((80.0, 0.0, 0.7, 4, 39.0))
    levels = [float(bounds.uniform_sigma(np.full(m, h), rho, kappa, eta)[0]) for h, rho, kappa, m, eta in cases]
    worst = max(abs(_least(*case) / level - 1) for case, level in zip(cases, levels, strict=True))
    said = f"levels {min(levels):.3f} to {max(levels):.3f} of five weights, at most {worst:.0e} off those of a search"
    return Outcome(worst < 1e-4 and len({round(level, 3) for level in levels}) == len(levels), said)


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
    """A hundredfold curvature, a tenth of the noise, where kappa does not cap it and curvature outweighs rho's term."""
    found = []
    for rho in (0.0, 30.0):
        few, many = (float(bounds.uniform_sigma(np.array([h]), rho, 1.0, _ETA)[0]) for h in (1.0, 100.0))
        found.append(few / many)
    said = f"sigma at h = 1 over that at h = 100: {found[0]:.1f} without rho, {found[1]:.1f} where rho's term is 10"
    return Outcome(abs(found[0] - 10) < 1e-9 and found[1] > 1, said)


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
        abs(linear) < 1e-12 and abs(second - closed) < 1e-12,
        f"the linear term is {tiny(linear)}, the second {second:.6f}, and by the diagonal alone {closed:.6f}",
    )


def third_order() -> Outcome:
    """||u||^3 <= sqrt(m) sum |u_i|^3 <= sqrt(m) sum kappa_i u_i^2, and E u_i^2 = sigma_i^2 / 3."""
    u = random(3).uniform(-1, 1, (_DRAWS, 7)) * 0.3
    left = np.linalg.norm(u, axis=1) ** 3
    middle, right = math.sqrt(7) * (np.abs(u) ** 3).sum(1), math.sqrt(7) * (0.3 * u**2).sum(1)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    mean = float(weights @ (0.3 * nodes) ** 2 / 2)
    holds = bool((left <= middle + 1e-15).all() and (middle <= right + 1e-15).all()) and abs(mean / 0.03 - 1) < 1e-12
    return Outcome(holds, f"it is in {_DRAWS} of {_DRAWS} draws of noise" if holds else "not in every draw")


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
    said = f"weights tenfold, h a hundredth: sigma* {after / before:.3g} times as large, not 0.1"
    return Outcome(abs(after / before - 0.1) < 1e-9, said)


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
    """Deviation of g u over draws of u against the mean second-order term: 50 weights, h = 1, |g| of 0.1 to 1e-5.

    0.1 is the threshold beta_2 of PertOPT.
    """
    sigma, m, ratios = 0.1, 50, []
    u = random(5).uniform(-sigma, sigma, (_DRAWS, m))
    signs = np.sign(random(6).standard_normal(m))
    second = float((u**2).sum(1).mean() / 2)
    for g in (0.1, 1e-3, 1e-5):
        first = u @ (g * signs)
        ratios.append(float(first.std()) / second)
        centred = abs(float(first.mean())) < 4 * float(first.std()) / math.sqrt(_DRAWS)
    said = ", ".join(f"{ratio:.2g}" for ratio in ratios)
    holds = centred and ratios[0] > 0.1 and ratios[-1] < 1e-3
    return Outcome(holds, f"deviation of g u over the second-order term {said} at |g_i| of 0.1, 1e-3, 1e-5, sigma 0.1")


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
    said = f"mean of u H u {left.mean():.1f}, of the right side {right.mean():.1f}"
    return Outcome(bool((left <= right + 1e-9).all()), said)


def third_order_small() -> Outcome:
    """rho E||u||^3 / 6, at most, over sum h sigma^2 / 6 at sigma of 1, 0.1, 0.01: rho = 2, h = 3, 1 and 10,000 weights.

    E||u||^3 <= sqrt(m) sum E|u_i|^3 = m^(3/2) sigma^3 / 4.
    """
    ratios = {m: [(2.0 / 6 * m**1.5 * s**3 / 4) / (m * 3.0 * s**2 / 6) for s in (1.0, 0.1, 0.01)] for m in (1, 10_000)}
    holds = all(a > b > c for a, b, c in ratios.values()) and ratios[1][-1] < 0.01
    said = "; ".join(f"{m:,} weight{'s' * (m > 1)} " + ", ".join(f"{r:.1e}" for r in own) for m, own in ratios.items())
    return Outcome(holds, f"{said}; bounded as in W2's (8), with kappa, the ratio does not fall")


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
    """sigma* over 1 / sqrt(h + rho N(w)), of weights that kappa does not cap: proportional?

    h is of 0.01 to 100, |w| of 0 to 3, rho 1 and N(w) a tenth of the weight and 0.1.
    """
    rng, spans, of = random(11), [], (2, 100, 10_000)
    h, radius = 10.0 ** rng.uniform(-2, 2, of[-1]), 0.1 * rng.uniform(0, 3, of[-1]) + 0.1
    for m in of:  # the bound has rho sqrt(m) in it
        sigma = np.asarray(bounds.uniform_sigma(h, math.sqrt(m / of[-1]), radius, 1e4))
        low, high = np.quantile((sigma * np.sqrt(h + radius))[sigma < radius], (0.05, 0.95))
        spans.append(float(high / low))
    said = ", ".join(f"{span:.2f}" for span in spans)
    holds = spans[-1] < 2
    return Outcome(holds, f"the middle nine tenths of the ratios span factors of {said} for m of 2, 100, 10,000")


def window() -> Outcome:
    """Mean of h u^2 / 2 over a window of half-width 1 around two minima of equal loss."""
    flat, sharp = (h / 2 / 3 for h in (1.0, 10.0))
    return Outcome(flat < sharp, f"{flat:.3f} for h = 1, {sharp:.3f} for h = 10")


def m_equation() -> Outcome:
    """E L(w + u) - L(w) and the right side, for cos at its minimum (h = 1, rho = 1) under noise of half-width 1."""
    sigma = 1.0
    left = 1 - math.sin(sigma) / sigma
    right = sigma**2 / 6 + sigma**3 / 24
    return Outcome(left <= right, f"{left:.4f}, at most {right:.4f}")


def cifar_sizes() -> Outcome:
    """Training images of the data sets: has CIFAR-10 fewer than each of the other two?"""
    ten, hundred, tiny = 50_000, 50_000, 100_000
    return Outcome(
        ten < hundred and ten < tiny,
        f"CIFAR-10 has {ten:,}, as CIFAR-100 has, and Tiny ImageNet {tiny:,}: fewer than the one, not than the other",
    )
