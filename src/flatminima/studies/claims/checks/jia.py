"""Calculations that decide what Jia and Su say of the Fisher matrix, and what their own tables show."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln
from scipy.stats import ttest_ind_from_stats

from flatminima import bounds
from flatminima.ranking import kendall
from flatminima.studies.claims.checks.outcome import Array, Outcome, random

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
    return Outcome(holds, f"gradient {np.abs(gradient).max():.0e}, KL {float((y * np.log(y / p)).sum()):.0e}")


def fisher_is_hessian() -> Outcome:
    """sum_i y_i g_i g_i' against the Hessian at p = y, where the mean gradient is zero."""
    y = np.array([0.8, 0.15, 0.05])
    p = _softmax(np.log(y))
    each = p - np.eye(3)  # row i: the gradient of -ln p_i with respect to the logits
    fisher, hessian = (y[:, None] * each).T @ each, np.diag(p) - np.outer(p, p)
    apart, gradient = float(np.abs(fisher - hessian).max()), float(np.abs(y @ each).max())
    holds = bool(apart < 1e-12 and gradient < 1e-12 and np.abs(fisher).max() > 0.01)
    return Outcome(holds, f"differ by {apart:.0e}; gradient {gradient:.0e}")


def fia() -> Outcome:
    """ln of the integral of sqrt |I| over a volume where I is constant, for two matrices: half the change of ln |I|."""
    values = [float(np.linalg.slogdet(_spd(1, 5) * scale)[1]) for scale in (1.0, 3.0)]
    change = math.log(2.0 * math.exp(values[1] / 2)) - math.log(2.0 * math.exp(values[0] / 2))
    return Outcome(
        abs(change - (values[1] - values[0]) / 2) < 1e-9, f"{change:.4f} for {values[1] - values[0]:.4f} nats of gamma"
    )


def jia_bound() -> Outcome:
    """Theorem 1's right side at three log-determinants."""
    found = [float(bounds.jia_su(0.1, logdet, 1_000, 1e-3, 50_000, 0.05)) for logdet in (-9_000.0, -8_000.0, -7_000.0)]
    return Outcome(found[0] < found[1] < found[2], ", ".join(f"{v:.3f}" for v in found))


def labels_close() -> Outcome:
    """Total variation between one-hot labels and those smoothed by 0.1 over ten classes."""
    distance = 0.1 * 9 / 10
    return Outcome(distance < 0.1, f"{distance:.2f}")


def one_hot() -> Outcome:
    """Gradients a sample by (2), one a class, and with one-hot labels."""
    classes = 10
    return Outcome(classes > 1, f"{classes} and 1, for {classes} classes")


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
    return Outcome(signs, f"both improve in 3 of 3; the order agrees in {agree} of {len(pairs)} pairs")


def table_1_parameters() -> Outcome:
    """Kendall's tau of Table 1's gains with the number of weights, CIFAR-10: four networks cannot decide it."""
    tau = kendall(list(_MILLIONS.values()), [_GAINS[name] for name in _MILLIONS]).tau
    return Outcome(None, f"tau {tau:+.2f} over four networks; ResNet-20, the smallest, gains twice what DenseNet does")


def table_1_densenet() -> Outcome:
    """Welch's test of 22.54 +- 0.32 against 22.19 +- 0.28, five networks each."""
    found = ttest_ind_from_stats(22.54, 0.32, 5, 22.19, 0.28, 5, equal_var=False)
    return Outcome(None if found.pvalue > 0.05 else True, f"t {found.statistic:.1f}, p {found.pvalue:.2f}")
