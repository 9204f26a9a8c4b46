"""Samples that repeat but for a few columns, or but for noise in rows of a few values.

Copies with a number, a date or a measurement of their own are unlike as wholes, so what is left without such columns is
compared. Rows of fewer than 12 values have no moments to be recognised by (`copies`): near-copies of them lie in tight
groups, each far from all other rows, which independent draws from a density do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from flatminima.certification.division.reading import CHUNK, Floats, Indices, Read, RowHashes, row_hashes

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_LOOKED_AT = 1_000  # rows that a column is judged by
_INJECTIVE = 0.9  # share of distinct values in a column that tells rows apart
_FEWEST_KEPT = 3  # columns without which nothing is compared
_FEWEST_TO_HALVE = 6  # columns of continuous values from which on halves of them are compared
_SPLITS = 4  # of the columns into two halves, at random

_QUERIES = 300  # rows that are looked around
_MOST_NEAR = 2_048  # of their neighbours
_FEWEST_GROUPS = 16  # tight groups, below which they may be classes
_FEWEST_ROWS = 40
_GAP = 0.2  # distance within a group over that to the next row beyond it
CROWDED = 0.4  # share of rows with such a gap; in one dimension 0.25 have one by chance, in two 0.05, on a curve 0.25


def halves(d: int) -> list[Mask]:
    """Random halves of d columns, and what they leave; the same ones in every run."""
    generator = np.random.default_rng(0)
    out = []
    for _ in range(_SPLITS):
        mask = np.zeros(d, dtype=bool)
        mask[generator.permutation(d)[: (d + 1) // 2]] = True
        out += [mask, ~mask]
    return [mask for mask in out if mask.any()]


def lattice(values: np.ndarray[Any, Any]) -> bool:
    """Whether sorted distinct values are decimals of at most three places, or steps of one size."""
    for scale in (1.0, 10.0, 100.0, 1000.0):
        scaled = values * scale
        if np.abs(scaled - np.round(scaled)).max() < 1e-3 * min(1.0, scale / 10):
            return True
    gaps = np.diff(values)
    if len(gaps) == 0:
        return True
    step = gaps.min()
    if values[-1] - values[0] > 100 * len(values) * step:
        return False
    ratios = gaps / step
    return bool(np.abs(ratios - np.round(ratios)).max() < 0.02)


@dataclass(frozen=True)
class ColumnKinds:
    """Judgement on columns by some of the rows.

    Attributes:
        injective: (d,) nearly every row has a value of its own. even: (d,) the values are `lattice`.
    """

    injective: Mask
    even: Mask

    @classmethod
    def of(cls, read: Read, rows: Indices) -> ColumnKinds:
        """Judge them by at most 1,000 of the rows."""
        places = np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(np.int64)
        sample = read(rows[places])
        ordered = np.sort(sample, axis=0)
        distinct = 1 + (ordered[1:] != ordered[:-1]).sum(0)
        even = [lattice(np.unique(column).astype(np.float64)) for column in sample.T]
        return cls(distinct >= _INJECTIVE * len(sample), np.array(even, dtype=bool))


def without_columns(read: Read, n: int) -> Iterator[tuple[RowHashes, Read]]:
    """Hashes of n rows without some columns, and those rows, where any of them repeat.

    The columns left out are those in which all rows differ, a quarter of them at most; or a random half of those that
    hold continuous values, as copies that differ in a few of these are equal in some half.
    """
    masks = _masks(ColumnKinds.of(read, np.arange(n)))
    parts: list[list[RowHashes]] = [[] for _ in masks]
    for at in np.array_split(np.arange(n), -(-n // CHUNK)) if masks else ():
        rows = read(at)
        for mask, part in zip(masks, parts, strict=True):
            part.append(row_hashes(rows[:, mask]))
    for mask, part in zip(masks, parts, strict=True):
        hashes = np.concatenate(part)
        if len(np.unique(hashes)) < n:
            yield hashes, lambda at, mask=mask: read(at)[:, mask]  # type: ignore[misc]


def _masks(columns: ColumnKinds) -> list[Mask]:
    d, found = len(columns.injective), []
    numbered = int(columns.injective.sum())
    if 1 <= numbered <= max(1, d // 4) and d - numbered >= _FEWEST_KEPT:
        found.append(~columns.injective)
    continuous = np.flatnonzero(~columns.even)
    if len(continuous) >= _FEWEST_TO_HALVE:
        for half in halves(len(continuous)):
            mask = np.zeros(d, dtype=bool)
            mask[continuous[half]] = True
            found.append(mask)
    return found


def crowded(rows: Floats) -> float:
    """Share of distinct rows that lie in a tight group: the next row beyond is at five times the group's distance.

    Args:
        rows: (n, d); every column is standardised.

    Returns:
        Of 300 rows at random the share for which some k, at most a sixteenth of all, has d_k <= d_(k+1) / 5, where d_k
        is the distance to the k-th neighbour; 0.0 for fewer than 40.

    Examples:
        >>> draw = np.random.default_rng(0).standard_normal
        >>> crowded(draw((500, 4)).astype(np.float32)) < 0.1
        True
        >>> crowded((draw((50, 4)).repeat(10, 0) + 0.01 * draw((500, 4))).astype(np.float32)) > 0.9
        True
    """
    spread = rows.std(0, dtype=np.float64)
    moving = spread > 0
    points = np.unique((rows[:, moving] - rows[:, moving].mean(0)) / spread[moving], axis=0)
    if len(points) < _FEWEST_ROWS:
        return 0.0
    asked = np.random.default_rng(0).permutation(len(points))[:_QUERIES]
    most = min(_MOST_NEAR, len(points) // _FEWEST_GROUPS) + 1
    distances = cKDTree(points).query(points[asked], k=most + 1)[0][:, 1:]
    return float((distances[:, :-1] <= _GAP * distances[:, 1:]).any(1).mean())
