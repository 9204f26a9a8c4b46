"""The decorator of a measure: statistics in, `Estimate` out, undefined with a reason instead of an exception."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec

from flatminima import catalog
from flatminima.core.ambient import neutral
from flatminima.core.statistic import Statistics
from flatminima.errors import Absent, FlatMinimaError, Undefined, UsageError
from flatminima.estimate import Estimate

P = ParamSpec("P")
_Function = Callable[Concatenate[Statistics, P], Estimate]


def catalogued_measure(function: _Function[P]) -> _Function[P]:
    """Stamp the catalogue's direction on the result; turn `Undefined`, and errors of torch, into an undefined one."""
    direction = catalog.measure_row(function.__name__).direction
    arguments = signature(function)

    @wraps(function)
    def measured(minimum: Statistics, /, *args: P.args, **kwargs: P.kwargs) -> Estimate:
        arguments.bind(minimum, *args, **kwargs)  # a wrong argument is the caller's, and no property of the network
        try:
            with neutral():  # its arithmetic on what is known too, and no other thread in between
                return replace(_told(function(minimum, *args, **kwargs)), direction=direction)
        except FlatMinimaError as error:
            if not isinstance(error, Undefined):
                raise
            return Estimate.missing(error.reason, direction=direction, code=error.code)
        except KeyError:  # of `Fixed`, handed too few numbers
            raise
        except Exception as error:  # of torch or of the user's network
            reason = Absent.of(error)
            return Estimate.missing(reason.reason, direction=direction, code=reason.code)

    return measured


def _told(found: Estimate) -> Estimate:
    """A value without a standard error is exact for its samples, unless the measure says otherwise."""
    if found.value is None or found.stderr is not None or "error_of" in found.details:
        return found
    return found.with_details(error_of="exact")


def with_note(found: Estimate, note: str) -> Estimate:
    """The estimate with one more thing that its reader must know, in details["note"]."""
    before = found.details.get("note")
    return found.with_details(note=f"{before}; {note}" if before else note)


def seed_of(minimum: Statistics, seed: int | None) -> int:
    """`seed`, or where it is None the Minimum's own (0 for numbers handed over by `Fixed`)."""
    return int(getattr(minimum, "seed", 0)) if seed is None else seed


def output_size_of(minimum: Statistics) -> int:
    """Entries of one sample's output, for language models tokens times words (0 for numbers handed over by `Fixed`)."""
    return int(getattr(minimum, "output_size", 0))


def at_least_one(**counts: Any) -> None:
    """Refuse counts below 1; None means all and passes.

    Raises:
        UsageError: naming the count.
    """
    for name, count in counts.items():
        if count is not None and not count >= 1:
            raise UsageError(f"got {name}={count!r}; it must be at least 1")


MOST = 64  # times the draws that a measure starts with, to which `rtol` may raise them


def until(rtol: float | None, start: int, estimate: Callable[[int], Estimate]) -> Estimate:
    """``estimate(k)``, k raised from `start` until the 95% interval is ``value (1 +- rtol)`` or narrower.

    Args:
        rtol: half-width of the interval relative to |value|; None: ``estimate(start)``.
        start: draws at first; at most 64 times as many are made.
        estimate: of k draws.

    Returns:
        The estimate, with details["rtol_reached"] where rtol is given: False where the cap, or the end of the data,
        came first.

    Raises:
        UsageError: rtol not in (0, 1).
    """
    if rtol is None:
        return estimate(start)
    if not 0 < rtol < 1:
        raise UsageError(f"got rtol={rtol!r}; a relative tolerance lies in (0, 1)")
    draws, most = max(start, 2), MOST * start
    found = estimate(draws)
    while (missing := _missing(found, rtol)) > 1 and draws < most:
        draws = min(most, math.ceil(draws * min(max(missing, 1.5), 16.0)))
        more = estimate(draws)
        if more.details.get("n") == found.details.get("n"):  # no more samples to be had
            break
        found = more
    return found if found.value is None else found.with_details(rtol_reached=_missing(found, rtol) <= 1)


def _missing(found: Estimate, rtol: float) -> float:
    """By what factor there are too few draws."""
    if found.value is None or not found.stderr:
        return 0.0
    low, high = found.interval()
    allowed = rtol * abs(float(found))
    return math.inf if allowed == 0 else ((high - low) / 2 / allowed) ** 2
