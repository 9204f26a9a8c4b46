"""Calculations on small networks in float64, whose Hessians are exact."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Array, Outcome

_HIDDEN, _CLASSES, _SAMPLES = 8, 3, 90
_ETA, _DELTA = 39.0, 0.05
_FACTORS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)


def _data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(_SAMPLES) % _CLASSES
    centres = torch.tensor([[0.0, 1.5], [1.5, -1.0], [-1.5, -1.0]], dtype=torch.float64)
    return centres[y] + 0.6 * torch.randn(_SAMPLES, 2, generator=draw, dtype=torch.float64), y


def _loss(w: Tensor, smooth: bool = False) -> Tensor:
    x, y = _data()
    first, second = w[: 3 * _HIDDEN].view(_HIDDEN, 3), w[3 * _HIDDEN :].view(_CLASSES, _HIDDEN)
    hidden = x @ first[:, :2].T + first[:, 2]
    return cross_entropy((torch.tanh(hidden) if smooth else torch.relu(hidden)) @ second.T, y)


@cache
def _trained() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    w = torch.randn(_HIDDEN * (3 + _CLASSES), generator=draw, dtype=torch.float64).mul_(0.5).requires_grad_()
    optimizer = torch.optim.LBFGS([w], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(w) + 1e-3 * w.square().sum()  # keeps the minimum at a finite place
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach()


def _hessian(w: Tensor) -> Array:
    found: Array = torch.autograd.functional.hessian(_loss, w).numpy()
    return found


@cache
def _rescaled() -> list[tuple[float, float, float]]:
    """By factor of the first layer: change of the loss, trace of the Hessian, Lemma 3's bound."""
    found = []
    for factor in _FACTORS:
        w = _trained().clone()
        w[: 3 * _HIDDEN] *= factor
        w[3 * _HIDDEN :] /= factor
        diagonal = np.diag(_hessian(w)).clip(0)
        size = w.abs().numpy()
        kappa = 0.1 * size + 0.1
        bound = bounds.uniform_perturbation(float(_loss(w)), diagonal, 0.0, kappa, size + kappa, 10_000, _DELTA, _ETA)
        found.append((float(_loss(w) - _loss(_trained())), float(diagonal.sum()), float(bound)))
    return found


def bound_not_invariant() -> Outcome:
    """Lemma 3's bound of a ReLU network before and after a factor of 10."""
    (_, _, before), (change, _, after), *_ = _rescaled()
    return Outcome(
        abs(after - before) > 1e-3, f"{before:.3f} and {after:.3f} nats; the loss moves by {abs(change):.0e}"
    )


def bound_log_speed() -> Outcome:
    """Its change from one factor of ten to the next: a logarithm ends by adding the same, a power tenfold."""
    values = [bound for _, _, bound in _rescaled()]
    steps = np.abs(np.diff(values))
    ratio = float(steps[-1] / steps[-2])
    return Outcome(ratio < 1.5, "steps of " + ", ".join(f"{step:.3f}" for step in steps) + " nats")


def bound_change_small() -> Outcome:
    """Its relative change at a factor of 10, beside that of the trace of the Hessian."""
    (_, trace, before), (_, moved, after), *_ = _rescaled()
    relative = abs(after / before - 1)
    return Outcome(
        relative < 0.1, f"the bound by {100 * relative:.1f} %, the trace {max(moved / trace, trace / moved):.0f}-fold"
    )


