"""Arguments of a certificate as plain numbers: numpy's are converted, and what is no number is refused by name."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

from flatminima.errors import UsageError
from flatminima.escaping import brief

_EXACT = 1 << 53  # integers up to here are themselves in float64


def real(name: str, value: Any, example: str) -> float:
    """A real number as Python's own; NaN and Inf are left to who knows the range.

    Raises:
        UsageError: a text, None, a truth value, a complex number, several numbers.

    Examples:
        >>> real("delta", 0.05, "0.05")
        0.05
    """
    number: Any = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise UsageError(f"got {name}={brief(value)} of type {type(value).__name__}; expected a number, e.g. {example}")
    return _plain(number)


def _plain(number: Any) -> float:
    if type(number) is int and abs(number) <= _EXACT:
        return number
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def reals(name: str, values: Any, example: str) -> tuple[float, ...]:
    """One real number, or several.

    Raises:
        UsageError: one of them is none.

    Examples:
        >>> reals("scales", [0.1, 0.2], "0.1"), reals("scales", 0.1, "0.1")
        ((0.1, 0.2), (0.1,))
    """
    one = not isinstance(values, Iterable) or isinstance(values, str | bytes) or getattr(values, "ndim", None) == 0
    return tuple(real(name, v, example) for v in ([values] if one else values))


def whole(name: str, value: Any, least: int) -> int:
    """A whole number as Python's int.

    Raises:
        UsageError: a fraction, a text, a truth value, or less than `least`.

    Examples:
        >>> whole("passes", 10, 1)
        10
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise UsageError(f"got {name}={brief(value)}; expected a whole number of at least {least}")
    return number


def of_kind(name: str, value: Any, kind: type) -> None:
    """Refuse an argument of another class.

    Raises:
        UsageError: naming both.
    """
    if not isinstance(value, kind):
        raise UsageError(f"got {name} of type {type(value).__name__}; expected a flatminima {kind.__name__}")
