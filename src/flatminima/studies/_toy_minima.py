"""The toy network of two free weights: its loss on a grid, its minima, and what is exact at each point.

Five layers share one 2 x 2 matrix: four with sigmoids, the last gives the logits; no biases. Two entries are fixed, two
free. The grid only says where to look: each minimum is followed down to where the gradient vanishes, as curvature half
a step beside it can be another by a factor of ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima.bounds import uniform_perturbation, uniform_sigma

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

SAMPLES, LAYERS = 100, 5
ETAS = (39.0, 1000.0, 0.1, 0.01, 1e-5)  # Fig. 1, then Fig. 2
FIXED = [(b, c) for b in (-4.0, -2.0, 2.0, 4.0) for c in (-4.0, -2.0, 2.0, 4.0)]
GAMMA, EPSILON, DELTA = 0.1, 0.1, 0.05
_RANGE = 12.0  # of the free weights, both ways
_FITTED = 0.95 * math.log(2)  # a network that ignores its input has ln 2
_STATIONARY = 1e-6  # length of the gradient at a minimum
_APART = 1e-2  # distance of two minima


@dataclass(frozen=True)
class Measured:
    """Values at k points of the free weights, float64 (k,): loss, trace of the Hessian, pacGen, the bound for each eta.

    `sigmas` (k, 2) are the half-widths of the noise that the bound for each eta is of.
    """

    loss: Array
    trace: Array
    pacgen: Array
    bounds: dict[float, Array]
    sigmas: dict[float, Array]


@dataclass(frozen=True)
class Surface(Measured):
    """The same on a grid: each (side, side), the points of a side in `axis`."""

    axis: Array


def logits(free: Tensor, fixed: tuple[float, float], x: Tensor) -> Tensor:
    """The network: free weights (2,), samples (n, 2), to logits (n, 2)."""
    other = free.new_tensor(fixed)
    matrix = torch.stack([free[0], other[0], other[1], free[1]]).view(2, 2)
    for _ in range(LAYERS - 1):
        x = torch.sigmoid(x @ matrix.T)
    return x @ matrix.T


def lows(x: Tensor, y: Tensor, fixed: tuple[float, float], side: int) -> list[tuple[float, float]]:
    """Weights inside a grid of side x side points whose loss is below their eight neighbours': where to look."""
    axis = _axis(side)
    losses = torch.vmap(objective(x, y, fixed))(torch.cartesian_prod(axis, axis)).view(side, side).numpy()
    return [(float(axis[i + 1]), float(axis[j + 1])) for i, j in np.argwhere(_low(losses))]


def lows_under_noise(x: Tensor, y: Tensor, fixed: tuple[float, float], side: int, width: float) -> int:
    """Number of a grid's lows that are left when each point has the mean loss over +-`width` in both weights."""
    far = 2 * side - 1  # points a side of a grid twice as wide, of the same step
    axis = 2 * _axis(far)
    losses = torch.vmap(objective(x, y, fixed))(torch.cartesian_prod(axis, axis)).view(far, far).numpy()
    window, edge = 2 * round(width * (side - 1) / (2 * _RANGE)) + 1, (side - 1) // 2
    means = uniform_filter(losses, window, mode="nearest")[edge : edge + side, edge : edge + side]
    return int(_low(means).sum())