def dropout_multiplies() -> Outcome:
    """Effect of dropout on ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = set(torch.nn.functional.dropout(torch.ones(1_000), 0.3).tolist())
    expected = {0.0, 1 / 0.7}
    holds = len(values) == 2 and max(abs(a - b) for a, b in zip(sorted(values), sorted(expected), strict=True)) < 1e-6
    return Outcome(holds, "factors " + ", ".join(f"{v:.3f}" for v in sorted(values)))


def batch_norm_folds() -> Outcome:
    """A linear layer with BatchNorm in evaluation mode against one linear layer."""
    draw = torch.Generator().manual_seed(2)
    x, w = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((50, 4), (6, 4)))
    mean, gain, shift = (torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(3))
    var = torch.rand(6, generator=draw, dtype=torch.float64) + 0.1
    scale = gain / (var + 1e-5).sqrt()
    with_norm = torch.nn.functional.batch_norm(x @ w.T, mean, var, gain, shift, False, 0.0, 1e-5)
    folded = x @ (w * scale[:, None]).T + shift - mean * scale
    change = float((with_norm - folded).abs().max())
    return Outcome(change < 1e-12, f"outputs differ by {change:.0e}")


def batch_norm_rescaled() -> Outcome:
    """ReLU behind BatchNorm: its gain and shift times 10, the next weights a tenth. Does the function change?"""
    draw = torch.Generator().manual_seed(3)
    x, second = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((64, 6), (3, 6)))
    gain, shift = (torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(2))

    def outputs(factor: float) -> Tensor:
        hidden = torch.nn.functional.batch_norm(x, None, None, factor * gain, factor * shift, True)
        return torch.relu(hidden) @ (second / factor).T

    change = float((outputs(10.0) - outputs(1.0)).abs().max())
    return Outcome(change > 1e-6, f"the outputs move by {change:.0e}: the scale is as free as without BatchNorm")


def hessian_spectrum() -> Outcome:
    """Eigenvalues of a trained network's Hessian, and their share of sum |ln lambda|."""
    values = np.linalg.eigvalsh(_hessian(_trained()))
    small = float((np.abs(values) < 0.05 * values[-1]).mean())
    positive = np.sort(values[values > 1e-12])
    logs = np.log(positive)
    lower = float(logs[: len(logs) // 2].sum() / logs.sum())
    return Outcome(
        small > 0.5 and lower > 0.5,
        f"{small:.0%} below a twentieth of the largest; the lower half has {lower:.0%} of ln |H|",
    )


def locally_quadratic() -> Outcome:
    """Error of the quadratic model over the quadratic term, at radii 0.1, 0.01, 0.001, of a network of tanh."""
    w = _trained()

    def loss(at: Tensor) -> Tensor:
        return _loss(at, smooth=True)

    gradient, hessian = torch.autograd.functional.jacobian(loss, w), torch.autograd.functional.hessian(loss, w)
    direction = torch.randn(len(w), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    direction /= direction.norm()
    errors = []
    for radius in (0.1, 0.01, 0.001):
        u = radius * direction
        second = float(u @ hessian @ u / 2)
        errors.append(abs(float(loss(w + u) - loss(w) - gradient @ u) / second - 1))
    said = ", ".join(f"{e:.1e}" for e in errors) + "; with ReLU the loss has kinks and is not analytic"
    return Outcome(errors[0] > errors[1] > errors[2] and errors[2] < 0.01, said)


def first_order_step() -> Outcome:
    """(L(w) - L(w - alpha g)) / (alpha ||g||^2) at alpha 1e-4, away from the minimum."""
    w = _trained() + 0.3
    g = torch.autograd.functional.jacobian(_loss, w)
    ratio = float((_loss(w) - _loss(w - 1e-4 * g)) / (1e-4 * g.square().sum()))
    return Outcome(abs(ratio - 1) < 0.01, f"{ratio:.5f}")


def norm_grows() -> Outcome:
    """Gradient descent on two separable classes: ||w|| when the loss falls below 0.1, 0.01, 0.001, at two rates."""
    x, y = np.array([[1.0, 0.2], [0.8, -0.3], [-1.0, 0.1], [-0.7, 0.4]]), np.array([1.0, 1.0, -1.0, -1.0])
    found = []
    for rate in (0.5, 5.0):
        w, norms, stops = np.zeros(2), [], [0.1, 0.01, 0.001]
        for _ in range(200_000):
            margins = y * (x @ w)
            loss = float(np.log1p(np.exp(-margins)).mean())
            if stops and loss < stops[0]:
                norms.append(float(np.linalg.norm(w)))
                stops.pop(0)
            if not stops:
                break
            w += rate * ((y / (1 + np.exp(margins)))[:, None] * x).mean(0)
        found.append(norms)
    holds = all(len(n) == 3 and n[0] < n[1] < n[2] for n in found)
    return Outcome(holds, "; ".join(", ".join(f"{v:.1f}" for v in norms) for norms in found))


def no_minimum() -> Outcome:
    """Cross-entropy along a direction that separates: positive, falling, its gradient never zero."""
    losses = [math.log1p(math.exp(-s)) for s in (1.0, 10.0, 30.0)]
    slopes = [1 / (1 + math.exp(s)) for s in (1.0, 10.0, 30.0)]
    holds = losses[0] > losses[1] > losses[2] > 0 and min(slopes) > 0
    return Outcome(holds, f"loss {losses[0]:.2f} to {losses[2]:.0e}, slope {slopes[0]:.2f} to {slopes[2]:.0e}")
