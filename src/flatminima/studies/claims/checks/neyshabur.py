"""Calculations that decide what Neyshabur et al. say of norms, margins, sharpness and their bounds."""

from __future__ import annotations

import math
from functools import reduce
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize_scalar

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random, tiny

_DRAWS = 2_000


def _network(seed: int) -> list[Array]:
    rng = random(seed)
    return [rng.standard_normal(shape) for shape in ((6, 4), (5, 6), (3, 5))]


def _outputs(layers: list[Array], x: Array) -> Array:
    for layer in layers[:-1]:
        x = np.maximum(x @ layer.T, 0)
    return np.asarray(x @ layers[-1].T)


def _path(layers: list[Array], p: int) -> float:
    through = np.ones(layers[0].shape[1])
    for layer in layers:
        through = np.abs(layer) ** p @ through
    return float(through.sum() ** (1 / p))


def finite_precision() -> Outcome:
    """ln of the number of functions that so many parameters of 32 bits can describe."""
    one, two = (32 * count * math.log(2) for count in (1_000, 2_000))
    return Outcome(two == 2 * one, f"at most {one:.0f} and {two:.0f} nats for 1,000 and 2,000 parameters")


def linear_capacity() -> Outcome:
    """Rademacher complexity of unit-norm predictors on 100 unit vectors, in 10 and in 10,000 dimensions."""
    found = []
    for dimension in (10, 10_000):
        rng = random(0)
        x = rng.standard_normal((100, dimension))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        signs = rng.choice([-1.0, 1.0], (200, 100))
        found.append(float(np.linalg.norm(signs @ x, axis=1).mean() / 100))
    return Outcome(abs(found[1] / found[0] - 1) < 0.1, f"{found[0]:.3f} and {found[1]:.3f}, at most 0.1")


def path_invariant() -> Outcome:
    """Node-wise rescaling of a ReLU network: outputs, l1- and l2-path norm, and the product of Frobenius norms."""
    layers, x = _network(1), random(2).standard_normal((50, 4))
    scales = [random(3).uniform(0.1, 10, n) for n in (6, 5)]
    moved = [
        layers[0] * scales[0][:, None],
        layers[1] * scales[1][:, None] / scales[0],
        layers[2] / scales[1],
    ]
    change = float(np.abs(_outputs(moved, x) - _outputs(layers, x)).max())
    path = max(abs(_path(moved, p) / _path(layers, p) - 1) for p in (1, 2))
    product = math.prod(float(np.linalg.norm(w)) for w in moved) / math.prod(float(np.linalg.norm(w)) for w in layers)
    return Outcome(
        change < 1e-9 and path < 1e-9,
        f"outputs differ by {tiny(change)}, path norms by {tiny(path)}, product {product:.1f}-fold",
    )


def path_is_minimum() -> Outcome:
    """prod_i max-row norms over 2,000 rescalings against the path norm: one output, and two identity layers."""
    rng = random(4)
    first, second = rng.standard_normal((6, 4)), rng.standard_normal((1, 6))
    norms = np.linalg.norm(first, axis=1)
    path = _path([first, second], 2)
    least = min(
        float((norms * s).max() * np.linalg.norm(second / s)) for s in (1 / norms, *rng.uniform(0.05, 5, (_DRAWS, 6)))
    )
    several, product = _path([np.eye(2), np.eye(2)], 1), float(np.abs(np.eye(2)).sum(1).max() ** 2)
    return Outcome(
        abs(least / path - 1) < 1e-12 and several <= product,
        f"one output: path {path:.3f}, least product {least:.3f}; identity layers with two: {several:g}, {product:g}",
    )


def dividing_weights() -> Outcome:
    """All weights divided by 10: predictions, norm, cross-entropy."""
    layers, x = _network(5), random(6).standard_normal((200, 4))
    y = _outputs(layers, x).argmax(1)
    small = [w / 10 for w in layers]
    same = bool((_outputs(small, x).argmax(1) == y).all())
    losses = []
    for w in (layers, small):
        z = _outputs(w, x)
        z = z - z.max(1, keepdims=True)
        losses.append(float((np.log(np.exp(z).sum(1)) - z[np.arange(200), y]).mean()))
    holds = same and losses[1] > losses[0] and abs(losses[1] - math.log(3)) < 0.02
    return Outcome(holds, f"the same labels; loss {losses[0]:.3f} to {losses[1]:.3f} of ln 3 = {math.log(3):.3f}")


