"""Comma- and tab-separated text as columns of numbers or strings, a block of rows at a time."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import DataError

_ROWS = 10_000  # of a block: the cells of one block are strings in memory, those of the others numbers
_LONGEST = (1 << 31) - 1  # characters of a cell; a C long holds no more on every system
_MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "#NA")
)
_TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}

_Part = NDArray[Any] | list[str | None]


def read_columns(path: Path, separator: str) -> dict[str, Any]:
    """Columns by name, the first line's: int64 or float64 (NaN where a cell is empty), bool, or a list (None there).

    A line with fewer cells than the first has empty ones at its end.

    Raises:
        DataError: no text in UTF-8, an open quote, a line of more cells than the first names.
    """
    text: set[int] = set()  # columns of blocks of numbers and blocks of words: read again as words
    while True:
        names, parts, mixed = _pass(path, separator, text)
        if not mixed:
            return {name: _whole(column) for name, column in zip(names, parts, strict=True)}
        text |= mixed


def _pass(path: Path, separator: str, text: set[int]) -> tuple[list[str], list[list[_Part]], set[int]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file, _fields_of_any_length():
            rows = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            names = _distinct(next((row for row in rows if row), []))
            parts: list[list[_Part]] = [[] for _ in names]
            for block in _blocks(rows, len(names), path):
                for i, cells in enumerate(zip(*block, strict=True)):
                    numbers = None if i in text else _numbers(cells)
                    parts[i].append([None if c in _MISSING else c for c in cells] if numbers is None else numbers)
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} is no regular CSV: line {rows.line_num}: {error}") from None
    return names, parts, {i for i, column in enumerate(parts) if len({type(part) for part in column}) > 1}


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    limit = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _distinct(names: list[str]) -> list[str]:
    """Names as pandas makes them: "Unnamed: 0" of an empty cell, "a.1" of a second "a"."""
    found, seen = dict[str, None](), Counter[str]()
    for i, name in enumerate(names):
        own = name = name or f"Unnamed: {i}"
        while own in found:
            seen[name] += 1
            own = f"{name}.{seen[name]}"
        found[own] = None
    return list(found)


def _blocks(rows: Any, width: int, path: Path) -> Iterator[list[list[str]]]:
    filled = (row for row in rows if row)
    while block := list(islice(filled, _ROWS)):
        for row in block:
            if len(row) > width:
                raise DataError(
                    f"{path} is no regular CSV: its first line names {width} columns, a line of the {len(block)} that "
                    f"end with line {rows.line_num} has {len(row)} cells, beginning {','.join(row)[:40]!r}"
                )
            row.extend([""] * (width - len(row)))
        yield block


def _numbers(cells: tuple[str, ...]) -> NDArray[Any] | None:
    """The cells as int64, else float64; None where one is neither a number nor missing."""
    if "_" in "".join(cells):  # which Python would read as digits grouped
        return None
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([np.nan if cell in _MISSING else float(cell) for cell in cells])
    except ValueError:
        return None


def _whole(parts: list[_Part]) -> Any:
    """One column: float64 if any part is, words if one is."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays) if arrays else np.zeros(0)
    words = [cell for part in parts for cell in part]
    if {word for word in words if word is not None} <= _TRUTH.keys():
        truth = [None if word is None else _TRUTH[word] for word in words]
        return truth if None in truth else np.array(truth, dtype=bool)
    return words
