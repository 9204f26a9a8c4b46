"""`--fail-if`: a measure against a number, for continuous integration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from flatminima import catalog
from flatminima.cli.terminal import say
from flatminima.errors import UsageError

if TYPE_CHECKING:
    from flatminima.estimate import Estimate
    from flatminima.table import MeasureTable

_CROSSED = 3  # exit code: it ran, but a threshold failed


@dataclass(frozen=True)
class Threshold:
    """``MEASURE>VALUE`` or ``MEASURE<VALUE``, for continuous integration."""

    measure: str
    above: bool
    value: float

    @classmethod
    def of(cls, text: str, names: list[str]) -> Threshold:
        """Raises UsageError for another form, a measure that is not measured, or a value that is no number."""
        for sign in "><":
            name, found, value = text.partition(sign)
            if not found:
                continue
            name = catalog.measure_row(name.strip()).name
            if name not in names:
                raise UsageError(f"got --fail-if {text!r}, but {name} is not among the measures; add it to --measures")
            try:
                number = float(value)
            except ValueError:
                break
            if math.isfinite(number):
                return cls(name, sign == ">", number)
        raise UsageError(f"got --fail-if {text!r}; expected MEASURE>VALUE or MEASURE<VALUE, such as 'hessian_trace>50'")

    def crossed(self, estimate: Estimate) -> str | None:
        """Thresholds that failed; a measure without a value fails too, because nothing was shown."""
        sign = ">" if self.above else "<"
        if estimate.value is None:
            return f"{self.measure} {sign} {self.value:g} cannot be told: {estimate.undefined}"
        if (estimate.value > self.value) if self.above else (estimate.value < self.value):
            return f"{self.measure} = {estimate.value:.5g} {sign} {self.value:g}"
        return None


def refuse_crossed(limits: list[Threshold], table: MeasureTable) -> None:
    """Exit with 3 where a threshold is crossed."""
    crossed = [text for t in limits if (text := t.crossed(table[t.measure])) is not None]
    for text in crossed:
        say(f"threshold: {text}")
    if crossed:
        raise typer.Exit(_CROSSED)