def hard_margin() -> Outcome:
    """Least and fifth percentile of 100 and 10,000 margins of one distribution."""
    few, many = (5 + random(7).standard_normal(n) for n in (100, 10_000))
    least = float(few.min() - many.min())
    share = float(abs(np.quantile(few, 0.05) - np.quantile(many, 0.05)))
    return Outcome(least > 3 * share, f"the least falls by {least:.2f}, the fifth percentile moves by {share:.2f}")


def lipschitz() -> Outcome:
    """Largest difference quotient of a network against the product of spectral norms and the l1-path norm."""
    layers, rng = _network(8), random(9)
    x, step = rng.standard_normal((_DRAWS, 4)), 1e-4 * rng.standard_normal((_DRAWS, 4))
    change = _outputs(layers, x + step) - _outputs(layers, x)
    two = float((np.linalg.norm(change, axis=1) / np.linalg.norm(step, axis=1)).max())
    sup = float((np.abs(change).sum(1) / np.abs(step).max(1)).max())
    product, path = math.prod(float(np.linalg.norm(w, 2)) for w in layers), _path(layers, 1)
    return Outcome(two <= product and sup <= path, f"{two:.1f} of {product:.1f}; {sup:.1f} of {path:.1f}")


def lipschitz_capacity() -> Outcome:
    """ln (prod_i ||W_i||_2 / margin)^inputs of random networks by inputs and by layers, at a margin of 1."""

    def found(inputs: int, depth: int) -> float:
        rng, widths = random(13), [inputs, *[50] * depth]
        layers = [rng.standard_normal((b, a)) / math.sqrt(a) for a, b in pairwise(widths)]
        return inputs * sum(math.log(float(np.linalg.norm(w, 2))) for w in layers)

    wider, deeper = ([found(n, 5) for n in (10, 20, 40)], [found(20, d) for d in (5, 10, 20)])
    holds = all(b > 1.5 * a for values in (wider, deeper) for a, b in pairwise(values))
    said = "; ".join(", ".join(f"{v:.0f}" for v in values) for values in (wider, deeper))
    return Outcome(holds, f"ln of it for 10, 20 and 40 inputs, then 5, 10 and 20 layers: {said}")


def lipschitz_shatters() -> Outcome:
    """Functions of Lipschitz constant 2 on a cube: all labels -1 and 1 of its 2^n corners, by McShane's extension."""
    worst, counts = 0.0, []
    for n in (2, 5, 8):
        corners = np.array(np.meshgrid(*[[0.0, 1.0]] * n)).reshape(n, -1).T
        rng = random(n)
        labels, x = rng.choice([-1.0, 1.0], len(corners)), rng.uniform(size=(50, n))

        def extended(at: Array, corners: Array = corners, labels: Array = labels) -> Array:
            return np.asarray((labels + 2 * np.abs(at[:, None] - corners).max(2)).min(1))

        slopes = np.abs(np.diff(extended(x))) / np.abs(np.diff(x, axis=0)).max(1)
        worst = max(worst, float(np.abs(extended(corners) - labels).max()), float(slopes.max()) - 2)
        counts.append(len(corners))
    return Outcome(worst < 1e-9, "fits " + ", ".join(f"{c:,}" for c in counts) + " corners for 2, 5 and 8 inputs")


def weaker_bound() -> Outcome:
    """(6) against (5) over losses in [0, 1] and divergences."""
    least = min(
        float(bounds.neyshabur_6(risk, kl, 1_000, 0.05)) - float(bounds.neyshabur_5(risk, kl, 1_000, 0.05))
        for risk in (0.0, 0.1, 0.5, 1.0)
        for kl in (0.0, 1.0, 10.0, 100.0, 400.0)
    )
    return Outcome(least >= 0, f"(6) is larger by at least {least:.3f}")


