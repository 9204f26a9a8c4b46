"""Calculations that decide what Jia and Su say of the Fisher matrix, and what their own tables show."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln
from scipy.stats import ttest_ind_from_stats

from flatminima import bounds
from flatminima.ranking import kendall
from flatminima.studies.claims.checks.outcome import Array, Outcome, random, tiny

_GAINS = {"ResNet": 0.59, "DenseNet": 0.30, "CNN": 1.06, "WRN": 0.64}  # Table 1, CIFAR-10, points
_MILLIONS = {"ResNet": 0.27, "DenseNet": 0.77, "CNN": 0.81, "WRN": 1.47}  # weights
_FALLS = {"ResNet": 158.8, "WRN": 67.2, "DenseNet": 35.9}  # Table 2


def _spd(seed: int, size: int, decades: float = 2.0) -> Array:
    """A positive definite matrix with eigenvalues over so many decades, in a random basis."""
    q, _ = np.linalg.qr(random(seed).standard_normal((size, size)))
    return np.asarray(q @ np.diag(np.logspace(-decades / 2, decades / 2, size)) @ q.T)


def boxes() -> Outcome:
    """Largest box along the axes against the ellipsoid of a quadratic loss: 10 weights, eigenvalues over 6 decades."""
    d, hessian = 10, _spd(0, 10, 6.0)
    sides = np.sqrt(1 / (d * np.diag(hessian)))  # at best: the mean over its corners must not exceed the height
    box = d * math.log(2) + float(np.log(sides).sum())
    ball = d / 2 * math.log(math.pi) - float(gammaln(d / 2 + 1)) - 0.5 * float(np.linalg.slogdet(hessian)[1])
    return Outcome(box - ball < math.log(0.01), f"at most {math.exp(box - ball):.0e} of the volume")


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def smoothed_minimum() -> Outcome:
    """Softmax of logits ln y under smoothed labels y: gradient zero, divergence zero, Hessian positive semidefinite."""
    y = np.array([0.9, 0.05, 0.05])
    p = _softmax(np.log(y))
    gradient, hessian = p - y, np.diag(p) - np.outer(p, p)
    holds = bool(np.abs(gradient).max() < 1e-15 and np.linalg.eigvalsh(hessian)[0] > -1e-15)
    return Outcome(holds, f"gradient {tiny(np.abs(gradient).max())}, KL {tiny(float((y * np.log(y / p)).sum()))}")


def fisher_is_hessian() -> Outcome:
    """sum_i y_i g_i g_i' against the Hessian at p = y, where the mean gradient is zero."""
    y = np.array([0.8, 0.15, 0.05])
    p = _softmax(np.log(y))
    each = p - np.eye(3)  # row i: the gradient of -ln p_i with respect to the logits
    fisher, hessian = (y[:, None] * each).T @ each, np.diag(p) - np.outer(p, p)
    apart, gradient = float(np.abs(fisher - hessian).max()), float(np.abs(y @ each).max())
    holds = bool(apart < 1e-12 and gradient < 1e-12 and np.abs(fisher).max() > 0.01)
    return Outcome(holds, f"differ by {tiny(apart)}; gradient {tiny(gradient)}")


def jia_bound() -> Outcome:
    """Theorem 1's right side at three log-determinants, the loss, the volume and the number of weights alike."""
    found = [float(bounds.jia_su(0.1, logdet, 1_000, 1e-3, 50_000, 0.05)) for logdet in (-9_000.0, -8_000.0, -7_000.0)]
    return Outcome(found[0] < found[1] < found[2], ", ".join(f"{v:.3f}" for v in found))


def theorem_1_covers() -> Outcome:
    """Share of 100 data sets for which Theorem 1's right side is above the expected loss, at delta 0.05.

    Logistic regression on 150 random features, 200 samples whose labels are coin flips, smoothed by 0.1: one minimum,
    well isolated, and a neighbourhood so small that the loss is quadratic in it. Of any posterior symmetric about the
    minimum the expected loss is at least that at the minimum, the loss being convex.
    """
    n, d, delta, draws = 200, 150, 0.05, 100
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    covered, pairs = 0, []
    for seed in range(draws):
        draw = random(seed)
        x, y = draw.standard_normal((n, d)), np.where(draw.random(n) < 0.5, 0.95, 0.05)
        w, hessian = _logistic(x, y)
        risk = float((np.logaddexp(0, x @ w) - y * (x @ w)).mean())
        bound = float(bounds.jia_su(risk, float(np.linalg.slogdet(hessian)[1]), d, 1e-300, n, delta))
        expected = float((weights * np.logaddexp(0, np.linalg.norm(w) * nodes)).sum() / weights.sum())
        covered += expected <= bound
        pairs.append((expected, bound))
    expected, bound = (float(np.median([pair[i] for pair in pairs])) for i in (0, 1))
    said = f"{covered} of {draws} data sets; at the median an expected loss of {expected:.1f}, a bound of {bound:.2f}"
    return Outcome(covered >= (1 - delta) * draws, said)


