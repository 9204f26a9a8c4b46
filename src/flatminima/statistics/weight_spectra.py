"""Spectra of the weight matrices: the eigenvalues of W^T W of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.statistic import Statistic
from flatminima.statistics.matrices import matrices_of

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class WeightSpectra(Statistic["dict[str, Tensor]"]):
    """Positive eigenvalues of W^T W by parameter name, ascending, float64.

    Every weight in effect of two or more dimensions, each tied one once, frozen ones too: of a parametrization
    (weight_norm, spectral_norm, pruning) or a low-rank adapter the weight that it makes. A convolution's kernel
    (out, in, *size) gives one matrix (out, in) a position, and their eigenvalues together are its spectrum.
    """

    def compute(self, minimum: Minimum) -> dict[str, Tensor]:
        with minimum.open(), torch.no_grad():
            return {name: spectrum(weight) for name, weight in matrices_of(minimum.model)}


def spectrum(weight: Tensor) -> Tensor:
    """Positive squared singular values of the matrices (out, in) in `weight` (out, in, *size), ascending.

    Examples:
        >>> spectrum(torch.tensor([[3.0, 0.0], [0.0, 0.0]])).tolist()
        [9.0]
    """
    matrices = weight.detach().cpu().double()
    if matrices.dim() > 2:
        matrices = matrices.flatten(2).movedim(2, 0)
    values: Tensor = torch.linalg.svdvals(matrices)
    # what rounding leaves of a zero, matrix by matrix
    floor = values.amax(-1, keepdim=True) * max(matrices.shape[-2:]) * torch.finfo(torch.float64).eps
    squares: Tensor = values[values > floor].square()
    return squares.sort().values
