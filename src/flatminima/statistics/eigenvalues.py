"""Largest eigenvalues of the loss's Hessian, with the residuals that say whether to believe them.

ARPACK's implicitly restarted Lanczos returns no eigenvalue twice; what has not converged is Undefined, never a number
(a neighbour's defaults give 0.43 for a true 0.97).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from flatminima.errors import Undefined, UsageError
from flatminima.statistic import Cost, Statistic
from flatminima.statistics.hessian import hessian_operator

if TYPE_CHECKING:
    from flatminima.minimum import Minimum

_PRODUCTS = 300  # at most, an eigenvalue asked for
_TYPICAL = 30  # products until the largest has converged, for the plan
_FEWEST = 3  # parameters below which ARPACK does not run and the matrix is formed


@dataclass(frozen=True)
class Eigenvalues:
    """The largest eigenvalues.

    Attributes:
        values (k,) float64, descending.
        residuals (k,) float64: ||H v - lambda v||_2 for the unit eigenvector found.
        products: Hessian products spent.
    """

    values: Tensor
    residuals: Tensor
    products: int


@dataclass(frozen=True)
class TopEigenvalues(Statistic[Eigenvalues]):
    """The k algebraically largest eigenvalues of the Hessian of the mean loss over `samples` random samples.

    Args:
        k: how many.
        samples: of the data, drawn by seed; None: all.
        tolerance: residual relative to the eigenvalue at which it counts as converged.
        seed: of the samples and of the starting vector.

    Raises:
        Undefined: not converged within 300 k products, with the residual reached.
    """

    k: int = 1
    samples: int | None = 1000
    tolerance: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.tolerance < 1:
            raise UsageError(f"got k={self.k}, tolerance={self.tolerance}; k at least 1, tolerance in (0, 1)")

    def compute(self, minimum: Minimum) -> Eigenvalues:
        n = len(minimum.samples)
        wanted = n if self.samples is None else min(self.samples, n)
        indices = minimum.samples.order(self.seed)[:wanted]
        return largest(hessian_operator(minimum, indices), self.k, self.tolerance, self.seed)

    def cost(self, minimum: Minimum) -> Cost:
        share = min(self.samples or len(minimum.samples), len(minimum.samples)) / len(minimum.samples)
        return Cost(share * _TYPICAL, 3 * share * _TYPICAL, 8 * len(minimum.parameters) * max(20, 2 * self.k + 1))


def largest(operator: LinearOperator, k: int, tolerance: float, seed: int) -> Eigenvalues:
    """The k largest eigenvalues of a symmetric operator, each with its residual.

    Raises:
        Undefined: more eigenvalues than the operator has, or no convergence.

    Example:
        >>> from scipy.sparse.linalg import aslinearoperator
        >>> found = largest(aslinearoperator(np.diag([1.0, 5.0, 2.0, 0.0, -9.0])), 1, 1e-6, 0)
        >>> round(float(found.values[0]), 9)
        5.0
    """
    size = operator.shape[0]
    if k > size:
        raise Undefined(f"{size} parameters have no {k} eigenvalues")
    spent = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        out = operator.matvec(vector)
        if not np.isfinite(out).all():
            raise Undefined("a Hessian product is not finite: the curvature overflows here")
        return np.asarray(out)

    counted = LinearOperator(operator.shape, matvec=product, dtype=np.float64)
    if size <= max(_FEWEST, k):
        values, vectors = np.linalg.eigh(np.stack([product(row) for row in np.eye(size)], 1))
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        start = np.random.default_rng(seed).standard_normal(size)
        if not product(start).any():  # a random vector is in the kernel of the zero matrix only
            return Eigenvalues(torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64), spent)
        try:
            values, vectors = eigsh(counted, k=k, which="LA", v0=start, tol=tolerance / 10, maxiter=_PRODUCTS)
        except ArpackNoConvergence as stopped:
            raise Undefined(
                f"{len(stopped.eigenvalues)} of {k} eigenvalues converged after {spent} Hessian products"
            ) from None
    order = np.argsort(-values)
    values, vectors = values[order], vectors[:, order]
    residuals = np.array([np.linalg.norm(product(v) - x * v) for x, v in zip(values, vectors.T, strict=True)])
    scale = max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    if (residuals > tolerance * scale).any():
        raise Undefined(f"the residual {residuals.max():.2g} of an eigenvalue {values[0]:.4g} is too large to believe")
    return Eigenvalues(torch.from_numpy(values.copy()), torch.from_numpy(residuals), spent)
