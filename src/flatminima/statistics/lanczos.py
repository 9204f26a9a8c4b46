"""Lanczos with full reorthogonalisation, on anything that multiplies a vector.

Without reorthogonalisation an eigenvalue that has converged comes back as its own ghost (a neighbour returns one three
times, all "converged"); with it, and vectors of the network's own precision, a step costs less than the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from flatminima.core.perturbation import generator
from flatminima.core.space import Space
from flatminima.errors import NumericalError, UsageError

_Product = Callable[[Tensor], Tensor]
Which = Literal["largest", "smallest", "magnitude"]

PRODUCTS = 300  # at most, an eigenvalue asked for
BASIS = 60  # vectors kept before a restart, and three more an eigenvalue
_KEPT = 0.5  # of a vector's norm: where less is left, rounding of what was removed may be seen
_BREAKDOWN = 10.0  # roundings of the norm below which a new direction is rounding alone
ROUNDINGS = 100.0  # of an eigenvalue: a residual of less cannot be had, whatever the tolerance
_PLAIN = 1e15  # norms from 1 over it to it: float32 holds the squares that they are sums of


@dataclass(frozen=True)
class Tridiagonal:
    """Q^T A Q for the Krylov space of a starting vector.

    Attributes:
        diagonal (m,), off (m - 1,) float64.
        last: norm of what A adds to the space after m steps; 0 where it is invariant.
        basis (m, size): Q^T.
    """

    diagonal: Tensor
    off: Tensor
    last: float
    basis: Tensor

    def quadrature(self) -> tuple[Tensor, Tensor]:
        """Gauss nodes and weights (m,) of the starting vector's spectral measure: exact for degree 2m - 1."""
        values, vectors = self.eigh()
        return values, vectors[0].square()

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,), ascending, and eigenvectors (m, m) in columns."""
        values, vectors = eigh_tridiagonal(self.diagonal.numpy(), self.off.numpy())
        return torch.from_numpy(values), torch.from_numpy(vectors)


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenvalues that have converged, the most extreme first.

    Attributes:
        values (c,) float64, c <= wanted: of what did not converge there is no number.
        residuals (c,) float64: ||A x - value x||_2, computed from x.
        vectors (c, size): the unit eigenvectors x.
        missing: residuals of those that did not converge.
        products: spent.
        norm: of the largest product with a unit vector; what `dtype` rounds of it, no residual is below.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    missing: tuple[float, ...]
    products: int
    norm: float = 0.0

    @property
    def converged(self) -> bool:
        return not self.missing


def as_product(matrix: Any) -> _Product:
    """A tensor, array, scipy operator or function as a function of vectors."""
    if callable(matrix) and not hasattr(matrix, "shape"):
        return matrix  # type: ignore[no-any-return]
    if isinstance(matrix, Tensor):
        return lambda vector: matrix.double() @ vector.double()
    return lambda vector: torch.from_numpy(np.asarray(matrix @ vector.double().cpu().numpy()).reshape(-1)).double()


def lanczos(matrix: Any, start: Tensor, steps: int, dtype: torch.dtype = torch.float64) -> Tridiagonal:
    """`steps` of Lanczos from `start` (size,), fewer where the space becomes invariant.

    Args:
        matrix: symmetric; a tensor, array, scipy operator, or function of a vector of `dtype`.
        start: not zero.
        steps: at least 1; steps x size numbers of `dtype` are kept.
        dtype: of the basis; coefficients are float64.

    Raises:
        NumericalError: a product that is not finite.

    Examples:
        >>> found = lanczos(torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([1.0, 1.0]), 5)
        >>> [round(x, 9) for x in found.quadrature()[0].tolist()]
        [1.0, 3.0]
    """
    if steps < 1:
        raise UsageError(f"got steps={steps}; Lanczos needs at least 1")
    product, steps = as_product(matrix), min(steps, len(start))
    basis = torch.empty(steps, len(start), dtype=dtype, device=start.device)
    diagonal: list[float] = []
    off: list[float] = []
    space = Space.whole(len(start))
    vector, norm = start.double() / _norm(start.double(), space), 0.0
    for j in range(steps):
        basis[j] = vector
        after = product(basis[j]).double()
        diagonal.append(float(after @ basis[j].double()))
        size = _finite_norm(after, space)
        after, _ = orthogonal(after, basis[: j + 1])
        beta, norm = _norm(after, space), max(norm, size)
        if beta <= _BREAKDOWN * torch.finfo(dtype).eps * norm or j + 1 == len(start):
            beta = 0.0
            break
        off.append(beta)
        vector = after / beta
    m = len(diagonal)
    doubles = [torch.tensor(x, dtype=torch.float64) for x in (diagonal, off[: m - 1])]
    return Tridiagonal(doubles[0], doubles[1], beta, basis[:m])


def extreme_eigenvalues(
    matrix: Any,
    size: int | Space,
    k: int = 1,
    which: Which = "largest",
    tolerance: float = 1e-3,
    seed: int = 0,
    *,
    products: int = PRODUCTS,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    """The k most extreme eigenvalues of a symmetric matrix by thick-restart Lanczos, each with its residual.

    With k > 1, the space orthogonal to what was found is searched once more from a fresh start, since the Krylov space
    of one vector holds one vector only of an eigenvalue of multiplicity two.

    Args:
        matrix: as for `lanczos`.
        size: its number of rows, or the Space of its vectors.
        k: how many, at most that number.
        which: ``"largest"`` or ``"smallest"`` algebraically, or largest in ``"magnitude"``.
        tolerance: residual relative to the largest |eigenvalue| found, at which one counts as converged (but never
            below 100 roundings of `dtype`); so does one that is 0 but for the rounding of the largest product.
        seed: of the starting vectors.
        products: at most, an eigenvalue asked for.
        dtype: of the basis, min(size, 60 + 3 k) x size.
        device: of the basis and of the vectors that `matrix` gets.

    Raises:
        UsageError: k outside 1 to size, a tolerance outside (0, 1), an unknown `which`.
        NumericalError: a product that is not finite.

    Source:
        Wu & Simon 2000, SIAM J. Matrix Anal. Appl. 22(2).

    Examples:
        >>> found = extreme_eigenvalues(np.diag([1.0, 5.0, 2.0, 0.0, -9.0]), 5, which="magnitude")
        >>> round(float(found.values[0]), 6)
        -9.0
    """
    space = Space.whole(size) if isinstance(size, int) else size
    size = space.size
    if not 1 <= k <= size:
        raise UsageError(f"got k={k} eigenvalues of a matrix of size {size}; k is 1 to {size}")
    if not 0 < tolerance < 1:
        raise UsageError(f"got tolerance={tolerance}; it must lie in (0, 1)")
    if which not in get_args(Which):
        raise UsageError(f"got which={which!r}; expected one of {', '.join(get_args(Which))}")
    search = _Search(as_product(matrix), space, which, tolerance, products * k, seed, dtype, torch.device(device))
    vectors = search.run(k, torch.empty(0, space.here, dtype=dtype, device=device))
    values, residuals, vectors = search.judge(vectors)
    for _ in range(k if 1 < k < size else 0):
        other = search.run(1, vectors, below=float(values[-1]))
        found, residual, _ = search.judge(other)
        if not search.beats(float(found[0]), float(values[-1]), float(values.abs().max())):
            break
        every = torch.cat([values, found]), torch.cat([residuals, residual]), torch.cat([vectors, other])
        order = search.order(every[0])[:k]
        values, residuals, vectors = (t[order] for t in every)
    accepted = search.accepted(values, residuals).long().cumprod(0).bool()  # no hole
    missing = tuple(residuals[~accepted].tolist())
    return Eigenpairs(values[accepted], residuals[accepted], vectors[accepted], missing, search.spent, search.norm)


@dataclass
class _Search:
    """Thick-restart Lanczos; T = V A V^T is kept dense, so that a restart needs no case of its own."""

    product: _Product
    space: Space
    which: Which
    tolerance: float
    budget: int
    seed: int
    dtype: torch.dtype
    device: torch.device
    spent: int = 0
    draws: int = 0
    norm: float = 0.0

    def run(self, k: int, locked: Tensor, below: float | None = None) -> Tensor:
        """Ritz vectors (k, size) of the k most extreme, orthogonal to `locked`, converged or out of budget.

        With `below`, it is enough to see that the most extreme is less extreme than that.
        """
        size = self.space.size
        room = min(size - len(locked), BASIS + 3 * k)
        basis = torch.empty(room, self.space.here, dtype=self.dtype, device=self.device)
        inner = np.zeros((room, room))
        basis[0], j, stop = self._fresh(locked, basis[:0]), 0, self.spent + self.budget
        while True:
            after = self.product(basis[j])
            self.spent += 1
            self.norm = max(self.norm, _finite_norm(after, self.space))
            after, _ = orthogonal(after.to(self.dtype), locked, self.space)
            after, along = orthogonal(after, basis[: j + 1], self.space)
            inner[: j + 1, j] = inner[j, : j + 1] = along.cpu().numpy()
            beta = _norm(after, self.space)
            if beta <= self._rounding(_BREAKDOWN):
                beta = 0.0
            values, vectors = np.linalg.eigh(inner[: j + 1, : j + 1])
            order = self.order(torch.from_numpy(values)).numpy()
            values, vectors = values[order], vectors[:, order]
            residuals = beta * np.abs(vectors[j])
            full = j + 1 == size - len(locked)
            if j + 1 >= k and (full or self._enough(values, residuals, k, below) or self.spent >= stop):
                return self._combine(vectors[:, :k], basis[: j + 1])
            if j + 1 == room:
                j = k + (room - k) // 2
                basis[:j] = self._combine(vectors[:, :j], basis)
                inner[:] = 0.0
                np.fill_diagonal(inner[:j, :j], values[:j])
                j -= 1
            if beta > 0:
                basis[j + 1] = after / beta
            else:
                basis[j + 1] = self._fresh(locked, basis[: j + 1])
            j += 1

    def _enough(
        self, values: np.ndarray[Any, Any], residuals: np.ndarray[Any, Any], k: int, below: float | None
    ) -> bool:
        scale = max(float(np.abs(values[:k]).max()), abs(below or 0.0))
        enough = max(0.5 * self._allowed(scale), self._rounding(1.0))  # 0.5: the residual is computed again
        if (residuals[:k] <= enough).all():
            return True
        return below is not None and float(residuals[0]) <= 0.5 * self._lead(below, float(values[0]))

    def accepted(self, values: Tensor, residuals: Tensor) -> Tensor:
        """Mark what has converged: by its residual beside the largest value, or as a 0 to the rounding of products."""
        zero = torch.maximum(values.abs(), residuals) <= self._rounding(_BREAKDOWN)
        return (residuals <= self._allowed(float(values.abs().max()))) | zero

    def _allowed(self, scale: float) -> float:
        """The residual at which an eigenvalue counts as converged."""
        return max(self.tolerance, ROUNDINGS * torch.finfo(self.dtype).eps) * scale

    def _rounding(self, times: float) -> float:
        """So many roundings of the largest product."""
        return times * torch.finfo(self.dtype).eps * self.norm

    def _lead(self, one: float, two: float) -> float:
        """By how much `one` is more extreme than `two`."""
        if self.which == "magnitude":
            return abs(one) - abs(two)
        return one - two if self.which == "largest" else two - one

    def beats(self, one: float, two: float, scale: float) -> bool:
        return self._lead(one, two) > self.tolerance * scale

    def order(self, values: Tensor) -> Tensor:
        if self.which == "magnitude":
            return torch.argsort(values.abs(), descending=True)
        return torch.argsort(values, descending=self.which == "largest")

    def judge(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rayleigh quotients, ordered, residuals computed from the vectors, and these."""
        values, residuals = [], []
        for vector in vectors:
            unit = vector.double() / _norm(vector.double(), self.space)
            after = self.product(unit).double()
            self.spent += 1
            values.append(float(self.space.dot(unit, after)))
            residuals.append(_norm(after - values[-1] * unit, self.space))
        found = torch.tensor(values, dtype=torch.float64)
        order = self.order(found)
        return found[order], torch.tensor(residuals, dtype=torch.float64)[order], vectors[order.to(vectors.device)]

    def _fresh(self, locked: Tensor, basis: Tensor) -> Tensor:
        """A random unit vector orthogonal to both."""
        space = self.space
        vector = space.part(torch.randn(space.size, generator=generator(self.seed, self.draws)))
        self.draws += 1
        vector = vector.to(self.device, self.dtype)
        for _ in range(2):
            vector, _ = orthogonal(vector / space.norm(vector), locked, space)
            vector, _ = orthogonal(vector / space.norm(vector), basis, space)
        return vector / space.norm(vector)

    def _combine(self, weights: np.ndarray[Any, Any], basis: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(weights.T)).to(basis) @ basis


