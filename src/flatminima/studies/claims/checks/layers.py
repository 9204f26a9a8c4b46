"""Calculations that decide what Neyshabur et al. say of how layers interact: section 4, its lemmas and Theorem 1."""

from __future__ import annotations

import math
from functools import reduce
from itertools import pairwise

import numpy as np

from flatminima import bounds
from flatminima.ranking import kendall
from flatminima.studies.claims.checks.outcome import Array, Outcome, random

_DRAWS = 2_000


def linear_sharpness() -> Outcome:
    """Sharpness of two linear predictors of one norm that both fit: logistic loss, expected and over a box."""
    rng = random(10)
    x = np.array([2.0, 0.0]) + 0.4 * rng.standard_normal((200, 2))  # all of one class: times its label
    noise = 0.5 * rng.standard_normal((_DRAWS, 2))
    box = 0.5 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])  # the loss is convex: a corner has its maximum
    found = []
    for w in (np.array([3.0, 0.0]), 3 * np.array([math.cos(0.5), math.sin(0.5)])):
        loss = [np.log1p(np.exp(-(w + moves) @ x.T)).mean(1) for moves in (np.zeros((1, 2)), noise, box)]
        found.append((float(loss[1].mean() - loss[0][0]), float(loss[2].max() - loss[0][0]), float((x @ w).min())))
    (one, worst, margin), (other, other_worst, other_margin) = found
    holds = abs(other / one - 1) < 0.1 and abs(other_worst / worst - 1) < 0.1
    said = f"expected {one:.4f} and {other:.4f}, largest {worst:.4f} and {other_worst:.4f}"
    return Outcome(holds, f"least outputs {margin:.1f} and {other_margin:.1f}; sharpness {said}")


def weak_layers() -> Outcome:
    """Rise of the logistic loss under noise of three networks with one input, whose output is 2: two layers each.

    One is of norm 10 a layer, and its two units cancel each other but for 2; one has the same norms, most of them in a
    unit that is never active; in one the layers are aligned, and the norms as small as the output allows.
    """
    rng, sigma, output = random(11), 0.05, 2.0
    high, low = math.sqrt(50 + output / 2), math.sqrt(50 - output / 2)
    idle, one = math.sqrt(100 - output), math.sqrt(output)
    networks = ([high, low], [high, -low]), ([one, -idle], [one, idle]), ([one], [one])
    rises = []
    for first, second in networks:
        size = (_DRAWS, len(first))
        hidden = np.maximum(np.array(first) + sigma * rng.standard_normal(size), 0)
        moved = (hidden * (np.array(second) + sigma * rng.standard_normal(size))).sum(1)
        rises.append(float(np.logaddexp(0, -moved).mean()) - math.log1p(math.exp(-output)))
    weak, same, aligned = rises
    said = f"norm 10 a layer: {weak:.4f} nats where the units cancel, {same:.4f} where they do not"
    return Outcome(
        weak > 10 * same and weak > 10 * aligned, f"{said}; {aligned:.4f} of aligned layers; the output is 2 in all"
    )


class _Chain:
    """A random ReLU network at one input of length 1, and the constants of the three conditions there."""

    def __init__(self, seed: int, widths: tuple[int, ...] = (10, 40, 40, 40, 3)) -> None:
        rng = random(seed)
        self.layers = [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(widths)]
        self.x, self.widths = rng.standard_normal(widths[0]), widths
        self.x /= np.linalg.norm(self.x)
        self.at = self.inputs(self.layers)
        self.on = [(z > 0).astype(float) for z in self.at[:-1]] + [np.ones(widths[-1])]
        self.active = [d[:, None] * w for d, w in zip(self.on, self.layers, strict=True)]
        self.mu = self._mu()
        shares = [np.arange(1, z.size + 1) / z.size / np.sort(np.abs(z)) for z in self.at]
        self.c2 = max(float(s.max()) for s in shares)

    def inputs(self, layers: list[Array], on: list[Array] | None = None) -> list[Array]:
        """Inputs of each layer's units; `on` keeps the units that are active."""
        x, found = self.x, []
        for i, layer in enumerate(layers):
            found.append(layer @ x)
            x = np.maximum(found[-1], 0) if on is None else on[i] * found[-1]
        return found

    def _mu(self) -> float:
        """Largest mu of C1 for 0 <= a <= c < b <= d, which the proof needs (erratum N-e)."""
        factors, last = [self.x[:, None], *self.active], len(self.active)
        norms = {
            (a, b): float(np.linalg.norm(reduce(lambda left, right: right @ left, factors[a : b + 1])))
            for a in range(last + 1)
            for b in range(a, last + 1)
        }
        return min(
            math.sqrt(self.widths[c]) * norms[a, b] / (norms[c + 1, b] * norms[a, c])
            for a in range(last)
            for c in range(a, last)
            for b in range(c + 1, last + 1)
        )

    def moved(self, sigma: list[float], rng: np.random.Generator) -> list[Array]:
        return [w + s * rng.standard_normal(w.shape) for w, s in zip(self.layers, sigma, strict=True)]


