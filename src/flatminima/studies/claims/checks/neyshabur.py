"""Calculations that decide what Neyshabur et al. say of norms, margins, sharpness and their bounds."""

from __future__ import annotations

import math

import numpy as np

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome, random

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
        change < 1e-9 and path < 1e-9, f"outputs {change:.0e}, path norms {path:.0e}, product {product:.1f}-fold"
    )


def path_is_minimum() -> Outcome:
    """prod_i max-row norms of a two-layer network over 2,000 rescalings, and at the balanced one."""
    rng = random(4)
    first, second = rng.standard_normal((6, 4)), rng.standard_normal((1, 6))
    norms = np.linalg.norm(first, axis=1)
    path = _path([first, second], 2)

    def product(scales: Array) -> float:
        return float((norms * scales).max() * np.linalg.norm(second / scales))

    least = min(product(rng.uniform(0.05, 5, 6)) for _ in range(_DRAWS))
    balanced = product(1 / norms)
    return Outcome(
        least >= path - 1e-12 and abs(balanced / path - 1) < 1e-12,
        f"path {path:.3f}, balanced {balanced:.3f}, least of draws {least:.3f}",
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
    """Decimal digits of (C / margin)^inputs at C / margin = 2, for 10 and 784 inputs."""
    few, many = (n * math.log10(2) for n in (10, 784))
    return Outcome(abs(many / few - 78.4) < 1e-9, f"1e{few:.0f} and 1e{many:.0f}")


def last_term() -> Outcome:
    """sqrt(L K) against K, for losses below K."""
    worst = max(math.sqrt(loss * k) / k for k in (0.01, 0.1, 1.0) for loss in (0.0, 0.5 * k, 0.99 * k))
    return Outcome(worst < 1, f"at most {worst:.3f} of the last term")


def weaker_bound() -> Outcome:
    """(6) against (5) over losses in [0, 1] and divergences."""
    least = min(
        float(bounds.neyshabur_6(risk, kl, 1_000, 0.05)) - float(bounds.neyshabur_5(risk, kl, 1_000, 0.05))
        for risk in (0.0, 0.1, 0.5, 1.0)
        for kl in (0.0, 1.0, 10.0, 100.0, 400.0)
    )
    return Outcome(least >= 0, f"(6) is larger by at least {least:.3f}")


def linear_sharpness() -> Outcome:
    """Mean squared change of a linear predictor's output under N(0, 0.01) on its weights: two directions, one norm."""
    rng = random(10)
    x = rng.standard_normal((500, 5))
    noise = 0.1 * rng.standard_normal((_DRAWS, 5))
    first, second = np.array([1.0, 0, 0, 0, 0]), np.array([0, 0, 0, 0.6, 0.8])
    found = [float((((w + noise) @ x.T - w @ x.T) ** 2).mean()) for w in (first, second)]
    return Outcome(abs(found[0] / found[1] - 1) < 1e-9, f"{found[0]:.5f} and {found[1]:.5f}")


def weak_layers() -> Outcome:
    """Relative change of a product of two layers of norm 1 under noise of 0.05: layers that meet, and nearly not."""
    rng = random(11)
    e = np.eye(4)
    meet = np.outer(e[0], e[0]), np.outer(e[1], e[0])
    apart = np.outer(e[0], e[0]), np.outer(e[1], math.sqrt(1 - 1e-4) * e[2] + 1e-2 * e[0])
    found = []
    for first, second in (meet, apart):
        noise = 0.05 * rng.standard_normal((2, 500, 4, 4))
        moved = (second + noise[0]) @ (first + noise[1]) - second @ first
        found.append(float(np.linalg.norm(moved, axis=(1, 2)).mean() / np.linalg.norm(second @ first)))
    return Outcome(found[1] > 10 * found[0], f"{found[0]:.2f} where they meet, {found[1]:.1f} where they nearly do not")


def _theorem_1(
    depth: int, mu: float = 0.5, c2: float = 2.0, c3: float = 2.0, sigma: float = 0.1
) -> tuple[float, float]:
    """Sharpness term and root of the norm term of N17's Theorem 1, the simplified choice of its noise."""
    spread = 2 * math.sqrt(math.log(100 * depth / 0.05))
    gamma = sigma / (spread * depth)
    activations = (1 + gamma * c2 * c3) ** depth * ((1 + gamma * spread * c2) ** depth - 1)
    return (1 + gamma) ** depth - 1 + activations, depth / mu**2


def theorem_1_depth() -> Outcome:
    """Both terms for 5 to 100 layers, beside 2^depth."""
    few, many = _theorem_1(5), _theorem_1(100)
    holds = many[0] < 1.5 * few[0] and abs(many[1] / few[1] - 20) < 1e-9
    return Outcome(holds, f"5 and 100 layers: sharpness {few[0]:.3f}, {many[0]:.3f}; norm {many[1] / few[1]:.0f}-fold")


def theorem_1_constants() -> Outcome:
    """The bound with a smaller mu, a larger C2, a larger C3."""
    base = _theorem_1(10)
    worse = _theorem_1(10, mu=0.25)[1] > base[1], _theorem_1(10, c2=4)[0] > base[0], _theorem_1(10, c3=4)[0] > base[0]
    return Outcome(all(worse), "each makes it larger" if all(worse) else "not each makes it larger")


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