def _logistic(x: Array, y: Array) -> tuple[Array, Array]:
    """The minimum of the logistic loss by Newton's steps, halved until the loss falls, and its Hessian."""
    w = np.zeros(x.shape[1])

    def loss(w: Array) -> float:
        return float((np.logaddexp(0, x @ w) - y * (x @ w)).mean())

    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ w))
        gradient, hessian = x.T @ (p - y) / len(x), (x.T * (p * (1 - p))) @ x / len(x)
        if np.abs(gradient).max() < 1e-12:
            break
        step = np.linalg.solve(hessian, gradient)
        while loss(w - step) > loss(w) and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
    return w, np.asarray(hessian)


def height_exists() -> Outcome:
    """Area of {loss <= least + h} of one ReLU unit, weights a and b, input 1, within a, b <= 10, 100, 1,000, 10,000.

    Where it grows without end, no height has a given volume.
    """
    areas, height, target = [], 0.01, 0.9
    for decades in (1, 2, 3, 4):
        logs = np.linspace(-decades, decades, 300 * decades) * math.log(10)
        a, b = np.exp(logs)[:, None], np.exp(logs)[None, :]
        z = b * np.maximum(a, 0)
        loss = np.logaddexp(0, z) - target * z
        least = -target * math.log(target) - (1 - target) * math.log(1 - target)
        areas.append(float((a * b * (loss <= least + height)).sum() * (logs[1] - logs[0]) ** 2))
    return Outcome(areas[-1] < 1.01 * areas[-2], "areas " + ", ".join(f"{area:.1f}" for area in areas))


def gram_is_fisher() -> Outcome:
    """J'J against JJ' for a square J: entries, and eigenvalues."""
    j = random(6).standard_normal((6, 6))
    fisher, gram = j.T @ j, j @ j.T
    apart = float(np.linalg.norm(fisher - gram) / np.linalg.norm(gram))
    spectra = [np.linalg.eigvalsh(m) for m in (fisher, gram)]
    of_spectra = float(np.abs(spectra[0] - spectra[1]).max() / spectra[0][-1])
    return Outcome(apart < 1e-9, f"differ by {apart:.1f} of their norm, their eigenvalues by {tiny(of_spectra)}")


def principal_submatrix() -> Outcome:
    """Gram matrix of the gradients of 4 samples of 7 against rows and columns of all samples' J J', and of J'J."""
    j = random(7).standard_normal((7, 7))
    chosen = random(8).choice(7, 4, replace=False)
    part = j[chosen] @ j[chosen].T
    of_gram, of_fisher = (float(np.abs(m[np.ix_(chosen, chosen)] - part).max()) for m in (j @ j.T, j.T @ j))
    return Outcome(of_gram < 1e-12, f"of J J' to {tiny(of_gram)}; of J'J, the Fisher matrix, not: by {of_fisher:.1f}")


def subset_eigenvalues() -> Outcome:
    """Mean log-eigenvalue of N' of 200 rows and columns over that of the whole; eigenvalues over 4 decades."""
    size, found = 200, {}
    whole = _spd(9, size, 4.0)
    own = float(np.linalg.slogdet(whole)[1]) / size
    for count in (10, 50, 100, 150):
        rows = [random(seed).choice(size, count, replace=False) for seed in range(20)]
        means = [float(np.linalg.slogdet(whole[np.ix_(r, r)])[1]) / count for r in rows]
        found[count] = float(np.mean(means)) - own
    said = ", ".join(f"{gap:.2f} nats at {count}" for count, gap in found.items())
    return Outcome(found[100] < math.log(2), f"too high by {said} of {size}")


