"""`Estimate`: a number with its uncertainty, its direction and what it can be trusted for.

A value is finite or there is none, with the reason; what could not be computed never travels as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from flatminima.catalog.rows import BetterDirection
from flatminima.display import html

if TYPE_CHECKING:
    from torch import Tensor

_Kind = Literal["score", "bound", "certificate"]

# details["error_of"]: over what the standard error is
ERRORS = {
    "exact": "nothing was drawn: the value of these samples",
    "rounding": "nothing was drawn: what rounding leaves of a difference of losses",
    "draws": "noise or probes drawn anew, for the same samples",
    "data": "which of the samples were looked at; for the value of all of them",
    "both": "draws, and which of the samples were looked at",
    "new data": "another sample of this size from where the data came",
}


@dataclass(frozen=True)
class Estimate:
    """A measured value, or the reason why there is none.

    Attributes:
        value: the number, finite; None when `undefined`.
        stderr: one standard error of `value` where it was sampled, else None.
        details: what the number was made from (plain types). Common keys: ``"error_of"``, over what the standard error
            is (`ERRORS`); ``"n"``, whose n - 1 are its degrees of freedom; ``"layers"``, the share of each parameter by
            name, and ``"layer_stderrs"``; ``"note"``, what a reader of the value must know.
        undefined: why the measure has no value for this network, else None.
        direction: ``"lower"`` if a lower value goes with better generalization, else ``"higher"``.
        kind: ``"score"`` (for ranking only), ``"bound"`` or ``"certificate"``.
        code: of an undefined value, its reason in one word, for programs.

    Raises:
        ValueError: NaN or Inf as value, a negative standard error or one without a value, neither value nor reason,
            an unknown direction or kind.

    Examples:
        >>> print(Estimate(2.0, stderr=0.1), Estimate.missing("one class only"), sep="; ")
        2 +- 0.1; undefined: one class only
    """

    value: float | None
    stderr: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)  # holds dicts, which do not hash
    undefined: str | None = None
    direction: BetterDirection = "lower"
    kind: _Kind = "score"
    code: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))
        if (self.value is None) == (self.undefined is None):
            raise ValueError(f"got value={self.value!r} and undefined={self.undefined!r}; give exactly one")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"got value={self.value!r}; an Estimate is finite: use Estimate.missing(reason)")
        if self.stderr is not None and not (math.isfinite(self.stderr) and self.stderr >= 0):
            raise ValueError(f"got stderr={self.stderr!r}; a standard error is finite and not negative")
        if self.stderr is not None and self.value is None:
            raise ValueError(f"got stderr={self.stderr!r} of an undefined value; leave it out")
        if self.direction not in get_args(BetterDirection) or self.kind not in get_args(_Kind):
            raise ValueError(
                f"got direction={self.direction!r}, kind={self.kind!r}; "
                f"expected one of {get_args(BetterDirection)} and one of {get_args(_Kind)}"
            )
        if self.undefined is not None and self.code is None:
            object.__setattr__(self, "code", "undefined")
        for name in ("value", "stderr"):  # a zero-dimensional tensor or numpy number becomes a float
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else float(number))

    @classmethod
    def missing(
        cls, reason: str, *, direction: BetterDirection = "lower", code: str = "undefined", **details: Any
    ) -> Estimate:
        """No value, because of `reason`."""
        return cls(None, details=details, undefined=reason, direction=direction, code=code)

    @classmethod
    def mean(cls, samples: Tensor, *, direction: BetterDirection = "lower", **details: Any) -> Estimate:
        """Sample mean with standard error s / sqrt(n), s with n - 1; no standard error for one sample.

        Undefined where a sample, or the mean itself, overflowed or is NaN: it is counted, never averaged in.

        Raises:
            ValueError: no samples.
        """
        n = samples.numel()
        if n == 0:
            raise ValueError("got no samples; a mean needs at least 1")
        values = samples.detach().double().flatten()
        found = {"n": n, **details}
        bad = int((~values.isfinite()).sum())
        if bad:
            return cls(
                None,
                details=found,
                undefined=f"{bad} of {n} terms are not finite",
                direction=direction,
                code="not_finite",
            )
        # squares of terms beyond 1e154 overflow: take out a power of 2, which rounds nothing
        scale = math.ldexp(1.0, math.frexp(float(values.abs().max()))[1] - 1)
        scaled = values / scale
        mean = float(scaled.mean() * scale)
        stderr = float(scaled.std() / math.sqrt(n) * scale) if n > 1 else None
        return cls(mean, stderr, found, direction=direction)

    def with_details(self, **details: Any) -> Estimate:
        """The same estimate with more details."""
        return replace(self, details={**self.details, **details})

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a sampled value: ``value +- t stderr``, t Student's quantile.

        Args:
            level: in (0, 1).

        Returns:
            (low, high), with details["n"] - 1 degrees of freedom (two draws give a wide one), the normal quantile
            where there is no n. An exact value is its own interval.

        Raises:
            ValueError: undefined, or a level outside (0, 1).

        Examples:
            >>> [round(x, 3) for x in Estimate(1.0, stderr=0.1, details={"n": 30}).interval()]
            [0.795, 1.205]
        """
        from scipy.special import ndtri, stdtrit

        if not 0 < level < 1:
            raise ValueError(f"got level={level!r}; a confidence level lies in (0, 1)")
        n = self.details.get("n", 0)
        upper = (1 + level) / 2
        quantile = float(stdtrit(n - 1, upper) if n > 1 else ndtri(upper))
        half = quantile * (self.stderr or 0.0)
        return float(self) - half, float(self) + half

    def __float__(self) -> float:
        if self.value is None:
            raise ValueError(f"undefined: {self.undefined}")
        return self.value

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy does not pickle
        fields = (self.value, self.stderr, dict(self.details), self.undefined, self.direction, self.kind, self.code)
        return Estimate, fields

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined: {self.undefined}"
        return f"{self.value:.4g}" + (f" +- {self.stderr:.2g}" if self.stderr is not None else "")

    def _repr_html_(self) -> str:
        return html("estimate", self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; never NaN: a number that is not finite is None."""
        return {
            "value": self.value,
            "stderr": self.stderr,
            "undefined": self.undefined,
            "direction": self.direction,
            "kind": self.kind,
            "code": self.code,
            "details": _plain(self.details),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate that `to_dict` wrote."""
        return cls(**values)


def _plain(value: Any) -> Any:
    """Any detail as JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # tensors, arrays and numpy's numbers
        return _plain(value.tolist())
    return str(value)
