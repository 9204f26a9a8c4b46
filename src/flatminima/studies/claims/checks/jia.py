"""Calculations that decide what Jia and Su say of the Fisher matrix, and what their own tables show."""

from __future__ import annotations

import math

import numpy as np
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
    """Largest box along the axes against that along the eigenvectors, in the ellipsoid of a quadratic loss.

    10 weights, eigenvalues over 6 decades: the ratio is sqrt(det H / prod H_ii), and 1 without misalignment.
    """
    hessian = _spd(0, 10, 6.0)
    ratio = 0.5 * float(np.linalg.slogdet(hessian)[1] - np.log(np.diag(hessian)).sum())
    return Outcome(ratio < math.log(0.01), f"{math.exp(ratio):.0e} of the volume of the box along the eigenvectors")


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


def theorem_1_covers() -> Outcome:
    """Share of 50 data sets for which Theorem 1's right side is above the expected loss, clipped at 1, at delta 0.05.

    Logistic regression on 300 random features, 400 samples whose labels are coin flips, smoothed by 0.01: one minimum,
    well isolated. Clipped, the loss of an input with either label is above a half on average, whatever the weights.
    """
    n, d, delta, draws = 400, 300, 0.05, 50
    found = []
    for seed in range(draws):
        draw = random(seed)
        x, y = draw.standard_normal((n, d)), np.where(draw.random(n) < 0.5, 0.995, 0.005)
        w, hessian = _logistic(x, y)
        risk = float(np.minimum(np.logaddexp(0, x @ w) - y * (x @ w), 1).mean())
        found.append(float(bounds.jia_su(risk, float(np.linalg.slogdet(hessian)[1]), d, 1e-300, n, delta)))
    covered = sum(bound >= 0.5 for bound in found)
    said = f"above the loss in {covered} of {draws} data sets; the loss is above 0.5, the median bound"
    return Outcome(covered >= (1 - delta) * draws, f"{said} {float(np.median(found)):.2f}")


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
    """Heights of three areas about the well isolated minimum of a logistic loss, whose area rises without a jump.

    And the area of {loss <= least + 0.01} of one ReLU unit, whose minima are a curve, within boxes tenfold each time.
    """
    draw = random(1)
    x, y = draw.standard_normal((20, 2)), np.where(draw.random(20) < 0.5, 0.95, 0.05)
    w, _ = _logistic(x, y)
    side = np.linspace(-1, 1, 401)
    at = w + np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    losses = np.sort((np.logaddexp(0, at @ x.T) - y * (at @ x.T)).mean(1))
    within = losses < min(float((np.logaddexp(0, e @ x.T) - y * (e @ x.T)).mean(1).min()) for e in _edges(w))
    heights, cell = losses[within] - losses[0], (side[1] - side[0]) ** 2
    jump = float(np.diff(heights).max())
    found = [float(heights[round(area / cell)]) for area in (0.01, 0.1, 0.5)]
    said = ", ".join(f"{h:.1e}" for h in found)
    areas = ", ".join(f"{area:.1f}" for area in _areas_of_a_relu_unit())
    holds = jump < 1e-3 and found[0] < found[1] < found[2]
    return Outcome(holds, f"heights {said} of areas 0.01, 0.1, 0.5; a ReLU unit's area grows with the box: {areas}")


def _edges(w: Array) -> list[Array]:
    """Points of the four sides of the box of half-width 1 about w."""
    side, ones = np.linspace(-1, 1, 401), np.ones(401)
    return [w + np.stack(pair, -1) for pair in ((side, ones), (side, -ones), (ones, side), (-ones, side))]


def _areas_of_a_relu_unit() -> list[float]:
    """Weights a and b, input 1, within a, b <= 10, 100, 1,000, 10,000: the two may be rescaled without end."""
    areas, height, target = [], 0.01, 0.9
    for decades in (1, 2, 3, 4):
        logs = np.linspace(-decades, decades, 300 * decades) * math.log(10)
        a, b = np.exp(logs)[:, None], np.exp(logs)[None, :]
        z = b * np.maximum(a, 0)
        loss = np.logaddexp(0, z) - target * z
        least = -target * math.log(target) - (1 - target) * math.log(1 - target)
        areas.append(float((a * b * (loss <= least + height)).sum() * (logs[1] - logs[0]) ** 2))
    return areas