def _low(losses: Array) -> NDArray[np.bool_]:
    """Whether each inner point of a grid (n, n) lies below its eight neighbours: (n - 2, n - 2)."""
    inner, n = losses[1:-1, 1:-1], len(losses)
    around = [losses[1 + i : n - 1 + i, 1 + j : n - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    low: NDArray[np.bool_] = np.all([inner < other for other in around], axis=0)
    return low


def surface(x: Tensor, y: Tensor, fixed: tuple[float, float], side: int) -> Surface:
    """`measured` on a grid of side x side points."""
    axis = _axis(side)
    at = measured(torch.cartesian_prod(axis, axis), x, y, fixed)
    shape = (side, side)
    bounds = {eta: bound.reshape(shape) for eta, bound in at.bounds.items()}
    loss, trace, psi = (values.reshape(shape) for values in (at.loss, at.trace, at.pacgen))
    return Surface(loss, trace, psi, bounds, at.sigmas, axis.numpy())


def measured(points: Tensor, x: Tensor, y: Tensor, fixed: tuple[float, float]) -> Measured:
    """Loss, exact Hessian diagonal, pacGen and bounds at points (k, 2); rho from the corners of each neighbourhood."""
    loss = objective(x, y, fixed)
    curved: Callable[[Tensor], Tensor] = torch.vmap(torch.func.jacrev(torch.func.jacrev(loss)))
    losses, diagonal = torch.vmap(loss)(points), curved(points).diagonal(dim1=1, dim2=2)  # (k,), (k, 2)
    kappa = GAMMA * points.abs() + EPSILON
    rho = torch.zeros(len(points), dtype=torch.float64)
    for signs in ((1.0, 1.0), (1.0, -1.0)):
        step = kappa * torch.tensor(signs, dtype=torch.float64)
        moved = curved(points + step).diagonal(dim1=1, dim2=2)
        rho = torch.maximum(rho, (moved - diagonal).abs().amax(1) / step.norm(dim=1))
    inside = (diagonal + rho[:, None] * 2**0.5 * kappa).clamp_min(0).sqrt()
    psi = ((points.abs() + kappa) * torch.maximum(inside, 1 / kappa)).log().sum(1)
    tau = (points.abs() + kappa).numpy()
    bounds, sigmas = {}, {}
    for eta in ETAS:
        sigmas[eta] = np.asarray(uniform_sigma(diagonal.numpy(), rho.numpy(), kappa.numpy(), eta))
        rise = uniform_perturbation(
            0.0, diagonal.numpy(), rho.numpy(), kappa.numpy(), tau, SAMPLES, DELTA, eta, distance=points.numpy()
        )
        bounds[eta] = losses.numpy() + np.asarray(rise)
    return Measured(losses.numpy(), diagonal.sum(1).numpy(), psi.numpy(), bounds, sigmas)


def minima(x: Tensor, y: Tensor, fixed: tuple[float, float], side: int) -> Tensor:
    """Local minima within the grid's range, (k, 2): its `lows` followed down to where the gradient vanishes.

    Kept are those with a positive definite Hessian that fit better than a network that ignores its input.
    """
    look = cache(lambda one, two: jet((one, two), fixed, x.numpy(), y.numpy()))

    def value(free: Array) -> tuple[float, Array]:
        height, slope, _ = look(*free.tolist())
        return height, slope

    def hessian(free: Array) -> Array:
        return look(*free.tolist())[2]

    found: list[Tensor] = []
    for low in lows(x, y, fixed, side):
        end = minimize(
            value,
            low,
            jac=True,
            hess=hessian,
            method="trust-exact",
            options={"gtol": _STATIONARY, "initial_trust_radius": 0.1, "max_trust_radius": 0.5},
        )
        place = torch.from_numpy(end.x)
        proper = float(np.linalg.norm(end.jac)) < _STATIONARY and float(np.linalg.eigvalsh(hessian(end.x))[0]) > 0
        inside = float(place.abs().max()) <= _RANGE and end.fun < _FITTED
        if proper and inside and all(float((place - other).norm()) > _APART for other in found):
            found.append(place)
    return torch.stack(found) if found else torch.empty(0, 2, dtype=torch.float64)


def extremes(x: Tensor, y: Tensor, fixed: tuple[float, float], side: int) -> tuple[Tensor, Measured] | None:
    """The sharpest and the flattest minimum, (2, 2), with what is measured there; None of fewer than two minima."""
    return apart(minima(x, y, fixed, side), x, y, fixed)


def apart(found: Tensor, x: Tensor, y: Tensor, fixed: tuple[float, float]) -> tuple[Tensor, Measured] | None:
    """`extremes` of minima (k, 2) that were found before."""
    if len(found) < 2:
        return None
    trace = measured(found, x, y, fixed).trace
    pair = found[[int(trace.argmax()), int(trace.argmin())]]
    return pair, measured(pair, x, y, fixed)


def objective(x: Tensor, y: Tensor, fixed: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the free weights (2,)."""
    return lambda free: cross_entropy(logits(free, fixed, x), y)


def jet(free: tuple[float, float], fixed: tuple[float, float], x: Array, y: Labels) -> tuple[float, Array, Array]:
    """The loss at one point with its gradient (2,) and Hessian (2, 2), carried forward layer by layer.

    Of so small a network automatic differentiation is ten times as slow; it is the same to rounding.

    Args:
        free, fixed: entries of the matrix, on its diagonal and beside it. x: samples (n, 2). y: labels (n,), 0 or 1.
    """
    matrix = np.array([[free[0], fixed[0]], [fixed[1], free[1]]])
    h, first, second = x, np.zeros((2, *x.shape)), np.zeros((2, 2, *x.shape))
    for layer in range(LAYERS):
        z, dz, ddz = h @ matrix.T, first @ matrix.T, second @ matrix.T
        for i in range(2):  # the entry i of the diagonal multiplies the input i, and is part of the output i
            dz[i, :, i] += h[:, i]
            ddz[i, :, :, i] += first[:, :, i]
            ddz[:, i, :, i] += first[:, :, i]
        h, first, second = z, dz, ddz
        if layer < LAYERS - 1:
            h = expit(z)
            slope = h * (1 - h)
            first = slope * dz
            second = slope * ddz + slope * (1 - 2 * h) * dz[:, None] * dz[None]
    sign = np.where(y == 1, 1.0, -1.0)
    apart, da, dda = (sign * (part[..., 0] - part[..., 1]) for part in (h, first, second))  # wrong minus right logit
    wrong = expit(apart)
    hessian = (wrong * dda + wrong * (1 - wrong) * da[:, None] * da[None]).mean(-1)
    return float(np.logaddexp(0.0, apart).mean()), (wrong * da).mean(-1), hessian


def _axis(side: int) -> Tensor:
    return torch.linspace(-_RANGE, _RANGE, side, dtype=torch.float64)


def search(
    x: Tensor,
    y: Tensor,
    choices: Sequence[tuple[float, float]],
    side: int,
    seen: Callable[[Tensor], None] = lambda places: None,
) -> tuple[float, float] | None:
    """Search the fixed entries whose two minima differ most in the Hessian's trace; None where none has two.

    Args:
        choices: of the fixed entries. side: points a side of the grid. seen: told the minima (k, 2) of each choice.
    """
    best, found = 1.0, None
    for fixed in choices:
        places = minima(x, y, fixed, side)
        seen(places)
        pair = apart(places, x, y, fixed)
        if pair is not None and pair[1].trace[0] > best * pair[1].trace[1]:
            best, found = float(pair[1].trace[0] / pair[1].trace[1]), fixed
    return found
