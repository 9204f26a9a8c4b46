"""Share of draws of samples in which a bound of Wang et al. fails: the expected losses are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random

_DRAWS = 2_000


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


def eta_grid() -> Outcome:
    """The grid's bound where each draw chooses its own eta, of 20 classifiers: how often it fails, and what it costs.

    A posterior of a temperature that minimises the bound has a KL, and so a best eta, that the data decide.
    """
    rng, n, delta = random(8), 100, 0.1
    risks, heats = np.linspace(0.1, 0.6, 20), np.array([1.0, 10.0, 100.0])
    failed, ratios = 0, []
    for _ in range(_DRAWS):
        seen = rng.binomial(n, risks) / n
        posterior = np.exp(-heats[:, None] * (seen - seen.min()))
        posterior /= posterior.sum(1, keepdims=True)
        kl = (posterior * np.log(np.maximum(posterior, 1e-300) * 20)).sum(1)
        grid = np.asarray(bounds.hoeffding_grid(posterior @ seen, kl, n, delta))
        best = posterior @ seen + 2 * np.sqrt((kl - math.log(delta)) / (2 * n))  # as if eta could depend on the data
        chosen = int(grid.argmin())
        failed += float(posterior[chosen] @ risks) > float(grid[chosen])
        ratios.append(float(grid[chosen] / best[chosen]))
    said = (
        f"fails in {failed} of {_DRAWS} draws at delta {delta}, {min(ratios):.2f} to {max(ratios):.2f} times the best"
    )
    return Outcome(failed / _DRAWS <= delta and min(ratios) > 1, f"{said} eta's")


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


def _covers(bound: Callable[[Array, Array], tuple[float, float]], seed: int) -> Outcome:
    """Share of draws in which a bound lies below its loss: samples (n, 2) of a uniform distribution, w their mean."""
    rng, n, delta, failed, gap = random(seed), 200, 0.1, 0, 0.0
    for _ in range(_DRAWS):
        x = rng.uniform(-1, 1, (n, 2))
        found, true = bound(x, x.mean(0))
        failed, gap = failed + (true > found), gap + (found - true) / _DRAWS
    return Outcome(
        failed / _DRAWS <= delta, f"fails in {failed} of {_DRAWS} draws; {gap:.2f} above the loss on average"
    )


def lemma_3_covers() -> Outcome:
    """(8) for the mean of uniform samples under loss ||w - x||^2 / 8 and its own uniform noise."""

    def bound(x: Array, w: Array) -> tuple[float, float]:
        h, kappa, eta, n = np.full(2, 0.25), 0.3, 20.0, len(x)
        tau, seen = 0.5 + kappa, float(((w - x) ** 2).sum(1).mean() / 8)
        sigma = np.asarray(bounds.uniform_sigma(h, 0.0, kappa, eta))
        true = float((w**2 + sigma**2 / 3 + 1 / 3).sum() / 8)
        return float(bounds.uniform_perturbation_simplified(seen, h, 0.0, kappa, tau, n, 0.1, eta)), true

    return _covers(bound, 12)


def lemma_5_covers() -> Outcome:
    """(24) for the same under loss (w - x) A (w - x) / 16 and noise that is uniform on a slanted box, correlated."""
    a, mix = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[0.2, 0.15], [0.0, 0.1]])
    second, covariance = mix @ mix.T / 3, np.eye(2) / 3
    kl = math.log(4.0 / (4 * float(np.linalg.det(mix))))  # the prior is uniform on the square of half-width 1

    def bound(x: Array, w: Array) -> tuple[float, float]:
        seen = float(np.einsum("ki,ij,kj->k", w - x, a, w - x).mean() / 16)
        top, moment = float(np.linalg.eigvalsh(a / 8)[-1]), float(np.trace(second))
        true = float(w @ a @ w + (a * (second + covariance)).sum()) / 16
        return float(bounds.lambda_max(seen, top, moment, 0.0, 0.0, kl, len(x), 0.1, 20.0)), true

    return _covers(bound, 13)
