"""Effects with intervals for runs in blocks (a seed, a data set): slopes, paired differences, two lines, equivalence.

Every block has its own level, so that what differs between seeds is no noise. Where the effect itself differs between
seeds beyond the residual (an F test at 25 %), the interval is Student's over the seeds' own effects, of which the
residual's would be too narrow. An interval has a width: of values without spread nothing is inferred.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, f, nct, t

from flatminima.errors import Undefined, UsageError

_Array = NDArray[np.float64]
_Levels = NDArray[np.int64]
LEVEL = 0.05
_POOLING = (
    0.25  # of the F test that pools blocks: at 0.05 intervals of effects that vary cover 85 % only (Bancroft 1964)
)
_SPREADLESS = 1e-9  # residual deviation, relative to the values, below which it is rounding
_FEW_BLOCKS = 3  # from which effects of blocks are compared


@dataclass(frozen=True)
class Effect:
    """A slope or a difference with its standard error.

    Attributes:
        value: on the scale of the claim. stderr: positive. df: degrees of freedom of the standard error.
        runs: used. blocks: seeds or data sets. varies: True where the interval is over the blocks' own effects.
    """

    value: float
    stderr: float
    df: float
    runs: int
    blocks: int
    varies: bool = False

    def interval(self, confidence: float = 1 - LEVEL) -> tuple[float, float]:
        """Student's interval at the given confidence in (0, 1)."""
        half = float(t.ppf(0.5 + confidence / 2, self.df)) * self.stderr
        return self.value - half, self.value + half

    def p_above(self, place: float = 0.0) -> float:
        """One-sided p of "the effect is at most `place`": small where it lies above."""
        return float(t.sf((self.value - place) / self.stderr, self.df))

    def p_below(self, place: float = 0.0) -> float:
        """One-sided p of "the effect is at least `place`": small where it lies below."""
        return float(t.cdf((self.value - place) / self.stderr, self.df))

    def p_value(self) -> float:
        """Two-sided p of "there is no effect"."""
        return 2 * min(self.p_above(), self.p_below())

    def equivalent(self, margin: float) -> float:
        """p of two one-sided tests of "the effect is at least `margin` in size": small where it is smaller than that.

        Raises:
            UsageError: a margin that is not positive.
        """
        if not margin > 0:
            raise UsageError(f"got a margin of {margin}; equivalence needs a positive one")
        return max(self.p_below(margin), self.p_above(-margin))

    def power(self, effect: float) -> float:
        """Chance of a two-sided p below 5 % if the effect were so large."""
        edge, shift = float(t.ppf(1 - LEVEL / 2, self.df)), abs(effect) / self.stderr
        return float(nct.sf(edge, self.df, shift) + nct.cdf(-edge, self.df, shift))

    def detectable(self, power: float = 0.8) -> float:
        """Size of the effect that is found with the given chance, to first order."""
        return float(t.ppf(1 - LEVEL / 2, self.df) + t.ppf(power, self.df)) * self.stderr


@dataclass(frozen=True)
class Vertex:
    """Two lines that meet: the slopes `before` and `after` the `place` that fits best, and the places that fit too."""

    place: float
    low: float
    high: float
    before: Effect
    after: Effect


def slope(x: Sequence[float], y: Sequence[float], blocks: Sequence[Hashable]) -> Effect:
    """Slope of y along x by least squares, a level a block.

    Args:
        x, y: one of each a run, finite. blocks: a seed or a data set a run.

    Returns:
        The Effect, in units of y per unit of x.

    Raises:
        UsageError: lengths differ, or a value that is not finite.
        Undefined: too few runs, an x that does not vary within a block, or values without spread.

    Examples:
        >>> slope([0, 1, 2, 0, 1, 2], [0, 1.1, 2, 5, 5.9, 7], [1, 1, 1, 2, 2, 2]).value
        1.0
    """
    xs, ys, groups = _grouped(x, y, blocks)
    columns = {"x": xs}
    return _effect(columns, "x", ys, groups)


def difference(
    values: Sequence[float], baseline: Sequence[float], blocks: Sequence[Hashable], strata: Sequence[Hashable] = ()
) -> Effect:
    """Mean of values minus baseline over pairs.

    Args:
        values, baseline: pairs, finite. blocks: a seed a pair.
        strata: a setting a pair, such as a size of the data, each with its own mean difference; none: all alike.

    Returns:
        The Effect; with strata the mean over pairs, its error from what is left within strata.

    Raises:
        UsageError: lengths differ, or a value that is not finite.
        Undefined: fewer than two pairs more than strata, or pairs that all differ alike.
    """
    ds = np.asarray(values, float) - np.asarray(baseline, float) if len(values) == len(baseline) else None
    settings = strata or [0] * len(values)
    if ds is None or len(blocks) != len(values) or len(settings) != len(values):
        raise UsageError(f"got {len(values)} values, {len(baseline)} baselines, {len(blocks)} blocks; give pairs")
    if not np.isfinite(ds).all():
        raise UsageError("got NaN or Inf among the values to compare; leave such runs out")
    levels = _levels(settings)
    n, count = len(ds), levels.max(initial=-1) + 1
    if n - count < 1:
        raise Undefined(f"{n} pairs in {count} settings; an interval needs more pairs than settings")
    mean = float(ds.mean())
    residual = ds - np.array([ds[levels == level].mean() for level in range(count)])[levels]
    _require_spread(residual, ds)
    rss, df = float(residual @ residual), n - count
    seeds = _levels(blocks)
    own = [residual[seeds == s] for s in range(seeds.max() + 1)]
    used = df - len(own) + 1
    explained = sum(float(part.sum()) ** 2 / len(part) for part in own)
    if len(own) >= _FEW_BLOCKS and used > 0 and _differ(explained, len(own) - 1, rss - explained, used):
        means = np.array([mean + part.mean() for part in own])
        return _over_blocks(means, n)
    return Effect(mean, math.sqrt(rss / df / n), df, n, len(own))


