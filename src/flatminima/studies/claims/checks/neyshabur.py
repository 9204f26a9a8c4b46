"""Calculations that decide what Neyshabur et al. say of norms, margins, sharpness and their bounds."""

from __future__ import annotations

import math
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
    return Outcome(abs(found[1] / found[0] - 1) < 0.1, f"{found[0]:.3f} in 10 dimensions, {found[1]:.3f} in 10,000")


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
        f"one output: path {path:.3f}, least product {least:.3f}; two outputs: {several:g}, {product:g}",
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
    """Least and fifth percentile of 100 and 10,000 margins of one distribution, and of the 100 with one more at 0."""
    few, many = (5 + random(7).standard_normal(n) for n in (100, 10_000))
    moved = []
    for others in (many, np.append(few, 0.0)):
        moved.append(float(few.min() - others.min()))
        moved.append(float(abs(np.quantile(few, 0.05) - np.quantile(others, 0.05))))
    of_size, share, of_one, share_of_one = moved
    said = f"10,000 samples for 100: the least falls by {of_size:.2f}, the fifth percentile moves by {share:.2f}"
    holds = of_size > 3 * share and of_one > 3 * share_of_one
    return Outcome(holds, f"{said}; one extreme point more: {of_one:.2f} and {share_of_one:.2f}")


def lipschitz() -> Outcome:
    """Largest difference quotients of a network against the norms: products, l1-path, and l2-path times root paths."""
    layers, rng = _network(8), random(9)
    x, step = rng.standard_normal((_DRAWS, 4)), 1e-4 * rng.standard_normal((_DRAWS, 4))
    change = _outputs(layers, x + step) - _outputs(layers, x)
    two = float((np.linalg.norm(change, axis=1) / np.linalg.norm(step, axis=1)).max())
    sup = float((np.abs(change).sum(1) / np.abs(step).max(1)).max())
    spectral, l2 = (math.prod(float(np.linalg.norm(w, order)) for w in layers) for order in (2, None))
    paths = math.prod(w.shape[1] for w in layers) * layers[-1].shape[0]
    l1_path, l2_path = _path(layers, 1), math.sqrt(paths) * _path(layers, 2)
    said = f"slope {two:.1f}, spectral norms' product {spectral:.1f}, l2 norms' {l2:.1f}"
    holds = two <= spectral <= l2 and sup <= l1_path <= l2_path
    return Outcome(holds, f"{said}; in the largest norm {sup:.1f}, l1-path {l1_path:.1f}, l2-path {l2_path:.1f}")


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
    """(6), or 1, the most that a loss can be, against (5) over losses in [0, 1], divergences and samples."""
    apart: dict[bool, list[float]] = {False: [], True: []}
    for risk in (0.0, 0.1, 0.5, 1.0):
        for kl in (0.0, 1.0, 10.0, 100.0, 400.0):
            for n in (2, 10, 100, 1_000, 100_000):
                k = 2 * (kl + math.log(2 * n / 0.05)) / (n - 1)
                six, five = (float(bound(risk, kl, n, 0.05)) for bound in (bounds.neyshabur_6, bounds.neyshabur_5))
                apart[k >= 1].append(six - 1 if k >= 1 else six - five)
    least = {large: min(values) for large, values in apart.items()}
    said = f"K < 1: (6) is above (5) by at least {least[False]:.1e}; K of 1 and more: above 1 by {least[True]:.2f}"
    return Outcome(min(least.values()) >= 0, said)


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


def derived_bounds() -> Outcome:
    """||W||_F^2 <= h ||W||_2^2, and the squared sum over the paths that reach an output by Cauchy and Schwarz.

    Of 200 random networks; and the capacities as printed, by the l2 norm over by the spectral norm, of 2 and 5 layers.
    """
    spectral, path = [], []
    for seed in range(200):
        layers = _network(seed)
        spectral += [float(np.linalg.norm(w) ** 2 / (min(w.shape) * np.linalg.norm(w, 2) ** 2)) for w in layers]
        paths = math.prod(w.shape[1] for w in layers) * layers[-1].shape[0]
        path.append(_path(layers, 1) ** 2 / (paths * _path(layers, 2) ** 2))
    printed = [4**depth for depth in (2, 5)]
    said = f"left over right at most {max(spectral):.2f} and {max(path):.2f}"
    holds = max(spectral) <= 1 and max(path) <= 1
    return Outcome(holds, f"{said}; {printed[0]} and {printed[1]:,}, 4^d of 2 and 5 layers, are missing in print")


def weight_scaled_kl() -> Outcome:
    """sum w^2/(2 sigma^2) at sigma = alpha |w| + 0.05 against the KL from the best prior of one variance for all."""
    w, said, holds = random(18).standard_normal(1_000), [], True
    for alpha in (0.1, 1.0):
        sigma = alpha * np.abs(w) + 0.05
        printed = float((w**2 / (2 * sigma**2)).sum())

        def of(log: float, sigma: Array = sigma) -> float:
            return float(bounds.kl_scaled_noise_fixed_prior(w, sigma, math.exp(log)))

        best = float(minimize_scalar(of, bounds=(-5, 5), method="bounded").fun)
        holds &= printed >= best
        said.append(f"alpha {alpha:g}: {printed:.0f} nats as printed, {best:.0f} from the best prior")
    return Outcome(holds, "; ".join(said))


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
