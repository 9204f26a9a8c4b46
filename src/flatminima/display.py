"""Results as they are shown: as HTML in a notebook, and as numbers that claim no more than what holds.

A bound is rounded up and a probability down, from the digits that Python prints a float with: 0.0161 stays 0.0161.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal
from importlib import import_module
from typing import Any

_LITTLE = Decimal("1e-4")  # a failure probability below which six decimals lose some of it


def html(kind: str, value: Any) -> str:
    """HTML of a result, by the function of `flatminima.notebook` that is named after its kind."""
    found: str = getattr(import_module("flatminima.notebook"), kind)(value)
    return found


def ceiled(value: float, decimals: int = 4) -> str:
    """A bound in [0, 1] to some decimals, rounded up: what is printed must not claim more than what holds.

    Examples:
        >>> ceiled(0.01603), ceiled(0.25), ceiled(0.25 + 1e-12)
        ('0.0161', '0.2500', '0.2501')
    """
    return f"{_ceiled(_digits(min(value, 1.0)), decimals):.{decimals}f}"


def ceiled_percent(value: float, decimals: int = 1) -> str:
    """A bound in [0, 1] in percent, rounded up.

    Examples:
        >>> ceiled_percent(0.71201), ceiled_percent(0.25, 2)
        ('71.3%', '25.00%')
    """
    return f"{_ceiled(_digits(min(value, 1.0)) * 100, decimals):.{decimals}f}%"


def ceiled_digits(value: float, digits: int = 4) -> float:
    """A positive number to some significant digits, rounded up.

    Examples:
        >>> ceiled_digits(0.0500001), ceiled_digits(1e-08)
        (0.05001, 1e-08)
    """
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(_digits(value)))


def probability(delta: float) -> str:
    """1 - delta, never rounded up: to six decimals, or as a difference where these lose some of a small delta.

    Examples:
        >>> probability(0.05), probability(0.0123456789), probability(1e-08)
        ('0.95', '0.987654', '1 - 1e-08')
    """
    exact = _digits(delta)
    if exact < _LITTLE and _ceiled(exact, 6) != exact:
        return f"1 - {ceiled_digits(delta, 3):g}"
    return remaining(delta, 6)


def remaining(delta: float, decimals: int) -> str:
    """1 - delta to some decimals, rounded down, 0 for a delta above 1.

    Examples:
        >>> remaining(0.05, 4), remaining(0.1234567, 4), remaining(1.5, 4)
        ('0.95', '0.8765', '0')
    """
    return f"{(1 - _ceiled(_digits(min(delta, 1.0)), decimals)).normalize():f}"


def _digits(value: float) -> Decimal:
    """A float as the shortest decimal that reads back as it."""
    return Decimal(repr(float(value)))


def _ceiled(value: Decimal, decimals: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING)
