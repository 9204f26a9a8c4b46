"""The largest eigenvalue of a symmetric matrix that changes slowly, followed from one look to the next.

Two directions are carried: the eigenvector, and a challenger that takes one step of power iteration a look, so that a
direction that overtakes is there before it has overtaken (one that rests where it is far below is 17 % late). Products
go on until the residual says that the value is within the tolerance: a fixed number of them is a third too low exactly
where the direction turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatminima.core.perturbation import generator
from flatminima.core.space import Space
from flatminima.errors import UsageError
from flatminima.statistics.lanczos import orthogonal

_Product = Callable[[Tensor], Tensor]

_BASIS, _LARGEST_BASIS = 12, 40  # vectors kept, and as many products of them; the more, the smaller the network
_MEMORY = 1 << 28  # bytes that more than the fewest may take
_KEPT = 3  # Ritz vectors after a restart
_GAP = 0.5  # of the gap between the two largest Ritz values, of which the second is a lower bound
_WHOLE = 0.5  # of a unit vector: where less is left, rounding of what was removed may be seen
_BREAKDOWN = 10.0  # roundings below which a new direction is rounding alone
_SEED = 0x7AC4


@dataclass(frozen=True)
class Top:
    """The largest eigenvalue as one look saw it.

    Attributes:
        value: Rayleigh quotient of the unit vector; never above the largest eigenvalue.
        residual: ||A v - value v||; an eigenvalue lies within it.
        error: estimate of largest eigenvalue - value: the residual, or its square over the gap where that is less.
        converged: whether error <= tolerance |value|.
        second: the next Ritz value; None: there was no second direction.
        products: spent.
        fresh: whether it began at a random direction.
        diagonal: sum of the Ritz values of the orthonormal `basis`, what it adds to the trace.
        basis (k, size here): the space that was searched, for estimates that leave it out.
    """

    value: float
    residual: float
    error: float
    converged: bool
    second: float | None
    products: int
    fresh: bool
    diagonal: float
    basis: Tensor


class Follower:
    """Carries the eigenvector of the largest eigenvalue, and a challenger, from look to look.

    Args:
        tolerance: of the value, relative. cap: products a look, at least 2.
        fresh_every: looks between two that begin at a random direction, the first of them; 0: the first alone.
        seed: of the random directions.

    Raises:
        UsageError: a tolerance outside (0, 1), a cap below 2, a negative `fresh_every`.

    Examples:
        >>> follower = Follower(tolerance=0.01)
        >>> found = follower.look(lambda v: torch.tensor([1.0, 5.0, 2.0]) * v, Space.whole(3))
        >>> round(found.value, 2), found.converged
        (5.0, True)
    """

    def __init__(self, *, tolerance: float = 0.01, cap: int = 60, fresh_every: int = 20, seed: int = 0) -> None:
        if not 0 < tolerance < 1:
            raise UsageError(f"got tolerance={tolerance!r}; it lies in (0, 1)")
        if cap < 2:
            raise UsageError(f"got cap={cap!r} products a check; at least 2")
        if fresh_every < 0:
            raise UsageError(f"got fresh_every={fresh_every!r}; a number of checks, or 0 for none but the first")
        self.tolerance, self.cap, self.fresh_every, self.seed = tolerance, cap, fresh_every, seed
        self.carried: Tensor | None = None  # (2, size here): eigenvector and challenger
        self.looks = 0

    def look(
        self,
        product: _Product,
        space: Space,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Top:
        """Search from what is carried; where a fresh direction is due, from that alone first.

        Args:
            product: v (size here,) of `dtype` to A v, (size here,). space: of the vectors.
            dtype, device: of the basis, at most 40 vectors and their products.
        """
        fresh = self.carried is None or (self.fresh_every > 0 and self.looks % self.fresh_every == 0)
        search = _Search(product, space, dtype, torch.device(device))
        if fresh:
            search.begin(self._random(space))
            search.run(self.tolerance, self.cap, by_gap=False)
        added = [search.begin(start) for start in (() if self.carried is None else self.carried)]
        if not search.size:  # zeros were carried
            search.begin(self._random(space))
        judged = search.run(self.tolerance, self.cap + (sum(added) if fresh else 0))
        self.carried, self.looks = search.carried(judged), self.looks + 1
        return search.found(judged, self.tolerance, fresh)

    def _random(self, space: Space) -> Tensor:
        return space.part(torch.randn(space.size, generator=generator(self.seed ^ _SEED, self.looks)))


@dataclass
class _Judged:
    """Ritz pairs of the space, and how far the largest is from an eigenvalue."""

    values: np.ndarray[tuple[int], np.dtype[np.float64]]  # descending
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]]  # columns
    top: Tensor  # the largest pair's vector
    residual: Tensor
    length: float

    def error(self) -> float:
        """Error of the largest value: Kato and Temple's bound where the gap is larger than the residual."""
        if len(self.values) < 2:
            return self.length
        gap = _GAP * float(self.values[0] - self.values[1])
        return self.length * min(1.0, self.length / gap) if gap > 0 else self.length