def labels_close() -> Outcome:
    """Trace of the Fisher matrix in the logits at p = y, ten classes smoothed by 0.1: labels y, and one-hot."""
    y = np.full(10, 0.01)
    y[0] = 0.91
    each = ((np.eye(10) - y) ** 2).sum(1)  # of each label: the squared gradient
    smooth, one_hot = float(y @ each), float(each[0])
    distance = float(1 - y[0])
    said = f"labels differ by {distance:.2f}; the trace is {smooth:.3f}, with one-hot labels {one_hot:.3f}"
    return Outcome(abs(one_hot / smooth - 1) < 0.1, said)


def interlacing() -> Outcome:
    """lambda_r <= nu_r <= lambda_(r + n - k) for every principal submatrix of 4 rows of 7."""
    a = random(2).standard_normal((7, 7))
    a = a + a.T
    whole = np.linalg.eigvalsh(a)
    for seed in range(50):
        rows = random(seed).choice(7, 4, replace=False)
        part = np.linalg.eigvalsh(a[np.ix_(rows, rows)])
        if not ((whole[:4] <= part + 1e-12).all() and (part <= whole[3:] + 1e-12).all()):
            return Outcome(False, f"not for rows {rows.tolist()}")
    return Outcome(True, "for 50 submatrices")


def trace_bounds_determinant() -> Outcome:
    """ln |I| / W <= ln tr I - ln W, and the trace of a singular matrix."""
    slack = min(
        math.log(float(np.trace(m))) - math.log(6) - float(np.linalg.slogdet(m)[1]) / 6
        for m in (_spd(seed, 6) for seed in range(20))
    )
    g = random(3).standard_normal((3, 10))
    trace = float(np.trace(g.T @ g))
    return Outcome(
        slack >= 0 and trace > 0, f"slack at least {slack:.2f} nats; trace {trace:.1f} of a matrix of rank 3 in 10"
    )


def jia_kl() -> Outcome:
    """KL(Q | P) against the height, in one dimension: Q ~ exp(-lambda w^2 / 2) on an interval, P uniform there."""
    worst = 0.0
    for curvature in (0.1, 1.0, 10.0, 100.0):
        w = np.linspace(-1, 1, 20_001)
        q = np.exp(-curvature * w**2 / 2)
        q /= q.mean()
        worst = max(worst, float((q * np.log(q)).mean()) / (curvature / 2))
    return Outcome(worst <= 1, f"at most {worst:.2f} of the height")


def spectral_radius() -> Outcome:
    """Largest eigenvalue of J'J / W against ||J / sqrt W||^2."""
    j = random(4).standard_normal((5, 8))
    left = float(np.linalg.eigvalsh(j.T @ j / 8)[-1])
    right = float(np.linalg.norm(j / math.sqrt(8), 2) ** 2)
    return Outcome(abs(left / right - 1) < 1e-12, f"{left:.4f} and {right:.4f}")


def frobenius_identity() -> Outcome:
    """||mean g g'||_F^2 against the mean of ||g g'||_F^2."""
    g = random(5).standard_normal((50, 8))
    of_mean = float(np.linalg.norm(g.T @ g / 50) ** 2)
    mean_of = float(((g**2).sum(1) ** 2).mean())
    return Outcome(abs(of_mean / mean_of - 1) < 0.01, f"{of_mean:.1f} and {mean_of:.1f}")


def table_2_aligns() -> Outcome:
    """Fall of the metric and gain of the test error in Table 2 and 1."""
    names = list(_FALLS)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    agree = sum((_FALLS[a] > _FALLS[b]) == (_GAINS[a] > _GAINS[b]) for a, b in pairs)
    signs = all(_FALLS[name] > 0 and _GAINS[name] > 0 for name in names)
    return Outcome(
        None if signs else False, f"both improve in 3 of 3; the order agrees in {agree} of {len(pairs)} pairs"
    )


def table_1_parameters() -> Outcome:
    """Kendall's tau of Table 1's gains with the number of weights, CIFAR-10: four networks cannot decide it."""
    tau = kendall(list(_MILLIONS.values()), [_GAINS[name] for name in _MILLIONS]).tau
    return Outcome(None, f"tau {tau:+.2f} over four networks; ResNet-20, the smallest, gains twice what DenseNet does")


def table_1_densenet() -> Outcome:
    """Welch's test of 22.54 +- 0.32 against 22.19 +- 0.28, five networks each."""
    found = ttest_ind_from_stats(22.54, 0.32, 5, 22.19, 0.28, 5, equal_var=False)
    return Outcome(None if found.pvalue > 0.05 else True, f"t {found.statistic:.1f}, p {found.pvalue:.2f}")
