"""What makes a function a measure: statistics in, `Estimate` out, undefined with a reason instead of an exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from flatminima import catalog
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.statistic import Statistics

P = ParamSpec("P")
Function = Callable[Concatenate[Statistics, P], Estimate]


def measure(function: Function[P]) -> Function[P]:
    """Stamp the catalogue's direction on the result; turn `Undefined` into an undefined Estimate."""
    direction = catalog.measure(function.__name__).direction

    @wraps(function)
    def measured(minimum: Statistics, /, *args: P.args, **kwargs: P.kwargs) -> Estimate:
        try:
            return replace(function(minimum, *args, **kwargs), direction=direction)
        except Undefined as reason:
            return Estimate.missing(reason.reason, direction=direction)

    return measured


def seed_of(minimum: Statistics, seed: int | None) -> int:
    """`seed`, or where it is None the Minimum's own (0 for numbers handed over by `Fixed`)."""
    return int(getattr(minimum, "seed", 0)) if seed is None else seed


def at_least_one(**counts: Any) -> None:
    """Refuse counts below 1; None means all and passes.

    Raises:
        UsageError: naming the count.
    """
    for name, count in counts.items():
        if count is not None and not count >= 1:
            raise UsageError(f"got {name}={count!r}; it must be at least 1")
