"""Calculations on small networks in float64, whose Hessians are exact."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima import bounds, measures
from flatminima.core.minimum import Minimum
from flatminima.models import build
from flatminima.ranking import kendall
from flatminima.studies.claims.checks.outcome import Array, Outcome, tiny

_HIDDEN, _CLASSES, _SAMPLES = 8, 3, 90
_ETA, _DELTA = 39.0, 0.05
_FACTORS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)


def _data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(_SAMPLES) % _CLASSES
    centres = torch.tensor([[0.0, 1.5], [1.5, -1.0], [-1.5, -1.0]], dtype=torch.float64)
    return centres[y] + 0.6 * torch.randn(_SAMPLES, 2, generator=draw, dtype=torch.float64), y


def _outputs(w: Tensor, x: Tensor, smooth: bool = False) -> Tensor:
    first, second = w[: 3 * _HIDDEN].view(_HIDDEN, 3), w[3 * _HIDDEN :].view(_CLASSES, _HIDDEN)
    hidden = x @ first[:, :2].T + first[:, 2]
    return (torch.tanh(hidden) if smooth else torch.relu(hidden)) @ second.T


def _loss(w: Tensor, smooth: bool = False) -> Tensor:
    x, y = _data()
    return cross_entropy(_outputs(w, x, smooth), y)


def _objective(w: Tensor, smooth: bool = False) -> Tensor:
    return _loss(w, smooth) + 1e-3 * w.square().sum()  # keeps the minimum at a finite place


@cache
def _trained(smooth: bool = False) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    w = torch.randn(_HIDDEN * (3 + _CLASSES), generator=draw, dtype=torch.float64).mul_(0.5).requires_grad_()
    optimizer = torch.optim.LBFGS([w], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _objective(w, smooth)
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
        at = (float(_loss(w)), diagonal, 0.0, kappa, size + kappa, 10_000, _DELTA, _ETA)
        bound = bounds.uniform_perturbation_simplified(*at)
        found.append((float(_loss(w) - _loss(_trained())), float(diagonal.sum()), float(bound)))
    return found


def bound_not_invariant() -> Outcome:
    """Lemma 3's bound of a ReLU network before and after a factor of 10."""
    (_, _, before), (change, _, after), *_ = _rescaled()
    return Outcome(
        abs(after - before) > 1e-3, f"{before:.3f} and {after:.3f} nats; the loss moves by {tiny(abs(change))}"
    )


def bound_log_speed() -> Outcome:
    """Its change from one factor of ten to the next: a logarithm ends by adding the same, a power tenfold.

    Of m weights' ln(tau / sigma*) none changes by more than 2 ln 10 a step, tau and sigma* by a factor of 10 each.
    """
    steps = np.diff([bound for _, _, bound in _rescaled()])
    ratio, most = float(steps[-1] / steps[-2]), len(_trained()) * 2 * math.log(10) / _ETA
    said = ", ".join(f"{step:+.3f}" for step in steps)
    holds = bool(0.5 < ratio < 1.5 and (np.abs(steps) <= most).all())
    return Outcome(holds, f"each factor of ten, of four, adds {said} nats, at most {most:.2f}")


def _noisy() -> list[tuple[float, float, float, float]]:
    """By sigma of 0.01 to 10: expected sharpness in nats, share of errors, KL, and N17's (8) of the errors."""
    w, (x, y) = _trained(), _data()
    draw = torch.Generator().manual_seed(5)
    z = torch.randn(100, len(w), generator=draw, dtype=torch.float64)
    square, found = float(w.square().sum()), []
    for sigma in (0.01, 0.1, 1.0, 10.0):
        moved = [w + sigma * row for row in z]
        sharpness = sum(float(_loss(at)) for at in moved) / len(moved) - float(_loss(w))
        errors = [float((_outputs(at, x).argmax(1) != y).double().mean()) for at in (w, *moved)]
        mean = sum(errors[1:]) / len(moved)
        bound = float(bounds.neyshabur_8(errors[0], mean - errors[0], square, sigma, _SAMPLES, _DELTA))
        found.append((sharpness, mean, square / (2 * sigma**2), bound))
    return found


def norm_against_sharpness() -> Outcome:
    """Both terms of N17's (8) of a trained network by sigma, and (8) where the sharpness is least."""
    values = _noisy()
    few, many = values[0], values[-1]
    holds = all(a[0] < b[0] and a[2] > b[2] for a, b in pairwise(values)) and few[3] == max(v[3] for v in values)
    said = f"sharpness {few[0]:.0e} to {many[0]:.0f} nats, KL {few[2]:.0e} to {many[2]:.1f}"
    return Outcome(holds, f"sigma 0.01 to 10: {said}; (8) of the errors {few[3]:.0f} to {many[3]:.1f}")


