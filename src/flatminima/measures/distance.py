"""Distance that training moved the weights (Neyshabur et al. 2017, sec. 3; Nagarajan & Kolter 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._initial import flat_initial
from flatminima.measures._measure import catalogued_measure
from flatminima.statistics import FlatWeights, Weights


@catalogued_measure
def distance_from_init(
    minimum: Statistics,
    *,
    initial: nn.Module | Mapping[str, Tensor] | Tensor | None = None,
    norm: Literal["frobenius", "spectral"] = "frobenius",
) -> Estimate:
    """``||w - w0||_2``, the distance of the trained weights from those they started at.

    Args:
        minimum: a Minimum.
        initial: w0 as the untrained model, its state dict, or a flat vector (W,) of the trainable weights.
        norm: "frobenius" counts every weight; "spectral" is ``sqrt(sum_i ||W_i - W_i^0||_2^2)`` over the weights of two
            or more dimensions, a kernel as the matrix (out, rest).

    Returns:
        Estimate, exact; details: layers (the distance of each parameter), relative (over ||w0||; None where that is
        0). Undefined: no initial weights given.

    Raises:
        UsageError: initial weights that do not fit, or are not finite.

    Source:
        Nagarajan & Kolter, arXiv 1901.01672.

    Examples:
        >>> import copy
        >>> from flatminima import Minimum
        >>> before = nn.Linear(2, 2, bias=False)
        >>> net = copy.deepcopy(before)
        >>> net.weight.data += 0.5
        >>> m = Minimum(net, (torch.eye(2), torch.tensor([0, 1])))
        >>> round(float(distance_from_init(m, initial=before)), 6)
        1.0
    """
    weights = minimum[Weights()]
    if initial is None:
        raise Undefined(
            "the initial weights are not known: give initial=, the untrained model or its state dict (--initial)"
        )
    start = flat_initial(initial, weights)
    if not bool(torch.isfinite(start).all()):
        raise UsageError("got initial weights with NaN or Inf; they must be finite")
    if norm not in ("frobenius", "spectral"):
        raise UsageError(f"got norm={norm!r}; expected 'frobenius' or 'spectral'")
    if norm == "spectral":
        return _spectral(weights, start)
    moved = (weights.values - start).square_()
    layers = {name: math.sqrt(total) for name, total in weights.by_parameter(moved).items()}
    total, length = float(moved.sum().sqrt()), float(start.norm())
    return Estimate(total, details={"layers": layers, "relative": total / length if length else None})


def _spectral(weights: FlatWeights, start: Tensor) -> Estimate:
    """The root of the sum of squared spectral norms, over that of the initial weights in the details."""
    sizes, layers, squares = list(weights.sizes), {}, 0.0
    parts = zip(weights.names, weights.shapes, weights.values.split(sizes), start.split(sizes), strict=True)
    for name, shape, now, before in parts:
        if len(shape) >= 2:
            layers[name] = float(torch.linalg.matrix_norm((now - before).view(shape[0], -1), 2))
            squares += float(torch.linalg.matrix_norm(before.view(shape[0], -1), 2)) ** 2
    if not layers:
        raise Undefined("no weight has two dimensions: there are no matrices")
    total = math.sqrt(sum(value**2 for value in layers.values()))
    return Estimate(total, details={"layers": layers, "relative": total / math.sqrt(squares) if squares else None})


@catalogued_measure
def parameter_norm(minimum: Statistics) -> Estimate:
    """``||w||_2`` of the trainable weights: their distance from the origin.

    Args:
        minimum: a Minimum.

    Returns:
        Estimate, exact; details: layers (the norm of each parameter).

    Source:
        Jiang et al. 2020, arXiv 1912.02178, appendix C, eq. 42 (its square).
    """
    weights = minimum[Weights()]
    parts = zip(weights.names, weights.values.split(list(weights.sizes)), strict=True)
    layers = {name: float(torch.linalg.vector_norm(part)) for name, part in parts}
    return Estimate(math.hypot(*layers.values()), details={"layers": layers})
