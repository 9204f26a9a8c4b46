"""Scales that a prior may have: chosen after seeing the samples, and paid for by a union bound.

The prior is the mixture sum_j p_j P_j of the priors of every scale; KL(Q || mixture) <= KL(Q || P_j) + ln(1 / p_j).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatminima.errors import UsageError


@dataclass(frozen=True)
class Scales:
    """Standard deviations (half-widths, for a box) that the prior may have, and the share of each.

    Args:
        values: positive, fixed before the samples were seen.
        shares: p_j > 0, their sum at most 1; equal by default.

    Raises:
        UsageError: a scale that is not positive, or shares that add to more than 1.

    Examples:
        >>> scales = Scales((0.01, 0.1))
        >>> scales.penalty(0.1) == math.log(2)
        True
    """

    values: tuple[float, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.shares:
            object.__setattr__(self, "shares", (1 / len(self.values),) * len(self.values) if self.values else ())
        if not self.values or any(not (math.isfinite(v) and v > 0) for v in self.values):
            raise UsageError(f"got prior scales {self.values}; expected at least one positive number")
        if len(self.shares) != len(self.values) or min(self.shares) <= 0 or math.fsum(self.shares) > 1 + 1e-12:
            raise UsageError(
                f"got {len(self.shares)} shares of sum {math.fsum(self.shares):.6g} for {len(self.values)} scales; "
                "expected one positive share each, together at most 1"
            )

    @classmethod
    def of(cls, scales: Scales | float | Sequence[float]) -> Scales:
        """One number, several with equal shares, or what is a Scales already."""
        if isinstance(scales, Scales):
            return scales
        return cls((float(scales),) if isinstance(scales, int | float) else tuple(float(s) for s in scales))

    @classmethod
    def series(cls, largest: float = 1.0, ratio: float = math.sqrt(2), terms: int = 40) -> Scales:
        """largest / ratio^(j-1) for j = 1 .. terms, with shares 6 / (pi^2 j^2), which sum to 1 over all j.

        Source: Langford & Caruana (2002); Dziugaite & Roy (2017), sec. 3.1.

        Examples:
            >>> Scales.series(1.0, 2.0, 3).values
            (1.0, 0.5, 0.25)
        """
        if not (ratio > 1 and terms >= 1):
            raise UsageError(f"got ratio={ratio!r}, terms={terms!r}; expected a ratio above 1 and at least one term")
        values = tuple(largest * ratio**-j for j in range(terms))
        return cls(values, tuple(6 / (math.pi * j) ** 2 for j in range(1, terms + 1)))

    def penalty(self, value: float) -> float:
        """ln(1 / p_j) nats for the scale that was chosen."""
        return -math.log(self.shares[self.values.index(value)])


DEFAULT = Scales(tuple(0.005 * 2.0**j for j in range(10)))  # 0.005 .. 2.56, at ln 10 = 2.3 nats