def gram_is_fisher() -> Outcome:
    """J'J against JJ' for a square J: entries, and eigenvalues."""
    j = random(6).standard_normal((6, 6))
    fisher, gram = j.T @ j, j @ j.T
    apart = float(np.linalg.norm(fisher - gram) / np.linalg.norm(gram))
    spectra = [np.linalg.eigvalsh(m) for m in (fisher, gram)]
    of_spectra = float(np.abs(spectra[0] - spectra[1]).max() / spectra[0][-1])
    return Outcome(apart < 1e-9, f"differ by {apart:.1f} of their norm, their eigenvalues by {tiny(of_spectra)}")


def principal_submatrix() -> Outcome:
    """Gram matrix of 4 of 7 samples' gradients against rows and columns of J'J, the Fisher matrix, and of J J'."""
    j = random(7).standard_normal((7, 7))
    chosen = random(8).choice(7, 4, replace=False)
    part = j[chosen] @ j[chosen].T
    of_gram, of_fisher = (float(np.abs(m[np.ix_(chosen, chosen)] - part).max()) for m in (j @ j.T, j.T @ j))
    said = f"entries differ from J'J, the Fisher matrix, by {of_fisher:.1f}, from J J' by {tiny(of_gram)}"
    return Outcome(of_fisher < 1e-12, said)


def subset_eigenvalues() -> Outcome:
    """Mean of ln nu_n - ln lambda_n, the nth smallest eigenvalues of N' of 200 rows and columns and of the whole.

    Of eigenvalues over 4 decades, and of 190 of 1e-3 with 10 outliers of 10.
    """
    size, said, decided = 200, [], []
    q, _ = np.linalg.qr(random(9).standard_normal((size, size)))
    spectra = {"4 decades": np.logspace(-2, 2, size), "10 outliers": np.array([1e-3] * 190 + [10.0] * 10)}
    for name, values in spectra.items():
        whole, gaps = np.asarray(q @ np.diag(values) @ q.T), []
        for count in (10, 100, 190):
            rows = [random(seed).choice(size, count, replace=False) for seed in range(20)]
            parts = [np.linalg.eigvalsh(whole[np.ix_(r, r)]) for r in rows]
            gaps.append(float(np.mean([np.log(part / values[:count]).mean() for part in parts])))
        said.append(f"{name}: " + ", ".join(f"{gap:.2f}" for gap in gaps))
        decided.append(gaps[0])
    return Outcome(max(decided) < math.log(2), f"nats too large at 10, 100 and 190 of 200; {'; '.join(said)}")


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
    return Outcome(True, "in 50 of 50 submatrices")


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
    """Largest eigenvalue of the Hessian in the logits at p = y, ten classes smoothed by 0.1, and ||J||^2 one-hot.

    Of one sample, with the gradient of its one-hot label for J; for J'J itself it is an identity.
    """
    y = np.full(10, 0.01)
    y[0] = 0.91
    hessian = float(np.linalg.eigvalsh(np.diag(y) - np.outer(y, y))[-1])
    one_hot = float(((np.eye(10)[0] - y) ** 2).sum())
    return Outcome(abs(one_hot / hessian - 1) < 0.1, f"radius of the Hessian {hessian:.3f}, squared norm {one_hot:.3f}")


def frobenius_identity() -> Outcome:
    """||mean g g'||_F^2 against the mean of ||g g'||_F^2."""
    g = random(5).standard_normal((50, 8))
    of_mean = float(np.linalg.norm(g.T @ g / 50) ** 2)
    mean_of = float(((g**2).sum(1) ** 2).mean())
    return Outcome(abs(of_mean / mean_of - 1) < 0.01, f"{of_mean:.1f} of the mean, {mean_of:.1f} in the mean")


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
