"""Near-copies of samples: rounded, rescaled, normalised, flipped, turned, moved or laid out in another way.

A hash of contents sees none of them. Each sample gets a few numbers that these changes leave alone, the moments of its
standardised values; neighbours in these numbers are candidates, found in a tree at a cost of n log n, and a candidate
counts only if its values are, channel by channel, a linear function of the other's. Images that were moved by a few
pixels are found by `shifts`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from flatminima.certification.division.layout import Layout, layouts
from flatminima.certification.division.reading import FEWEST_VALUES, Floats, chunks, flat_rows, single_tensors
from flatminima.certification.division.shifts import Images, find_shifted
from flatminima.core.samples import Samples, leaves

_FEW_LEVELS, _FEWEST_OTHER = 8, 16  # distinct values of a row, or values unlike its most frequent, that tell it apart
_CORRELATION = 0.9995  # of a near-copy's values with the original's, in each channel; bfloat16 leaves 0.9999
_BEYOND_MEAN = 0.98  # the same after the mean of each position is taken off, which all samples have in common
_RADIUS = 0.05  # between moments, in their standard deviations
_NEIGHBOURS = 4  # candidates for each sample
_VERIFIED = 2_000  # pairs at a time
_CHANCE = 1e-3  # expected number of samples that pass the ratio test by chance
_INTRINSIC = 8  # dimensions that real data are taken to have at least, for the ratio test
_PROJECTIONS = 8
_ROUNDING = 1e-5  # of a mean, below which the spread of float32 values is their rounding


@dataclass(frozen=True)
class Copies:
    """Pairs of samples of which one is the other in another form.

    Attributes:
        pairs: (m, 2) indices, into the samples and into the others (or the samples again).
        kinds: of each pair. unchecked: why they were not looked for, "" where they were.
    """

    pairs: Tensor
    kinds: tuple[str, ...]
    unchecked: str = ""

    @classmethod
    def none(cls, unchecked: str = "") -> Copies:
        return cls(torch.empty(0, 2, dtype=torch.int64), (), unchecked)

    @property
    def evidence(self) -> str:
        """Copies recognised, in words for the reader; "" for none."""
        if not self.kinds:
            return ""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(self.kinds).items()))
        return f"{len(self.kinds)} pairs of near-copies ({kinds})"


def find_copies_within(samples: Samples) -> Copies:
    """Near-copies among the samples themselves; equal inputs are none."""
    return _found(samples, None)


def find_copies(samples: Samples, others: Samples) -> Copies:
    """Near-copies of samples among others; equal inputs are none."""
    return _found(samples, others)


def _found(samples: Samples, others: Samples | None) -> Copies:
    first, second = samples, samples if others is None else others
    shapes = [tuple(tuple(t.shape[1:]) for t in leaves(s.take(torch.tensor([0]))[0])) for s in (first, second)]
    sizes = [sum(math.prod(shape) for shape in of) for of in shapes]
    if sizes[0] != sizes[1]:
        return Copies.none("inputs of different sizes")
    if all(_tokens(s) for s in (first, second)):
        return Copies.none("integer inputs are compared as they are")
    found: dict[tuple[int, int], str] = {}
    for mine, theirs in layouts(*shapes):
        a = _Set.of(first, mine)
        b = a if others is None else _Set.of(second, theirs)
        if sizes[0] >= FEWEST_VALUES:
            _by_moments(a, b, others is None, found)
        if others is not None and sizes[0] >= 2:
            _by_columns(a, b, found)
        _by_windows(a, b, found)
    for pair, kind in _found_in_tensors(first, None if others is None else second, shapes):
        found.setdefault(pair, kind)
    if not found:
        return Copies.none()
    pairs = sorted(found)
    return Copies(torch.tensor(pairs), tuple(found[p] for p in pairs))


def _found_in_tensors(
    first: Samples, second: Samples | None, shapes: Sequence[tuple[tuple[int, ...], ...]]
) -> Iterator[tuple[tuple[int, int], str]]:
    """Pairs of which one tensor is a near-copy: a picture in another form beside an age of its own."""
    if shapes[0] != shapes[1]:
        return
    mine = single_tensors(first)
    theirs = mine if second is None else single_tensors(second)
    for one, two in zip(mine, theirs, strict=True):
        copies = _found(one, None if second is None else two)
        yield from zip(map(tuple, copies.pairs.tolist()), copies.kinds, strict=True)


def _tokens(samples: Samples) -> bool:
    """Whether the inputs are identifiers, of which no arithmetic is meaningful."""
    kinds = [t.dtype for t in leaves(samples.take(torch.tensor([0]))[0])]
    return all(not k.is_floating_point and k != torch.uint8 for k in kinds)


@dataclass(frozen=True, eq=False)
class _Set:
    """Distinct inputs of a set with what they are searched by.

    Attributes:
        indices: (k,) of the first of each distinct input. hashes: theirs. features: (k, f) moments, NaN for rows
            that are too plain. mean, spread: (d,) of each position, in the layout's order.
    """

    samples: Samples
    layout: Layout
    indices: np.ndarray[Any, np.dtype[np.int64]]
    hashes: np.ndarray[Any, np.dtype[np.uint64]]
    features: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    spread: np.ndarray[Any, Any]

    @classmethod
    def of(cls, samples: Samples, layout: Layout) -> _Set:
        hashes = samples.input_hashes
        indices = np.sort(np.unique(hashes, return_index=True)[1])
        features, total, square = [], 0.0, 0.0
        for _, x in chunks(samples, torch.from_numpy(indices)):
            rows = layout.canonical(flat_rows(x))
            features.append(_moments(rows, layout))
            total = total + rows.sum(0, dtype=np.float64)
            square = square + np.square(rows, dtype=np.float64).sum(0)
        mean = np.asarray(total) / len(indices)
        spread = np.sqrt(np.maximum(np.asarray(square) / len(indices) - mean**2, 0.0))
        spread[spread <= _ROUNDING * np.abs(mean)] = 0.0
        return cls(samples, layout, indices, hashes[indices], np.concatenate(features), mean, spread)

    def rows(self, places: np.ndarray[Any, Any]) -> Floats:
        """Distinct inputs at `places`, as rows in the layout's order."""
        return self.layout.canonical(flat_rows(self.samples.take(torch.from_numpy(self.indices[places]))[0]))


