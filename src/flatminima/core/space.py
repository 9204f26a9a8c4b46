"""The space of vectors of W entries: all in this process, or a part on each of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Space:
    """Vectors of `size` entries, all of them here, or a part on each of several processes.

    Attributes:
        size: entries of a whole vector.
        here: of them in this process.
        total: sums a tensor over the processes.
        part: of a vector drawn whole, what this process holds.
    """

    size: int
    here: int
    total: Callable[[Tensor], Tensor]
    part: Callable[[Tensor], Tensor]

    @classmethod
    def whole(cls, size: int) -> Space:
        """All in this process."""
        return cls(size, size, lambda sums: sums, lambda vector: vector)

    def norm(self, vector: Tensor) -> float:
        """Euclidean, of the whole vector."""
        return float(self.total(vector.norm().square()).sqrt()) if self.here < self.size else float(vector.norm())

    def dot(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Inner products with each row, of the whole vectors."""
        return self.total(rows @ vector)
