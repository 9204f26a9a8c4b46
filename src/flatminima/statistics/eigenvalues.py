"""Extreme eigenvalues of the loss's curvature, with the residuals that say whether to believe them.

Thick-restart Lanczos with full reorthogonalisation returns no eigenvalue twice; what has not converged is never a
number (a neighbour's defaults give 0.43 for a true 0.97).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.statistic import Cost, Needs, Statistic
from flatminima.errors import Undefined, UsageError
from flatminima.statistics.curvature import Curvature, check_curvature, products_of
from flatminima.statistics.hessian import GROUPS, group_edges
from flatminima.statistics.lanczos import BASIS, PRODUCTS, ROUNDINGS, Eigenpairs, extreme_eigenvalues

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_TYPICAL = 15  # products until the largest has converged, for the plan


@dataclass(frozen=True)
class Eigenvalues:
    """The largest eigenvalues that have converged.

    Attributes:
        values (c,) float64, descending, c <= k.
        residuals (c,) float64: ||C v - lambda v||_2 for the unit eigenvector v found.
        missing: residuals of those asked for that did not converge.
        forms (groups,) float64: v^T C_g v of the first v, C_g the mean over a part of the samples.
        sizes (groups,): samples of each part.
        population: samples there are.
        products: spent.
    """

    values: Tensor
    residuals: Tensor
    missing: tuple[float, ...]
    forms: Tensor
    sizes: Tensor
    population: int
    products: int


@dataclass(frozen=True)
class TopEigenvalues(Statistic[Eigenvalues]):
    """The k algebraically largest eigenvalues of the curvature of the mean loss over `samples` random samples.

    Args:
        k: how many.
        samples: of the data, drawn by seed; None: all.
        tolerance: residual relative to the largest |eigenvalue| found at which one counts as converged, at least 100
            roundings of the network's precision.
        seed: of the samples and of the starting vectors.
        curvature: ``"hessian"`` or ``"gauss_newton"``.
        products: at most, an eigenvalue asked for.

    Raises:
        UsageError: k below 1, a tolerance outside (0, 1), an unknown curvature.
        Undefined: the largest has not converged within that many products, with the residual reached; it is smaller
            than the rounding of negative ones; fewer than k parameters.
    """

    k: int = 1
    samples: int | None = 1000
    tolerance: float = 1e-3
    seed: int = 0
    curvature: Curvature = "hessian"
    products: int = PRODUCTS

    @property
    def needs(self) -> Needs:
        return Needs.PRODUCTS if self.curvature == "hessian" else Needs.GAUSS_NEWTON

    def __post_init__(self) -> None:
        check_curvature(self.curvature)
        if self.k < 1 or not 0 < self.tolerance < 1:
            raise UsageError(f"got k={self.k}, tolerance={self.tolerance}; k at least 1, tolerance in (0, 1)")

    def compute(self, minimum: Minimum) -> Eigenvalues:
        indices = minimum.samples.order(self.seed)[: self._count(minimum)]
        with minimum.open():
            products = products_of(minimum, indices, self.curvature)
            if self.k > products.size:
                raise Undefined(f"{products.size} parameters have no {self.k} eigenvalues")
            found = extreme_eigenvalues(
                products,
                products.space,
                self.k,
                "largest",
                self.tolerance,
                self.seed,
                products=self.products,
                dtype=products.precision,
                device=minimum.device,
            )
            self._refuse(found, products.precision, minimum.eps)
            if len(indices) < len(minimum.samples):
                forms, sizes = self._forms(minimum, indices, found.vectors[0])
            else:  # the value itself: of all the data there is no error
                forms, sizes = found.values[:1], torch.tensor([len(indices)])
        return Eigenvalues(
            found.values, found.residuals, found.missing, forms, sizes, len(minimum.samples), found.products
        )

    def _refuse(self, found: Eigenpairs, precision: torch.dtype, eps: float) -> None:
        """Undefined where the largest has not converged, or is lost in the rounding of larger ones below 0."""
        rounding = ROUNDINGS * torch.finfo(precision).eps
        if len(found.values):
            residual, value = float(found.residuals[0]), abs(float(found.values[0]))
            if residual <= max(self.tolerance, rounding) * value:
                return
        else:
            residual = found.missing[0]
        if residual > rounding * found.norm:
            raise Undefined(
                f"the largest eigenvalue has not converged after {found.products} products: its residual is "
                f"still {residual:.2g}" + _finer(precision, eps)
            )
        raise Undefined(
            f"the largest eigenvalue is lost in the rounding of one of {found.norm:.2g} below 0: its residual is "
            f"{residual:.2g}; measure in float64, with model.double()"
        )

    def _forms(self, minimum: Minimum, indices: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Of the samples in groups: one more product altogether."""
        edges = group_edges(len(indices), GROUPS)
        parts = [indices[a:b] for a, b in itertools.pairwise(edges)]
        vector, forms = vector.double(), []
        for part in parts:
            products = products_of(minimum, part, self.curvature, keep=0)
            forms.append(float(products.space.dot(vector, products(vector))))
        sizes = torch.tensor([len(part) for part in parts])
        return torch.tensor(forms, dtype=torch.float64) / products.space.norm(vector) ** 2, sizes

    def _count(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    def cost(self, minimum: Minimum) -> Cost:
        share = self._count(minimum) / len(minimum.samples)
        basis = min(BASIS + 3 * self.k, len(minimum.parameters))
        return Cost(share * 2, 2 * share * _TYPICAL * self.k, 8 * len(minimum.parameters) * basis)


def _finer(precision: torch.dtype, eps: float) -> str:
    """What to do where the network computes in less than the products' precision."""
    return "" if eps <= torch.finfo(precision).eps else "; the network rounds its products: try model.float()"