def last_term() -> Outcome:
    """sqrt(L K) and K of N17's (5) for a trained network by sigma, L its share of errors under the noise."""
    terms = [(mean, 2 * (kl + math.log(2 * _SAMPLES / _DELTA)) / (_SAMPLES - 1)) for _, mean, kl, _ in _noisy()]
    holds = all((math.sqrt(loss * k) < k) is (loss < k) for loss, k in terms) and terms[0][0] < terms[0][1]
    return Outcome(holds, "L and K by sigma: " + "; ".join(f"{loss:.2f}, {k:.2g}" for loss, k in terms))


def lipschitz_monotone() -> Outcome:
    """Lipschitz bound and spectral norm of figure 4 over trained networks of 4 to 64 units: in one order?"""
    (x, y), found = _data(), []
    for width in (4, 8, 16, 32, 64):
        net = build("mlp", seed=width, widths=(2, width, _CLASSES)).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        minimum = Minimum(net.eval(), (x, y))
        bound = measures.lipschitz(minimum, normalise="capacity").value
        found.append((bound, measures.spectral_norm(minimum, normalise="figure").value))
    tau = kendall(*zip(*found, strict=True)).tau
    return Outcome(tau == 1.0, f"Kendall's tau {tau:.2f}; ln bound {min(found)[0]:.1f} to {max(found)[0]:.1f}")


def dropout_multiplies() -> Outcome:
    """Dropout of random inputs over the inputs, and the share of zeros of 10,000 at a rate of 0.3."""
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        factors = torch.nn.functional.dropout(x, 0.3) / x
    zeros = float((factors == 0).double().mean())
    holds = abs(zeros - 0.3) < 0.02 and float((factors[factors > 0] - 1 / 0.7).abs().max()) < 1e-12
    return Outcome(holds, f"{zeros:.2f} of the factors are 0, the others {float(factors.max()):.3f}")


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
    return Outcome(change < 1e-12, f"outputs differ by {tiny(change)}")


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


def batch_norm_isolated() -> Outcome:
    """Eigenvalues of the Hessian at a minimum with BatchNorm in training mode, where labels are the network's own.

    There the Hessian is the Fisher matrix. Weights before BatchNorm may have any length.
    """
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(64, 4, generator=draw, dtype=torch.float64)
    weights = torch.randn(6 * 4 + 2 * 6 + 3 * 6, generator=draw, dtype=torch.float64)

    def outputs(w: Tensor) -> Tensor:
        first, gain, shift, second = w.split((24, 6, 6, 18))
        hidden = torch.nn.functional.batch_norm(x @ first.view(6, 4).T, None, None, gain, shift, True, 0.0, 1e-12)
        z: Tensor = torch.relu(hidden) @ second.view(3, 6).T
        return z

    jacobian = torch.autograd.functional.jacobian(outputs, weights)
    p = outputs(weights).softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("nki,nkl,nlj->ij", jacobian, curvature, jacobian) / len(x)
    values = torch.linalg.eigvalsh(hessian)
    top = float(values[-1])
    filters = torch.block_diag(*weights[:24].view(6, 4)).flatten(1)
    along = torch.zeros(6, len(weights), dtype=torch.float64)
    along[:, :24] = filters / filters.norm(dim=1, keepdim=True)
    of_filters = float((along @ hessian @ along.T).diagonal().max()) / top
    null = int((values < 1e-9 * top).sum())
    said = f"curvature along the lengths of the six filters {tiny(of_filters)} of the largest"
    return Outcome(of_filters > 1e-9, f"{said}; {null} of {len(weights)} eigenvalues are zero")


def hessian_spectrum() -> Outcome:
    """Share of a trained network's Hessian's eigenvalues that are small beside the largest."""
    values = np.linalg.eigvalsh(_hessian(_trained()))
    small = float((np.abs(values) < 0.05 * values[-1]).mean())
    return Outcome(small > 0.5, f"{small:.0%} below a twentieth of the largest")


def smallest_dominate() -> Outcome:
    """Share of sum |ln lambda| that the smallest eigenvalue of a trained network has, of the positive ones.

    One of them is a hundred times the paper's N' of W: 100 eigenvalues of a ResNet-20's 270,000.
    """
    values = np.linalg.eigvalsh(_hessian(_trained()))
    logs = np.log(values[values > 1e-12])
    share = float(abs(logs[0]) / np.abs(logs).sum())
    papers = 100 / 270_000
    said = f"the smallest of {len(logs)} that are positive, of {len(values)}, has {share:.0%}; N' of W is {papers:.2%}"
    return Outcome(share > 0.5, said)


