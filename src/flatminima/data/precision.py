"""Stored numbers as the float32 or int64 that a network takes: what these do not hold is refused, not bent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import DataError

_LARGEST = float(np.finfo(np.float32).max)
_EXACT = 2.0**53  # whole numbers beyond are not all float64's

Rows = Sequence[int] | NDArray[np.int64]


def as_float32(values: Any, column: str, where: str, rows: Rows | None = None) -> NDArray[np.float32]:
    """An array (n, ...) of numbers as float32; NaN and Inf stay what they are.

    Args:
        values: one entry a sample. column, where: names for messages.
        rows: number of each sample in its source; None: its place.

    Raises:
        DataError: a finite number beyond float32's range, 3.4e38. TypeError, ValueError: no numbers.
    """
    with np.errstate(over="ignore"):
        try:
            array = np.ascontiguousarray(values, dtype=np.float32)
        except OverflowError:  # an int of hundreds of digits
            array = np.array([_float(v) for v in values], dtype=np.float32)
    infinite = np.flatnonzero(np.isinf(array).reshape(len(array), -1).any(1)) if len(array) else np.zeros(0, np.int64)
    for place in infinite.tolist():
        given = np.asarray(values[place], dtype=object).reshape(-1).tolist()
        beyond = [v for v in given if abs(v) != math.inf and abs(_float(v)) > _LARGEST]
        if beyond:
            raise DataError(
                f"row {place if rows is None else rows[place]} of {where} has {_shown(beyond[0])} in {column!r}, "
                "beyond float32's 3.4e38: rescale the column, or drop the row"
            )
    return array


def as_int64(array: NDArray[Any], column: str, where: str, rows: Rows | None = None) -> NDArray[np.int64]:
    """Whole numbers (n, ...) of any kind as int64.

    Raises:
        DataError: a fraction, or a number that int64 does not hold, or float64 not exactly.
    """
    if array.dtype.kind in "bi":
        return array.astype(np.int64)
    if array.dtype == object:
        good = np.array([abs(v) <= _EXACT and v == int(v) for v in array.reshape(-1).tolist()], dtype=bool)
    else:
        good = (array <= np.iinfo(np.int64).max) if array.dtype.kind == "u" else (np.abs(array) <= _EXACT)
        good &= array == np.round(array)
    bad = np.flatnonzero(~good.reshape(-1))
    if len(bad):
        value, place = array.reshape(-1)[bad[0]], bad[0] * len(array) // array.size
        raise DataError(
            f"row {place if rows is None else rows[place]} of {where} has {_shown(value)} in {column!r}, which is no "
            "class and no token"
        )
    return array.astype(np.int64)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: Any) -> str:
    return f"{_float(value):.3g}" if abs(_float(value)) > _EXACT else f"{value}"