def bound_any() -> Outcome:
    """(5) and (6) over 2,000 training sets: two priors, and a predictor that is random, the best, or memorizes."""
    rng, n, delta, size = random(14), 1_000, 0.1, 20
    risks = np.linspace(0.1, 0.6, size)
    priors = np.full(size, 1 / size), 0.5 ** np.arange(1, size + 1)
    failed = np.zeros(2, dtype=int)
    for _ in range(_DRAWS):
        seen = rng.binomial(n, risks) / n
        memorizer = (0.0, n * math.log(2), 0.5)  # of all labels of n points, equally likely; the true ones are random
        cases = [memorizer]
        for prior in (p / p.sum() for p in priors):
            best = int(seen.argmin())
            mixed = prior * np.exp(-30 * seen)
            mixed /= mixed.sum()
            cases.append((float(seen[best]), -math.log(prior[best]), float(risks[best])))
            cases.append((float(mixed @ seen), float((mixed * np.log(mixed / prior)).sum()), float(mixed @ risks)))
        for i, bound in enumerate((bounds.neyshabur_5, bounds.neyshabur_6)):
            failed[i] += any(true > float(bound(risk, kl, n, delta)) for risk, kl, true in cases)
    return Outcome(
        bool((failed <= delta * _DRAWS).all()),
        f"fail in {failed[0]} and {failed[1]} of {_DRAWS} draws at delta {delta}",
    )


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
    """Rise of the share of errors and of the logistic loss, two layers of norm 1: they meet, or nearly do not."""
    rng = random(11)
    e, found = np.eye(4), []
    for inner in (e[0], math.sqrt(1 - 1e-4) * e[2] + 1e-2 * e[0]):
        first, second = np.outer(e[0], e[0]), inner[None]
        half = [0.05 * rng.standard_normal((_DRAWS // 2, k, 4)) for k in (4, 1)]
        noise, other = (np.concatenate([draws, -draws]) for draws in half)  # the first order cancels
        moved, still = ((second + other) @ (first + noise) @ e[0])[:, 0], float((second @ first @ e[0])[0])
        rise = float(np.log1p(np.exp(-moved)).mean()) - math.log1p(math.exp(-still))
        found.append((float((moved < 0).mean()), rise, still))
    (meet, meet_rise, _), (apart, apart_rise, still) = found
    said = f"errors {meet:.2f} and {apart:.2f} of {_DRAWS} draws (outputs 1 and {still:.2f})"
    return Outcome(apart > 0.2 > 0.01 > meet, f"{said}; logistic loss {meet_rise:+.4f} and {apart_rise:+.4f}")


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
    """Lemma 1 in 20 random networks: change of the output, activations kept, over its bound; noise of 0.01 and 0.1."""
    ratios, rng = [], random(15)
    for seed in range(20):
        net = _Chain(seed)
        still = net.at[-1]
        for sigma in (0.01, 0.1):
            changes = [net.inputs(net.moved([sigma] * 4, rng), net.on)[-1] - still for _ in range(100)]
            sizes = zip(net.active, net.widths[1:], net.widths, strict=False)
            gains = [sigma * math.sqrt(h * g) / (net.mu**2 * float(np.linalg.norm(w))) for w, h, g in sizes]
            bound = (math.prod(1 + g for g in gains) - 1) * float(np.linalg.norm(still))
            ratios.append(float(np.linalg.norm(changes, axis=1).mean()) / bound)
    return Outcome(max(ratios) <= 1, f"{min(ratios):.1e} to {max(ratios):.1e} of it")


def changed_activations() -> Outcome:
    """Lemma 2's number of flips in the third layer, its constant taken as 1: noise in all layers, and below alone."""
    net, rng, delta = _Chain(0), random(16), 0.05
    depth, k = len(net.layers), 2
    spread = 2 * math.sqrt(math.log(depth * max(net.widths) / delta))
    below = float(np.linalg.norm(np.maximum(net.at[k - 1], 0)))
    said, kept = [], []
    for sigma in ([0.05] * depth, [0.05, 0.05, 1e-9, 1e-9]):
        flips = np.array([((net.inputs(net.moved(sigma, rng))[k] > 0) != net.on[k]).sum() for _ in range(200)])
        bound = net.c2 * net.widths[k + 1] * spread * sigma[k] * below
        kept.append(float((flips <= bound).mean()))
        said.append(f"{flips.mean():.1f} flips, at most {bound:.2g}")
    return Outcome(min(kept) >= 1 - delta, f"noise in all layers: {said[0]}; below that layer alone: {said[1]}")


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
        equal < 1.1, f"depth to the power {equal:.2f} at equal widths, {fixed:.2f} at equal parameters in all"
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
    return Outcome(min(worse) > 0, "larger by " + ", ".join(f"{w:.2g}" for w in worse) + f" than {base:.3g}")


def simplified_theorem() -> Outcome:
    """Squared root of Theorem 1 at gamma_i = sigma / (C_delta d), without its logarithm, over the simplified one's."""
    ratios = []
    for depth in (5, 100):
        sigma, mu, width, n = 0.1, 0.5, 100, 10_000
        simple = depth**2 / mu**4 * depth * width**2 / sigma**2
        ratios.append((_theorem_1(depth)[1] ** 2 * n - math.log(2 * n / 0.05)) / simple)
    return Outcome(abs(ratios[0] - 1) < 0.1, f"{ratios[0]:.0f} and {ratios[1]:.0f} times for 5, 100 layers: C_delta^2")


def frobenius_to_spectral() -> Outcome:
    """l2 capacity over the spectral one's, margin 1, orthogonal layers of 5 units: at most 1 if the one follows."""
    ratios = []
    for depth in (2, 5):
        layers = [np.linalg.qr(random(17 + i).standard_normal((5, 5)))[0] for i in range(depth)]
        l2 = math.prod(4 * float(np.linalg.norm(w)) ** 2 for w in layers)
        ratios.append(l2 / math.prod(5 * float(np.linalg.norm(w, 2)) ** 2 for w in layers))
    return Outcome(max(ratios) <= 1 + 1e-9, f"{ratios[0]:.0f} and {ratios[1]:.0f} for 2 and 5 layers: 4^d is missing")


def weight_scaled_kl() -> Outcome:
    """sum w^2/(2 sigma^2) at sigma = 0.1 |w| + 0.05 against the KL from priors that do not know w."""
    w = random(18).standard_normal(1_000)
    sigma = 0.1 * np.abs(w) + 0.05
    printed = float((w**2 / (2 * sigma**2)).sum())
    best = minimize_scalar(
        lambda t: float(bounds.kl_scaled_noise_fixed_prior(w, sigma, math.exp(t))), bounds=(-5, 5), method="bounded"
    )
    other = 0.1 * np.abs(random(19).standard_normal(1_000)) + 0.05  # what other data would have given
    crossed = float(bounds.kl_diag_gaussian(w, sigma, 0.0, other))
    said = f"{printed:.0f} nats as printed; {best.fun:.0f} from the best fixed variance"
    holds = min(abs(float(best.fun) / printed - 1), abs(crossed / printed - 1)) < 1e-6
    return Outcome(holds, f"{said}, {crossed:.0f} from the variances of other weights")


def appendix_kl() -> Outcome:
    """(1/alpha^2) sum (w / (10 |w| + 1))^2 against the KL of two Gaussians with those variances."""
    w, alpha = random(20).standard_normal(1_000), 0.01
    sigma = alpha * (10 * np.abs(w) + 1)
    kl = float(bounds.kl_diag_gaussian(w, sigma, 0.0, sigma))
    printed = float(bounds.bicriteria_kl(w, alpha, variant="appendix"))
    return Outcome(abs(printed / kl - 1) < 1e-9, f"{printed:.0f} nats as printed, {kl:.0f} by the definition")


def ten_million() -> Outcome:
    """Weights of an MNIST perceptron of 1,000 units a layer: ten weight matrices, or ten hidden layers."""
    layers, hidden = (784_000 + count * 1_000_000 + 10_000 for count in (8, 9))
    return Outcome(max(layers, hidden) > 10_000_000, f"{layers:,} with ten matrices, {hidden:,} with ten hidden layers")


def gaussian_matrix() -> Outcome:
    """Mean of ||A nu B||_F over 2,000 draws against sigma ||A|| ||B||."""
    rng = random(12)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((5, 2))
    mean = float(np.mean([np.linalg.norm(a @ (0.3 * rng.standard_normal((4, 5))) @ b) for _ in range(_DRAWS)]))
    right = 0.3 * float(np.linalg.norm(a) * np.linalg.norm(b))
    return Outcome(mean <= right, f"{mean:.3f} against {right:.3f}")
