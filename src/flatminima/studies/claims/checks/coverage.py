"""Share of draws of samples in which a bound of Wang et al. fails: the expected losses are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random

_DRAWS, _N, _DELTA = 2_000, 100, 0.1
_LARGEST, _TAU = 4.41, 1.1  # (1 + 1.1)^2; half-width of the priors


@dataclass(frozen=True)
class _Memorized:
    """A sample of n of as many one-hot inputs with random signs y, and w: the mean sign of each input, 0 where unseen.

    Under loss (y - w_i)^2 / 4.41, in [0, 1] for |w| <= 1.1, w is a minimum of the training loss and has learned nothing
    that holds for new samples: bounds whose complexity is left out fail.
    """

    seen: float
    w: Array
    curvature: Array

    @staticmethod
    def drawn(rng: np.random.Generator) -> _Memorized:
        """One sample."""
        at, y = rng.integers(0, _N, _N), rng.choice((-1.0, 1.0), _N)
        counts, sums = np.bincount(at, minlength=_N), np.bincount(at, y, _N)
        w = sums / np.maximum(counts, 1)
        return _Memorized(float(((y - w[at]) ** 2).mean() / _LARGEST), w, 2 * counts / _N / _LARGEST)

    def true(self, second: Array) -> float:
        """The expected loss under noise with these second moments and a mean: E (y - w - u)^2 with y of mean 0."""
        return float((1 + second).mean() / _LARGEST)


def _share(failed: int, without: int, said: str = "") -> Outcome:
    covers = failed / _DRAWS <= _DELTA < without / _DRAWS
    told = f"fails in {failed} of {_DRAWS} draws at delta {_DELTA}, in {without} where its complexity is left out"
    return Outcome(covers, told + said)


def _without_complexity(seen: float, eta: float) -> float:
    return seen + math.log(1 / _DELTA) / eta + eta / (2 * _N)


def _covers(bound: Callable[[_Memorized], tuple[float, float]], seed: int, eta: float) -> Outcome:
    """How often a bound, and what is left of it without its complexity, lie below the expected noisy loss."""
    rng, failed, without, gap = random(seed), 0, 0, 0.0
    for _ in range(_DRAWS):
        one = _Memorized.drawn(rng)
        found, true = bound(one)
        failed, gap = failed + (true > found), gap + (found - true) / _DRAWS
        without += true > _without_complexity(one.seen, eta)
    return _share(failed, without, f"; {gap:.2f} above the loss on average")


def hoeffding_covers() -> Outcome:
    """Theorem 1 on all labellings of 100 points: a posterior that is uniform over those that agree with the sample.

    Labels are random, so that each errs on half of new samples; the KL is ln 2 a point that was seen.
    """
    rng, eta, failed, without = random(0), 50.0, 0, 0
    for _ in range(_DRAWS):
        at, y = rng.integers(0, _N, _N), rng.choice((-1.0, 1.0), _N)
        counts, sums = np.bincount(at, minlength=_N), np.bincount(at, y, _N)
        kl, risk = float((counts > 0).sum() * math.log(2)), float(((counts - np.abs(sums)) / 2).sum() / _N)
        failed += float(bounds.hoeffding(risk, kl, _N, _DELTA, eta)) < 0.5
        without += _without_complexity(risk, eta) < 0.5
    return _share(failed, without)


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
    """Theorem 2, with the grid that is proven, where a sample is memorized; without its complexity at the best eta."""

    def bound(one: _Memorized) -> tuple[float, float]:
        kappa = 0.1
        sigma = np.asarray(bounds.uniform_sigma(one.curvature, 0.0, kappa, math.sqrt(len(one.w) * _N)))
        found = bounds.uniform_perturbation_grid(one.seen, one.curvature, 0.0, kappa, _TAU, _N, _DELTA)
        return float(found), one.true(one.w**2 + sigma**2 / 3)

    return _covers(bound, 1, math.sqrt(2 * _N * math.log(1 / _DELTA)))


def _lemma_3(radius: Callable[[Array], Array], seed: int) -> Outcome:
    eta = 30.0

    def bound(one: _Memorized) -> tuple[float, float]:
        kappa = radius(one.w)
        sigma = np.asarray(bounds.uniform_sigma(one.curvature, 0.0, kappa, eta))
        found = bounds.uniform_perturbation_simplified(one.seen, one.curvature, 0.0, kappa, _TAU, _N, _DELTA, eta)
        return float(found), one.true(one.w**2 + sigma**2 / 3)

    return _covers(bound, seed, eta)


def lemma_3_covers() -> Outcome:
    """(8) with its own uniform noise and kappa = 0.05 |w| + 0.05, where a sample is memorized."""
    return _lemma_3(lambda w: 0.05 * np.abs(w) + 0.05, 12)


def other_radius() -> Outcome:
    """The same with a radius that does not depend on the weight, and one that goes with its square."""
    radii: tuple[Callable[[Array], Array], ...] = (lambda w: np.full_like(w, 0.1), lambda w: 0.05 * w**2 + 0.05)
    found = [_lemma_3(radius, 14) for radius in radii]
    said = "; ".join(f"{name}: {one.said}" for name, one in zip(("constant", "of w^2"), found, strict=True))
    return Outcome(all(one.holds for one in found), said)


def lemma_5_covers() -> Outcome:
    """(24) of the same under noise that is uniform on slanted boxes off the centre, correlated in pairs of weights."""
    eta, off = 30.0, 0.02
    mix = np.array([[0.05, 0.03], [0.0, 0.04]])
    second = np.tile((mix**2).sum(1) / 3 + off**2, _N // 2)
    kl = _N * math.log(2 * _TAU) - _N // 2 * math.log(4 * float(np.linalg.det(mix)))

    def bound(one: _Memorized) -> tuple[float, float]:
        top, moment = float(one.curvature.max()), float(second.sum())
        found = bounds.lambda_max(one.seen, top, moment, 0.0, 0.0, kl, _N, _DELTA, eta)
        return float(found), one.true(one.w**2 + 2 * one.w * off + second)

    return _covers(bound, 13, eta)
