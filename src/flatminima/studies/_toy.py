"""The toy's samples, and what is read off its minima beside the bound: loss under noise, label boundary, smoothing.

The noise is uniform within a box, so that means are Gauss-Legendre sums: exact where Monte Carlo would add noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_Loss = Callable[[Tensor], Tensor]
COMPONENTS = 3  # of the mixture
_NODES = 16  # a side of a box: the loss is smooth, 24 change nothing in the sixth digit
_CELLS = 200  # a side of the plane of inputs, for the boundary
_STEPS = 41  # of the segment between two minima


def samples(seed: int, count: int, threshold: float | None = None) -> tuple[Tensor, Tensor]:
    """A mixture of three Gaussians in the plane, labelled by whether x1 + x2 is above a threshold.

    Args:
        seed: of the mixture; samples are drawn by it and by `count`. count: how many.
        threshold: of the labels; None: the sample's own median. Test samples take that of the training samples, as
            another median would be another labelling.

    Returns:
        x (count, 2) float64, y (count,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(COMPONENTS, 2, generator=generator, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed * 7919 + count)
    which = torch.randint(COMPONENTS, (count,), generator=draw)
    x = centres[which] + torch.randn(count, 2, generator=draw, dtype=torch.float64)
    along = x.sum(1)
    return x, (along > (along.median() if threshold is None else threshold)).long()


def mean_under_noise(loss: _Loss, places: Tensor, sigma: Tensor) -> Tensor:
    """E loss(w + u), u uniform within +-sigma: places (k, 2) and sigma (2,), float64, to (k,)."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(_NODES))
    offsets = torch.cartesian_prod(nodes, nodes) * sigma  # (nodes^2, 2)
    share = torch.outer(weights, weights).flatten() / 4
    points = (places[:, None] + offsets).flatten(0, 1)
    return torch.vmap(loss)(points).view(len(places), -1) @ share


def smoothed(loss: _Loss, ends: Tensor, sigma: Tensor) -> float:
    """Range of the loss along the segment between two points (2, 2) under noise, divided by that without noise."""
    plain, noisy = along(loss, ends, sigma)
    return float((noisy.max() - noisy.min()) / (plain.max() - plain.min()))


def along(loss: _Loss, ends: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The loss at points of the segment between two points (2, 2), and its mean under noise there."""
    part = torch.linspace(0, 1, _STEPS, dtype=torch.float64)[:, None]
    places = ends[0] + part * (ends[1] - ends[0])
    return torch.vmap(loss)(places), mean_under_noise(loss, places, sigma)


def boundary(predict: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Length of the line between predicted labels over the samples' rectangle, in sides of it.

    Args:
        predict: inputs (k, 2) to labels (k,). x: samples (n, 2).

    Returns:
        Cells' edges between two labels over cells a side: 1 for a straight line along an axis, 2 along the diagonal.
    """
    low, high = x.min(0).values, x.max(0).values
    axes = [torch.linspace(float(low[i]), float(high[i]), _CELLS, dtype=torch.float64) for i in (0, 1)]
    labels = predict(torch.cartesian_prod(*axes)).view(_CELLS, _CELLS)
    return float((labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum()) / _CELLS
