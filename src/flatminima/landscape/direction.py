"""Directions through a minimum: random ones with the length of each filter, or along the steepest curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.catalog.choices import DIRECTIONS
from flatminima.core.ambient import in_neutral
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import Parameters
from flatminima.core.perturbation import generator
from flatminima.errors import Undefined, UsageError
from flatminima.statistics import Products, extreme_eigenvalues


@dataclass(frozen=True, eq=False)
class Direction:
    """A step of length 1 along an axis of the picture.

    Attributes:
        vector: (W,) in the weights' dtype.
        label: of the axis, with its unit.
        curvature: eigenvalue for a unit vector, where the axis is an eigenvector; else None.
    """

    vector: Tensor
    label: str
    curvature: float | None = None


@in_neutral
def directions(
    minimum: Minimum, kind: str, count: int, *, samples: int | None = 1000, seed: int = 0
) -> tuple[Direction, ...]:
    """`count` directions of a kind, ready for `surface`.

    Args:
        kind: "filter" (Li et al. 2018) or "eigenvectors" of the Hessian of the mean loss.
        count: 1 or 2.
        samples: of the Hessian; None for all.
        seed: of the random directions, the samples and the starting vectors.

    Raises:
        UsageError: another kind or count.
        Undefined: the loss has no second derivative.
    """
    if kind not in DIRECTIONS or count not in (1, 2):
        raise UsageError(f"got {count} directions of kind {kind!r}; expected 1 or 2 of {' or '.join(DIRECTIONS)}")
    if kind == "filter":
        return tuple(
            Direction(filter_normalised(minimum.parameters, seed, k), f"random direction {k + 1}, filter norms")
            for k in range(count)
        )
    return eigenvectors(minimum, count, samples, seed)


def filter_normalised(parameters: Parameters, seed: int, index: int) -> Tensor:
    """A Gaussian direction d with d_j <- d_j ||w_j|| / ||d_j|| for each filter j; 0 for biases and norm layers.

    A filter is what one output unit or channel has: a row of the weight's first axis. With it, a plot does not
    depend on the scale that ReLU or BatchNorm let a filter have.

    Args:
        parameters: of the network, with its weights.
        seed, index: of the draw.

    Returns:
        (W,) in the weights' dtype and on their device.

    Source: Li et al. (2018), sec. 4, whose code sets vectors (biases, BatchNorm) to 0 too.

    Examples:
        >>> p = Parameters.of(torch.nn.Linear(3, 2))
        >>> d = p.split(filter_normalised(p, 0, 0))
        >>> torch.allclose(d[0].norm(dim=1), p.tensors[0].norm(dim=1)), float(d[1].abs().max())
        (True, 0.0)
    """
    weights = parameters.flat()
    noise = torch.randn(weights.numel(), generator=generator(seed, index)).to(weights)
    parts = []
    for w, d in zip(parameters.split(weights), parameters.split(noise), strict=True):
        if w.dim() < 2:
            parts.append(torch.zeros_like(w).reshape(-1))
            continue
        rows, steps = w.flatten(1), d.flatten(1)
        parts.append((steps * (rows.norm(dim=1) / steps.norm(dim=1)).unsqueeze(1)).reshape(-1))
    return torch.cat(parts)


def eigenvectors(minimum: Minimum, count: int, samples: int | None, seed: int) -> tuple[Direction, ...]:
    """The steepest eigenvectors v of the Hessian, of length sqrt(2 / |lambda|): there the quadratic model rises by 1.

    Raises:
        Undefined: no second derivative, an eigenvalue of 0, or one that has not converged.
    """
    indices = minimum.samples.order(seed)[:samples]
    with minimum.open():
        products = Products(minimum, indices)
        found = extreme_eigenvalues(
            products, products.size, count, seed=seed, dtype=products.precision, device=minimum.device
        )
    if len(found.values) < count or float(found.values.abs().min()) == 0:
        raise Undefined(
            f"{len(found.values)} of {count} eigenvalues have converged to something other than 0; "
            "the picture needs as many: use random directions"
        )
    out = []
    for k, (value, v) in enumerate(zip(found.values.tolist(), found.vectors, strict=True)):
        unit = v.double() / v.double().norm()
        unit = unit * (1.0 if float(unit[unit.abs().argmax()]) > 0 else -1.0)  # the sign is the solver's whim
        step = (unit * math.sqrt(2 / abs(value))).to(minimum.parameters.tensors[0])
        out.append(Direction(step, f"eigenvector {k + 1} (unit: sqrt(2/|{value:.3g}|))", value))
    return tuple(out)