def unchanged_activations() -> Outcome:
    """Lemma 1 in 20 random networks: change of the output, activations kept, over its bound; noise of 0.01 and 0.1.

    And whether the change, over the output's size, is smaller for a larger mu, the least interaction of any layers.
    """
    ratios, changes, rng = [], [], random(15)
    nets = [_Chain(seed) for seed in range(20)]
    for net in nets:
        still = net.at[-1]
        for sigma in (0.01, 0.1):
            moved = [net.inputs(net.moved([sigma] * 4, rng), net.on)[-1] - still for _ in range(100)]
            sizes = zip(net.active, net.widths[1:], net.widths, strict=False)
            gains = [sigma * math.sqrt(h * g) / (net.mu**2 * float(np.linalg.norm(w))) for w, h, g in sizes]
            change = float(np.linalg.norm(moved, axis=1).mean() / np.linalg.norm(still))
            ratios.append(change / (math.prod(1 + g for g in gains) - 1))
        changes.append(change)
    tau = kendall([net.mu for net in nets], changes).tau or 0.0  # 0 where nothing differs
    said = f"Kendall's tau of the change with mu {tau:+.2f}; the change is {min(ratios):.1e} to {max(ratios):.1e}"
    return Outcome(max(ratios) <= 1 and tau < -0.3, f"{said} of Lemma 1's bound")


def changed_activations() -> Outcome:
    """Lemma 2's number of flips among the 40 units of the third layer, its constant taken as 1: two kinds of noise."""
    net, rng, delta = _Chain(0), random(16), 0.05
    depth, k = len(net.layers), 2
    spread = 2 * math.sqrt(math.log(depth * max(net.widths) / delta))
    below = float(np.linalg.norm(np.maximum(net.at[k - 1], 0)))
    said, kept = [], []
    for sigma in ([0.05] * depth, [0.05, 0.05, 1e-4, 1e-4]):
        flips = np.array([((net.inputs(net.moved(sigma, rng))[k] > 0) != net.on[k]).sum() for _ in range(200)])
        bound = net.c2 * net.widths[k + 1] * spread * sigma[k] * below
        kept.append(float((flips <= bound).mean()))
        said.append(f"{flips.mean():.1f} flips of 40 units, at most {bound:.2g}")
    return Outcome(min(kept) >= 1 - delta, f"noise of 0.05: {said[0]}; of 1e-4 from that layer on: {said[1]}")


def _theorem_1(
    depth: int, *, mu: float = 0.5, c2: float = 2.0, c3: float = 2.0, sigma: float = 0.1, width: int = 100
) -> tuple[float, float]:
    """Sharpness term and root of N17's Theorem 1 as printed, with its choice gamma_i = sigma / (C_delta d)."""
    n, delta = 10_000, 0.05
    spread = 2 * math.sqrt(math.log(depth * width / delta))
    noise = np.full(depth, sigma / (spread * depth) * mu**2 / width)  # of ||W_i||_F = 1: it cancels
    root, both = (
        bounds.neyshabur_score(output, np.ones(depth), np.full(depth + 1, width), noise, mu, c2, c3, n, delta)
        for output in (0.0, 1.0)
    )
    return both - root, root


def _power(few: float, many: float, factor: float) -> float:
    """Exponent of depth between two depths a factor apart."""
    return math.log(many / few) / math.log(factor)


def depth_power() -> Outcome:
    """Root of Theorem 1 at 100 and 400 layers: of equal widths, and of equal parameters in all."""
    few = _theorem_1(100)[1]
    equal, fixed = (_power(few, _theorem_1(400, width=width)[1], 4) for width in (100, 50))
    return Outcome(
        abs(fixed - 1) < 0.1, f"depth to the power {fixed:.2f} at equal parameters in all, {equal:.2f} at equal widths"
    )


def no_exponential() -> Outcome:
    """Both terms of Theorem 1 for 10 to 640 layers: their powers of depth do not grow."""
    terms = [_theorem_1(10 * 2**k) for k in range(7)]
    powers = [[_power(a[i], b[i], 2) for a, b in pairwise(terms)] for i in (0, 1)]
    said = f"sharpness {terms[0][0]:.2f} to {terms[-1][0]:.2f}; the root's power of depth"
    return Outcome(
        max(powers[0]) < 0.1 and powers[1][-1] < powers[1][0] + 0.1, f"{said} {powers[1][0]:.2f} to {powers[1][-1]:.2f}"
    )


def theorem_1_constants() -> Outcome:
    """Both terms together with half of mu, twice C2, twice C3."""
    moved: list[dict[str, float]] = [{}, {"mu": 0.25}, {"c2": 4.0}, {"c3": 4.0}]
    base, *values = (sum(_theorem_1(10, width=100, **change)) for change in moved)
    worse = [value - base for value in values]
    said = ", ".join(f"{name} {w:+.2g}" for name, w in zip(("half of mu", "twice C2", "twice C3"), worse, strict=True))
    return Outcome(min(worse) > 0, f"the right side, {base:.3g}: {said}")


def simplified_theorem() -> Outcome:
    """Squared root of Theorem 1 at gamma_i = sigma / (C_delta d), without its logarithm, over the simplified one's."""
    ratios = []
    for depth in (5, 100):
        sigma, mu, width, n = 0.1, 0.5, 100, 10_000
        simple = depth**2 / mu**4 * depth * width**2 / sigma**2
        ratios.append((_theorem_1(depth)[1] ** 2 * n - math.log(2 * n / 0.05)) / simple)
    return Outcome(abs(ratios[0] - 1) < 0.1, f"{ratios[0]:.0f} and {ratios[1]:.0f} times for 5, 100 layers: C_delta^2")


def gaussian_matrix() -> Outcome:
    """Mean of ||A nu B||_F over 2,000 draws against sigma ||A|| ||B||."""
    rng = random(12)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((5, 2))
    mean = float(np.mean([np.linalg.norm(a @ (0.3 * rng.standard_normal((4, 5))) @ b) for _ in range(_DRAWS)]))
    right = 0.3 * float(np.linalg.norm(a) * np.linalg.norm(b))
    return Outcome(mean <= right, f"{mean:.3f} against {right:.3f}")
