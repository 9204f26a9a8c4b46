"""The highest loss around the weights, from all the data or from a part of them without following their noise.

A search for the worst change nu of the weights follows the mean gradient, and that of a few samples is mostly sampling
noise at a minimum: the highest of their own losses was 17 times the training loss's. What is searched here is

    f_A(nu) = L_A(w + nu) - L_A(w) - <g_A - g, nu>,

A the samples looked at, g_A their mean gradient at w and g that of all the data. Its gradient at nu = 0 is g, so that
the samples decide on curvature alone, and at a fixed nu its mean is L(w + nu) - L(w): a control variate.

The samples are halved and each half searches for a point of its own. At the point of its own half f is too high, at
that of the other too low (Mak, Morton & Wood 1999), by the same amount to first order: the mean of all four is the
estimate, and both errors fall faster in the number of samples than its standard error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima import progress
from flatminima.core.chance import refusing_chance
from flatminima.core.minimum import refuse_overflow
from flatminima.core.statistic import Cost
from flatminima.errors import Undefined
from flatminima.statistics.hessian import group_edges
from flatminima.statistics.mean_gradient import MeanGradient
from flatminima.statistics.outputs import Outputs

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_PARTS = 10  # of each half of the samples; their spread is the standard error


@dataclass(frozen=True)
class Worst:
    """Result of a search.

    Attributes:
        loss: mean loss at w, of all the data.  highest: `loss` plus the largest rise, at least `loss`.
        gradients: full gradients ("vertex") or mini-batch gradients ("ascent") spent on the search.
        rises (2, 2, parts) float64: f at the point of each half of the samples, of each half, by parts; None: all the
            data was searched.
        sizes (2, parts): samples of each part.
        population: samples there are.
        resolution: of the mean losses, eps of the coarsest dtype times the larger.
    """

    loss: float
    highest: float
    gradients: int
    rises: Tensor | None = None
    sizes: Tensor | None = None
    population: int = 0
    resolution: float = 0.0


@dataclass(frozen=True)
class NearbyPoint:
    """End of a search: the change of the weights, f there (at least 0), gradients spent."""

    change: Tensor
    rise: float
    gradients: int


Search = Callable[["Around"], NearbyPoint]


class Around:
    """f_A and its gradient.

    Args:
        minimum: open; its weights are moved, and the caller puts them back.
        indices: of the samples A.
        gradient (W,): g; None: A is all the data.
    """

    def __init__(self, minimum: Minimum, indices: Tensor, gradient: Tensor | None) -> None:
        self.minimum, self.indices = minimum, indices
        self.weights = minimum.parameters.flat()
        with refusing_chance(minimum, lambda: indices.split(minimum.batch_size)):
            self.start, own = minimum.mean_gradient(indices)
        self.gradient = own if gradient is None else gradient
        self.tilt = None if gradient is None else gradient - own

    def step(self, change: Tensor) -> tuple[float, Tensor]:
        """f(change) and its gradient, float64."""
        self.minimum.parameters.assign(self.weights + change)
        loss, gradient = self.minimum.mean_gradient(self.indices)
        return self._risen(loss), gradient if self.tilt is None else gradient + self.tilt

    def rise(self, change: Tensor) -> float:
        """f(change)."""
        self.minimum.parameters.assign(self.weights + change)
        return self._risen(_mean_loss(self.minimum, self.indices))

    def of_batch(self, change: Tensor, indices: Tensor) -> Tensor:
        """Gradient of f at `change`, as some of its samples have it."""
        self.minimum.parameters.assign(self.weights + change)
        _, gradient = self.minimum.mean_gradient(indices)
        return gradient if self.tilt is None else gradient + self.tilt

    def _risen(self, loss: float) -> float:
        """f from the loss at the weights as they are now: nu is by how much they have moved, as rounded."""
        if self.tilt is None:
            return loss - self.start
        parameters = self.minimum.parameters
        moved = parameters.flat(torch.float64) - self.weights.double()
        return loss - self.start + float(parameters.total(self.tilt @ moved))


def ascend(around: Around, first: Tensor, following: Callable[[Tensor], Tensor], steps: int, task: str) -> NearbyPoint:
    """Go from point to point as each gradient says: the highest point seen, w itself where none is higher.

    Args:
        first: the point that the gradient at w says.
        following: the point that a gradient says.
        steps: gradients at most, the one at w among them.
        task: for the progress report.
    """
    best, change, spent, at_its_end = NearbyPoint(torch.zeros_like(first), 0.0, 1), first, 1, False
    while not at_its_end:
        progress.report(task, spent, steps)
        if spent == steps:
            rise, point = around.rise(change), change
        else:
            rise, gradient = around.step(change)
            point, spent = following(gradient), spent + 1
        if rise > best.rise:
            best = NearbyPoint(change, rise, spent)
        at_its_end = around.minimum.parameters.agree(torch.equal(point, change))  # the gradient there says it again
        change = point
    return NearbyPoint(best.change, best.rise, spent)


def highest(minimum: Minimum, samples: int | None, seed: int, search: Search) -> Worst:
    """Run `search` on all the data, or an estimate of it from `samples` of them drawn by `seed`."""
    weights, n = minimum.parameters.flat(), len(minimum.samples)
    everything = minimum.samples.order(seed)
    with minimum.open():
        try:
            if samples is None or samples >= n or n == 1:
                around = Around(minimum, everything, None)
                point = search(around)
                loss = around.start
                total = loss + point.rise
                return Worst(loss, total, point.gradients, None, None, n, resolution_of(minimum, loss, total))
            return _of_halves(minimum, everything, max(samples, 2), search)
        finally:
            minimum.parameters.assign(weights)


def _of_halves(minimum: Minimum, everything: Tensor, samples: int, search: Search) -> Worst:
    loss, gradient = at_the_weights(minimum, everything)
    middle, weights = samples // 2, minimum.parameters.flat()
    halves = everything[:middle], everything[middle:samples]
    points = []
    for half in halves:
        minimum.parameters.assign(weights)
        points.append(search(Around(minimum, half, gradient)))
    rises, sizes = [], []
    for half in halves:
        for start, stop in itertools.pairwise(group_edges(len(half), min(_PARTS, middle))):
            minimum.parameters.assign(weights)
            part = Around(minimum, half[start:stop], gradient)
            rises.append([part.rise(point.change) for point in points])
            sizes.append(stop - start)
    found = torch.tensor(rises, dtype=torch.float64).T.reshape(2, 2, -1)
    shares = torch.tensor(sizes).view(2, -1)
    mean = float((found.mean(0) * shares).sum()) / samples
    spent = sum(point.gradients for point in points)
    total = loss + max(mean, 0.0)
    return Worst(loss, total, spent, found, shares, len(everything), resolution_of(minimum, loss, total))


def at_the_weights(minimum: Minimum, everything: Tensor) -> tuple[float, Tensor]:
    """Mean loss and gradient of all the data, for nothing where a table has them already."""
    if MeanGradient() in minimum and Outputs() in minimum:
        with suppress(Undefined):  # of shards the first has no value
            gradient, outputs = minimum[MeanGradient(), Outputs()]
            return float(outputs.losses.mean()), gradient.to(minimum.device)
    with refusing_chance(minimum, lambda: everything.split(minimum.batch_size)):
        return minimum.mean_gradient(everything)


def cost_of(share: float, gradients: float, parameters: int) -> Cost:
    """Cost of a search that spends `gradients` passes beside that at w, on this share of the data."""
    if share == 1:
        return Cost(2 + gradients, 1 + gradients, 24 * parameters)
    judged = 2 * share  # forward passes at the two points
    return Cost(1 + 3 * share + gradients + judged, 1 + 2 * share + gradients, 32 * parameters)


def resolution_of(minimum: Minimum, *losses: float) -> float:
    """Rounding error of mean losses: eps times the largest, eps that of the coarsest dtype that is computed in."""
    return minimum.eps * max(abs(loss) for loss in losses)


def _mean_loss(minimum: Minimum, indices: Tensor) -> float:
    """Mean loss over the samples at `indices`.

    Raises:
        Undefined: a loss that is not finite.
    """
    losses = minimum.losses(indices)
    refuse_overflow(losses)
    return float(losses.sum()) / len(indices)