def _moments(rows: Floats, layout: Layout) -> np.ndarray[Any, Any]:
    """Moments of each row's standardised values and of where they lie, (k, 9) or, with channels, twice as many."""
    z = rows.reshape(len(rows), layout.channels, -1) - rows.reshape(len(rows), layout.channels, -1).mean(
        2, keepdims=True
    )
    deviation = z.std(2, keepdims=True)
    z /= np.where(deviation > 0, deviation, 1.0)
    size, square, weights = np.abs(z), z * z, layout.weights
    found = np.stack(
        [
            np.log1p((square * square).mean(2)),
            np.abs((square * z).mean(2)),
            size.mean(2),
            np.sqrt(size).mean(2),
            np.log1p(np.abs((square * square * z).mean(2))),
            *np.moveaxis(np.abs(z @ weights), 2, 0),
            *np.moveaxis(square @ weights, 2, 0),
        ],
        2,
    )
    out = found.mean(1) if layout.channels == 1 else np.concatenate([found.mean(1), found.std(1)], 1)
    out = out.astype(np.float64)
    out[_plain(rows)] = np.nan
    return out


def _plain(rows: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows of few levels, nearly all of one: linear functions of many others, as one-hot codes are."""
    ordered = np.sort(rows, 1)
    new = ordered[:, 1:] != ordered[:, :-1]
    levels = 1 + new.sum(1)
    middle = ordered[:, ordered.shape[1] // 2][:, None]
    return np.asarray((levels < _FEW_LEVELS) & ((rows != middle).sum(1) < _FEWEST_OTHER))


def _by_moments(a: _Set, b: _Set, within: bool, found: dict[tuple[int, int], str]) -> None:
    """Pairs whose moments agree and whose values are a linear function of each other's."""
    left, right = (np.flatnonzero(~np.isnan(s.features[:, 0])) for s in (a, b))
    if len(left) == 0 or len(right) == 0:
        return
    scale = np.concatenate([a.features[left], b.features[right]]).std(0)
    scale[scale == 0] = 1.0
    tree = cKDTree(b.features[right] / scale)
    near = _NEIGHBOURS + int(within)
    places = tree.query(a.features[left] / scale, k=near, distance_upper_bound=_RADIUS, p=math.inf)[1]
    i, j = np.repeat(left, near), places.reshape(-1)
    i, j = i[j < len(right)], right[j[j < len(right)]]
    keep = a.hashes[i] != b.hashes[j]
    if within:
        keep &= i != j
        i, j = np.minimum(i, j), np.maximum(i, j)
    i, j = np.unique(np.stack([i[keep], j[keep]], 1), axis=0).T
    for start in range(0, len(i), _VERIFIED):
        p, q = i[start : start + _VERIFIED], j[start : start + _VERIFIED]
        _verify(a, b, p, q, found)


def _verify(
    a: _Set, b: _Set, p: np.ndarray[Any, Any], q: np.ndarray[Any, Any], found: dict[tuple[int, int], str]
) -> None:
    """Add the candidates (p, q) that are near-copies in some position."""
    u, v = a.rows(p), b.rows(q)
    spread = np.where(a.spread > 0, a.spread, np.inf)
    for name, turned in b.layout.turns(v):
        fitted, least = _linear(u, turned, a.layout.channels)
        beyond = _correlation((u - a.mean) / spread, (fitted - a.mean) / spread)
        for k in np.flatnonzero((least >= _CORRELATION) & (beyond >= _BEYOND_MEAN)):
            same = np.abs(turned[k] - u[k]).max() <= 0.02 * np.abs(u[k]).max()
            kind = name or ("rounded" if same else "rescaled")
            found.setdefault((int(a.indices[p[k]]), int(b.indices[q[k]])), kind)


def _linear(u: Floats, v: Floats, channels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """v fitted to u by a linear function in each channel, (k, d), and the least |correlation| of a channel, (k,)."""
    x, y = (r.reshape(len(r), channels, -1).astype(np.float64) for r in (v, u))
    xm, ym = x.mean(2, keepdims=True), y.mean(2, keepdims=True)
    xx, yy = ((x - xm) ** 2).sum(2, keepdims=True), ((y - ym) ** 2).sum(2, keepdims=True)
    xy = ((x - xm) * (y - ym)).sum(2, keepdims=True)
    fitted = ym + (x - xm) * xy / np.where(xx > 0, xx, 1.0)
    both = np.sqrt(xx * yy)
    size = np.where(both > 0, np.abs(xy) / np.where(both > 0, both, 1.0), (xx == yy).astype(np.float64))
    return fitted.reshape(len(u), -1), size[:, :, 0].min(1)


def _correlation(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cosine of rows, (k,)."""
    norms = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.asarray((x * y).sum(1) / np.where(norms > 0, norms, 1.0))


def _by_windows(a: _Set, b: _Set, found: dict[tuple[int, int], str]) -> None:
    """Pairs of images of which one is the other moved by a few pixels."""
    one, two = (Images.of(s.rows, s.hashes, (s.layout.channels, s.layout.height, s.layout.width)) for s in (a, b))
    for p, q, kind in find_shifted(one, two):
        i, j = int(a.indices[p]), int(b.indices[q])
        found.setdefault((min(i, j), max(i, j)) if a is b else (i, j), kind)


def _by_columns(a: _Set, b: _Set, found: dict[tuple[int, int], str]) -> None:
    """Pairs that agree once every position is standardised over its own set: columns that were rescaled one by one.

    A sample passes if its nearest other is so much nearer than the second that in r dimensions it would be so by chance
    with probability ratio^r, with an expected number of `_CHANCE` for all of them.
    """
    if len(a.indices) < 8 or len(b.indices) < 8:
        return
    moving = (a.spread > 0) & (b.spread > 0)
    count = int(moving.sum())
    if count < 2:
        return
    low = min(count, _PROJECTIONS)
    directions = np.random.default_rng(0).standard_normal((count, low)) / math.sqrt(count)
    if low == count:
        directions = np.eye(low)

    def standard(which: int, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        s = (a, b)[which]
        return np.asarray((s.rows(places) - s.mean)[:, moving] / s.spread[moving])

    def projected(which: int) -> np.ndarray[Any, Any]:
        k = len((a, b)[which].indices)
        parts = np.array_split(np.arange(k), max(1, k // _VERIFIED))
        return np.concatenate([standard(which, part) @ directions for part in parts])

    left = projected(0)
    near = cKDTree(projected(1)).query(left, k=_NEIGHBOURS)[1]
    limit = (_CHANCE / len(left)) ** (1 / min(low, _INTRINSIC))
    for part in np.array_split(np.arange(len(left)), max(1, len(left) // (_VERIFIED // _NEIGHBOURS))):
        v = standard(1, near[part].reshape(-1)).reshape(len(part), _NEIGHBOURS, -1)
        distance = np.linalg.norm(v - standard(0, part)[:, None], axis=2)
        nearest = near[part][np.arange(len(part)), distance.argmin(1)]
        distance.sort(1)
        passed = (distance[:, 1] > 0) & (distance[:, 0] < limit * distance[:, 1])
        for k in np.flatnonzero(passed & (a.hashes[part] != b.hashes[nearest])):
            found.setdefault((int(a.indices[part[k]]), int(b.indices[nearest[k]])), "columns rescaled")
