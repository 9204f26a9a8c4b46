"""Splits as they are asked for: train, train[-10%:], validation by any of its names, parts joined by +."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import DataError, UnknownName

_VALIDATION = ("validation", "valid", "val", "dev")


def rows_of(splits: Mapping[str, NDArray[np.int64]], wanted: str, source: str) -> list[tuple[str, NDArray[np.int64]]]:
    """Name of the split and rows of it, for each part of what is asked for.

    Args:
        splits: rows of each split by its name in the source.
        wanted: "train", "test[:10%]", "train+validation", ...
        source: for messages.

    Raises:
        UnknownName: no such split. DataError: a slice that is not understood.

    Examples:
        >>> [(name, rows.tolist()) for name, rows in rows_of({"train": np.arange(10)}, "train[:2]+train[-10%:]", "x")]
        [('train', [0, 1]), ('train', [9])]
    """
    return [_part(splits, part, source) for part in wanted.split("+")]


def _part(splits: Mapping[str, NDArray[np.int64]], part: str, source: str) -> tuple[str, NDArray[np.int64]]:
    name, _, bounds = part.strip().partition("[")
    if name not in splits and name in _VALIDATION:
        name = next((alias for alias in _VALIDATION if alias in splits), name)
    if name not in splits:
        remedy = f"{source} has {' and '.join(splits)}"
        if len(splits) == 1:
            only = next(iter(splits))
            remedy += f"; {only}[80%:] is a part of it"
        raise UnknownName("split", name, splits, remedy)
    rows = splits[name]
    if not bounds:
        return name, rows
    match = re.fullmatch(r"(-?\d+%?)?:(-?\d+%?)?\]", bounds)
    if match is None:
        raise DataError(f"the split {part!r} is not understood: write train[:100], train[10:20] or train[:10%]")

    def position(text: str | None) -> int | None:
        if text is None:
            return None
        return round(len(rows) * int(text[:-1]) / 100) if text.endswith("%") else int(text)

    return name, rows[position(match[1]) : position(match[2])]