def _norm(vector: Tensor, space: Space) -> float:
    """Euclidean norm of entries of any size: the square of 1e20 is infinite in float32, that of 1e200 in float64."""
    found = space.norm(vector)
    if 1 / _PLAIN < found < _PLAIN:
        return found
    unit = float(space.total(vector.double().abs().sum()))
    if unit == 0 or not math.isfinite(unit):
        return unit
    return unit * float(space.total((vector.double() / unit).square().sum()).sqrt())


def _finite_norm(product: Tensor, space: Space) -> float:
    """Norm of a product.

    Raises:
        NumericalError: it is not finite.
    """
    norm = _norm(product, space)
    if not math.isfinite(norm):
        raise NumericalError("a product with the matrix is not finite: it overflows, or holds NaN")
    return norm


def orthogonal(vector: Tensor, basis: Tensor, space: Space | None = None) -> tuple[Tensor, Tensor]:
    """`vector` without its components along the rows of an orthonormal `basis`, and these, float64.

    The last two rows first: in Lanczos they hold nearly all of it, and what is left is then taken out at full accuracy.
    Where a pass still takes away half of the vector, another follows ("twice is enough").
    """
    space = space or Space.whole(len(vector))
    along = torch.zeros(len(basis), dtype=torch.float64, device=basis.device)
    if not len(basis):
        return vector, along
    vector = vector.to(basis.dtype)

    def without(rows: Tensor, into: Tensor) -> Tensor:
        part = space.dot(rows, vector)
        into += part.double()
        return vector - part @ rows

    vector = without(basis[-2:], along[-2:])
    for _ in range(2):
        before = space.norm(vector)
        vector = without(basis, along)
        if space.norm(vector) > _KEPT * before:
            break
    return vector, along