def two_lines(x: Sequence[float], y: Sequence[float], blocks: Sequence[Hashable]) -> Vertex:
    """Two lines, a level a block, that meet at one of the x between the first two and the last two.

    The place is that of the least squares; `low` and `high` are the ends of those that an F test at 5 % does not
    reject. Both slopes are of that place.

    Raises:
        As `slope`; Undefined also: fewer than four different x.
    """
    xs, ys, groups = _grouped(x, y, blocks)
    places = np.unique(xs)[1:-1]
    if len(places) < 2:
        raise Undefined(f"{len(places) + 2} different x; two lines need four")
    tried = []
    for place in places:
        columns = {"before": np.minimum(xs - place, 0), "after": np.maximum(xs - place, 0)}
        _, residual, _ = _solve(columns, ys, groups)
        tried.append((float(residual @ residual), float(place), columns))
    least, place, columns = min(tried, key=lambda found: found[0])
    df = len(xs) - groups.max() - 3
    if df < 1:
        raise Undefined(f"{len(xs)} runs; two lines need more than {groups.max() + 3}")
    edge = least * (1 + float(f.ppf(1 - LEVEL, 1, df)) / df)
    fit = [p for rss, p, _ in tried if rss <= edge]
    before, after = (_effect(columns, name, ys, groups) for name in ("before", "after"))
    return Vertex(place, min(fit), max(fit), before, after)


def proportion(hits: int, runs: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; of 3 in 3 it is 0.29 to 1."""
    low = 0.0 if hits == 0 else float(beta.ppf(LEVEL / 2, hits, runs - hits + 1))
    high = 1.0 if hits == runs else float(beta.ppf(1 - LEVEL / 2, hits + 1, runs - hits))
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: the chance of one false finding among all is at most the level.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order, adjusted, worst = sorted(range(len(p_values)), key=lambda i: p_values[i]), [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def _grouped(x: Sequence[float], y: Sequence[float], blocks: Sequence[Hashable]) -> tuple[_Array, _Array, _Levels]:
    """Arrays, and each run's block as a number; blocks of one run say nothing of a slope and are left out."""
    if not len(x) == len(y) == len(blocks):
        raise UsageError(f"got {len(x)} x, {len(y)} y, {len(blocks)} blocks; give one of each a run")
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise UsageError("got NaN or Inf among the values; leave such runs out")
    sizes = {block: list(blocks).count(block) for block in set(blocks)}
    kept = np.array([sizes[block] > 1 for block in blocks], bool)
    if not kept.any():
        raise Undefined(f"{len(xs)} runs and no block of two")
    return xs[kept], ys[kept], _levels([b for b, keep in zip(blocks, kept, strict=True) if keep])


def _levels(names: Sequence[Hashable]) -> _Levels:
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], np.int64)


def _solve(columns: dict[str, _Array], y: _Array, groups: _Levels) -> tuple[_Array, _Array, _Array]:
    """Least squares with a level a group: coefficients, residuals, and the inverse of the normal matrix."""

    def centred(values: _Array) -> _Array:
        means = np.bincount(groups, values) / np.bincount(groups)
        return np.asarray(values - means[groups])

    design = np.stack([centred(values) for values in columns.values()], 1)
    normal = design.T @ design
    if np.linalg.matrix_rank(normal) < len(columns):
        raise Undefined("x does not vary within a block")
    inverse = np.asarray(np.linalg.inv(normal), np.float64)
    coefficients = inverse @ design.T @ centred(y)
    return coefficients, centred(y) - design @ coefficients, inverse


def _effect(columns: dict[str, _Array], name: str, y: _Array, groups: _Levels) -> Effect:
    """The coefficient of one column; over the blocks' own where those differ."""
    place, count = list(columns).index(name), int(groups.max()) + 1
    coefficients, residual, inverse = _solve(columns, y, groups)
    df = len(y) - count - len(columns)
    if df < 1:
        raise Undefined(f"{len(y)} runs; an interval needs {count + len(columns) + 1}")
    _require_spread(residual, y)
    rss, own, within = float(residual @ residual), [], 0.0
    for block in range(count) if count >= _FEW_BLOCKS else ():
        inside = groups == block
        try:
            part, left, _ = _solve({k: v[inside] for k, v in columns.items()}, y[inside], np.zeros(inside.sum(), int))
        except Undefined:
            break
        own.append(float(part[place]))
        within += float(left @ left)
    free = len(y) - count * (1 + len(columns))
    if len(own) == count and count >= _FEW_BLOCKS and free > 0:
        apart = (count - 1) * len(columns)
        if _differ(rss - within, apart, within, free):
            return _over_blocks(np.array(own), len(y))
    error = math.sqrt(rss / df * inverse[place, place])
    return Effect(float(coefficients[place]), error, df, len(y), count)


def _over_blocks(effects: _Array, runs: int) -> Effect:
    n = len(effects)
    return Effect(float(effects.mean()), float(effects.std(ddof=1)) / math.sqrt(n), n - 1, runs, n, varies=True)


def _differ(between: float, df_between: int, within: float, df_within: int) -> bool:
    """F test: do the blocks differ beyond what is left within?"""
    if within <= 0:
        return between > 0
    return float(f.sf(between / df_between / (within / df_within), df_between, df_within)) < _POOLING


def _require_spread(residual: _Array, values: _Array) -> None:
    if float(np.abs(residual).max(initial=0.0)) <= _SPREADLESS * max(float(np.abs(values).max(initial=0.0)), 1e-300):
        raise Undefined("the values have no spread to infer from")