class _Search:
    """Rayleigh and Ritz on an orthonormal basis V with its products A V, both kept; V^T A V is small and float64."""

    def __init__(self, product: _Product, space: Space, dtype: torch.dtype, device: torch.device) -> None:
        self._product, self._space = product, space
        room = max(_BASIS, min(_LARGEST_BASIS, _MEMORY // max(1, 2 * space.here * dtype.itemsize)))
        self._room = min(room, space.size)
        self._basis = torch.empty(self._room, space.here, dtype=dtype, device=device)
        self._after = torch.empty_like(self._basis)
        self._inner = np.zeros((self._room, self._room))
        self.size = self.products = 0

    def begin(self, start: Tensor) -> bool:
        """Add a direction to the space, with its product; False where there is nothing new in it."""
        if self.size == self._room:
            if self._room == self._space.size:
                return False
            self._restart(self._judge())
        vector = start.to(self._basis)
        norm = self._space.norm(vector)
        if not norm > 0:
            return False
        j = self.size
        self._basis[j] = vector / norm
        if j and not self._make_orthogonal(j):
            return False
        self._after[j] = self._product(self._basis[j]).to(self._after)
        self.size, self.products = j + 1, self.products + 1
        along = self._space.dot(self._basis[: j + 1], self._after[j]).double().cpu().numpy()
        self._inner[: j + 1, j] = self._inner[j, : j + 1] = along
        return True

    def _make_orthogonal(self, j: int) -> bool:
        """The unit row j of the basis to the rows before it; False where rounding alone is left."""
        left, eps = 1.0, torch.finfo(self._basis.dtype).eps
        while True:
            vector, _ = orthogonal(self._basis[j], self._basis[:j], self._space)
            part = self._space.norm(vector)
            left *= part
            if not left > _BREAKDOWN * eps:
                return False
            self._basis[j] = vector / part
            if part > _WHOLE:
                return True

    def run(self, tolerance: float, cap: int, *, by_gap: bool = True) -> _Judged:
        """Add the residual of the largest Ritz vector until that is converged, or `cap` products are spent.

        Args:
            by_gap: believe the gap, which from a random direction is seen too wide.
        """
        while True:
            judged = self._judge()
            error = judged.error() if by_gap else judged.length
            if error <= tolerance * abs(judged.values[0]) or self.products >= cap:
                return judged
            if not self.begin(judged.residual):
                return judged

    def found(self, judged: _Judged, tolerance: float, fresh: bool) -> Top:
        value, error = float(judged.values[0]), judged.error()
        return Top(
            value,
            judged.length,
            error,
            error <= tolerance * abs(value),
            float(judged.values[1]) if self.size > 1 else None,
            self.products,
            fresh,
            float(np.trace(self._inner[: self.size, : self.size])),
            self._basis[: self.size],
        )

    def carried(self, judged: _Judged) -> Tensor:
        """(2, size here): the largest Ritz vector, and the second after a step of power iteration."""
        first = judged.top
        if self.size > 1:
            second = judged.vectors[:, 1:2]
            shift = max(0.0, -float(judged.values[-1]))  # the largest, not the largest in magnitude
            step = self._combine(second, self._after)[0] + shift * self._combine(second, self._basis)[0]
        else:
            step = judged.residual
        step, _ = orthogonal(step, first[None], self._space)
        norm = self._space.norm(step)
        return torch.stack([first, step / norm if norm > 0 else torch.zeros_like(step)])

    def _judge(self) -> _Judged:
        if self.size == 1:
            values, vectors = self._inner[0, :1], np.ones((1, 1))
            top, after = self._basis[0].clone(), self._after[0]
        else:
            values, vectors = np.linalg.eigh(self._inner[: self.size, : self.size])
            values, vectors = values[::-1], vectors[:, ::-1]
            top, after = (self._combine(vectors[:, :1], rows)[0] for rows in (self._basis, self._after))
        value = float(values[0])
        residual = torch.sub(after, top, alpha=value)
        return _Judged(values, vectors, top, residual, self._space.norm(residual))

    def _restart(self, judged: _Judged) -> None:
        """Keep the largest Ritz vectors and their products."""
        kept = judged.vectors[:, :_KEPT]
        self._basis[:_KEPT], self._after[:_KEPT] = (self._combine(kept, rows) for rows in (self._basis, self._after))
        self._inner[:] = 0.0
        np.fill_diagonal(self._inner[:_KEPT, :_KEPT], judged.values[:_KEPT])
        self.size = _KEPT

    def _combine(self, weights: np.ndarray[tuple[int, int], np.dtype[np.float64]], rows: Tensor) -> Tensor:
        return torch.from_numpy(weights.T.copy()).to(rows) @ rows[: self.size]