def weights_small() -> Outcome:
    """Squared norm of a network trained with l2 over the least among its rescaled versions, unit by unit."""
    w = _trained()
    into, out = w[: 3 * _HIDDEN].view(_HIDDEN, 3).norm(dim=1), w[3 * _HIDDEN :].view(_CLASSES, _HIDDEN).norm(dim=0)
    ratio = float((into.square() + out.square()).sum() / (2 * into * out).sum())
    return Outcome(ratio < 1.01, f"above the least by {100 * (ratio - 1):.2g} %")


def locally_quadratic() -> Outcome:
    """Largest error of the quadratic model over the quadratic term, in 20 directions, at radii 0.1, 0.01, 0.001.

    At the minima of two networks trained with l2, one of ReLU, as the paper's are, and one of tanh.
    """
    found = {name: _quadratic_errors(smooth) for name, smooth in (("ReLU", False), ("tanh", True))}
    said = "; ".join(f"{name} " + ", ".join(f"{e:.1e}" for e in errors) for name, errors in found.items())
    return Outcome(found["ReLU"][-1] < 0.01, f"{said}; the minimum of the ReLU network has a kink in it")


def _quadratic_errors(smooth: bool) -> list[float]:
    w, draw = _trained(smooth), torch.Generator().manual_seed(4)

    def loss(at: Tensor) -> Tensor:
        return _objective(at, smooth)

    gradient, hessian = torch.autograd.functional.jacobian(loss, w), torch.autograd.functional.hessian(loss, w)
    directions = torch.randn(20, len(w), generator=draw, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    errors = []
    for radius in (0.1, 0.01, 0.001):
        terms = [(float(u @ hessian @ u / 2), float(loss(w + u) - loss(w) - gradient @ u)) for u in radius * directions]
        errors.append(max(abs(change / second - 1) for second, change in terms))
    return errors


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
    slow, fast = found
    holds = all(len(n) == 3 and n[0] < n[1] < n[2] for n in found) and abs(slow[-1] / fast[-1] - 1) < 0.05
    said = "; ".join(", ".join(f"{v:.1f}" for v in norms) for norms in found)
    return Outcome(holds, f"||w|| where the loss falls below 0.1, 0.01, 0.001: {said} at ten times the rate")


def no_minimum() -> Outcome:
    """Loss of a network that fits, its last layer times 1, 2 and 10: one-hot labels, and labels smoothed by 0.1."""
    w, (x, y) = _trained(), _data()
    fitted = _outputs(w, x).argmax(1) == y
    x, y = x[fitted], y[fitted]
    smooth = 0.9 * torch.nn.functional.one_hot(y, _CLASSES) + 0.1 / _CLASSES
    scaled = [torch.cat((w[: 3 * _HIDDEN], factor * w[3 * _HIDDEN :])) for factor in (1.0, 2.0, 10.0)]
    hard, soft = ([float(cross_entropy(_outputs(at, x), labels)) for at in scaled] for labels in (y, smooth))
    said = [", ".join(f"{loss:.2g}" for loss in losses) for losses in (hard, soft)]
    return Outcome(hard[0] > hard[1] > hard[2] > 0, f"one-hot {said[0]}; smoothed {said[1]}")


def fisher_is_hessian() -> Outcome:
    """Hessian of the loss over 48 weights where labels are a network's own outputs, and the mean of g g' over them.

    There the mean gradient of each sample is zero, and the second derivatives of the outputs drop out.
    """
    w, (x, _) = _trained(smooth=True), _data()
    y = _outputs(w, x, smooth=True).softmax(1)

    def loss(at: Tensor) -> Tensor:
        return cross_entropy(_outputs(at, x, smooth=True), y)

    def each(at: Tensor) -> Tensor:
        return -_outputs(at, x, smooth=True).log_softmax(1)

    gradients = torch.autograd.functional.jacobian(each, w)
    fisher = torch.einsum("nk,nki,nkj->ij", y, gradients, gradients) / len(x)
    hessian = torch.autograd.functional.hessian(loss, w)
    apart = float((fisher - hessian).abs().max() / hessian.abs().max())
    mean = float(torch.einsum("nk,nki->ni", y, gradients).abs().max())
    said = f"apart by {tiny(apart)} of the largest entry; a sample's mean gradient is {tiny(mean)}"
    return Outcome(apart < 1e-12 and mean < 1e-12 and float(fisher.trace()) > 0.01, said)
