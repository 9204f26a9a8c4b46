"""`Estimate`: a number with its uncertainty, its direction and what it can be trusted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["lower", "higher"]
Kind = Literal["score", "bound", "certificate"]


@dataclass(frozen=True)
class Estimate:
    """A measured value, or the reason why there is none.

    Attributes:
        value: the number, finite; None when `undefined`.
        stderr: one standard error of `value` where it was sampled, else None.
        details: what the number was made from (JSON-able; per-layer values under ``"layers"``).
        undefined: why the measure has no value for this network, else None.
        direction: ``"lower"`` if a lower value goes with better generalization, else ``"higher"``.
        kind: ``"score"`` (for ranking only), ``"bound"`` or ``"certificate"``.

    Raises:
        ValueError: NaN or Inf as value, a negative standard error, or neither value nor reason.
    """

    value: float | None
    stderr: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    undefined: str | None = None
    direction: Direction = "lower"
    kind: Kind = "score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))
        if (self.value is None) == (self.undefined is None):
            raise ValueError(f"got value={self.value!r} and undefined={self.undefined!r}; give exactly one")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"got value={self.value!r}; an Estimate is finite: use Estimate.missing(reason)")
        if self.stderr is not None and not (math.isfinite(self.stderr) and self.stderr >= 0):
            raise ValueError(f"got stderr={self.stderr!r}; a standard error is finite and not negative")

    @classmethod
    def missing(cls, reason: str, *, direction: Direction = "lower", **details: Any) -> Estimate:
        """No value, because of `reason`."""
        return cls(None, details=details, undefined=reason, direction=direction)

    @classmethod
    def mean(cls, samples: Tensor, *, direction: Direction = "lower", **details: Any) -> Estimate:
        """Sample mean with standard error s / sqrt(n), s with n - 1; no standard error for one sample."""
        n = samples.numel()
        values = samples.detach().double().flatten()
        stderr = float(values.std() / math.sqrt(n)) if n > 1 else None
        return cls(float(values.mean()), stderr, {"n": n, **details}, direction=direction)

    def with_details(self, **details: Any) -> Estimate:
        """The same estimate with more details."""
        return replace(self, details={**self.details, **details})

    def __float__(self) -> float:
        if self.value is None:
            raise ValueError(f"undefined: {self.undefined}")
        return self.value

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy does not pickle
        fields = (self.value, self.stderr, dict(self.details), self.undefined, self.direction, self.kind)
        return Estimate, fields

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined: {self.undefined}"
        return f"{self.value:.4g}" + (f" +- {self.stderr:.2g}" if self.stderr is not None else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; never NaN."""
        return {
            "value": self.value,
            "stderr": self.stderr,
            "undefined": self.undefined,
            "direction": self.direction,
            "kind": self.kind,
            "details": dict(self.details),
        }
