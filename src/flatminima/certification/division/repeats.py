"""Samples that repeat, within a set or in another one: how many, and whether independent draws could repeat so.

Independent draws may repeat, where the inputs are categories, and then copies count in full. They cannot repeat as a
table does whose rows were copied: with counts too much alike (every row a hundred times), or with rows that agree in
everything or in nothing although their values are continuous.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from scipy.stats import binom, chi2, poisson
from torch import Tensor

from flatminima.certification.division.copies import Copies, find_copies
from flatminima.certification.division.partly import CROWDED, ColumnKinds, crowded, halves, without_columns
from flatminima.certification.division.reading import (
    CHUNK,
    FEWEST_VALUES,
    Floats,
    Read,
    RowHashes,
    chunks,
    counts_of,
    flat_rows,
    group_hashes,
    row_hashes,
    single_tensors,
)
from flatminima.core.samples import Samples, leaves
from flatminima.errors import DataError

IMPROBABLE = 1e-3  # probability at most under which counts are said to be those of no independent draws

_ALIKE = 0.05  # share of the repeated rows that may have a half in common with a row unlike them
_MANY_HALVES = 3  # of 2 x 4 in which repeated rows must be alone, for their repetition to be copying
_FEWEST_ROWS = 8  # distinct rows from which on halves say anything
_FEWEST_COARSE = 3  # values of a row from which on unlike ones are seldom equal in bfloat16


@dataclass(frozen=True)
class Repeats:
    """Repeated samples, counted.

    Attributes:
        n: samples. distinct: unlike in input or target. inputs: unlike in input. most: copies of the most frequent.
        p_value: of the counts, at most, whatever distribution the samples were drawn from independently.
        whole: the rows that repeat are continuous values, which independent draws do not repeat.
        identity: (n,) hashes by which they repeat: of the inputs, or, where they repeat off in their last bits, of the
            inputs in bfloat16, or of a part of them. part: which, in words; "" for the whole.
        tight: share of the rows in groups far from all others, of rows too short for near-copies to be recognised.
    """

    n: int
    distinct: int
    inputs: int
    most: int
    p_value: float
    whole: bool
    identity: RowHashes = field(repr=False, compare=False)
    part: str = ""
    tight: float = 0.0

    @property
    def even(self) -> bool:
        """The counts are more alike than those of independent draws."""
        return self.p_value < IMPROBABLE

    @property
    def dependent(self) -> bool:
        """No independent draws are like that, whichever of the rows are copies."""
        return self.even or self.tight > CROWDED

    @property
    def evidence(self) -> str:
        """The counts in words for the reader; "" where nothing repeats."""
        if self.tight > CROWDED:
            return (
                f"{self.tight:.0%} of the {self.n} samples lie in tight groups, the next sample five times as far, as "
                "copies with a little noise do"
            )
        if self.inputs == self.n:
            return ""
        of = f"inputs {self.part}".strip()
        text = f"{self.n} samples, {self.distinct} distinct ({self.inputs} {of}), the most frequent {self.most} times"
        if self.even:
            return f"{text}: counts more alike than independent draws give them (p <= {self.p_value:.1g})"
        if self.whole:
            return f"{text}: rows of continuous values, which are copies and no independent draws"
        return text


def find_repeats(samples: Samples, numbers: Tensor | None = None) -> Repeats:
    """Count what repeats, and test whether independent draws explain it; a second pass where inputs repeat.

    Args:
        numbers: (n,) of each sample's group, whose contents are counted then instead of the samples'.
    """
    inputs, coarse = samples.input_hashes, _coarse(samples)
    found = [(len(counts_of(hashes)), part, hashes) for part, hashes in _copied_rows(samples, coarse)]
    _, part, identity = min(found, key=itemgetter(0), default=(0, "", inputs))
    tested = [samples.hashes, inputs] + ([] if coarse is None else [coarse])
    if numbers is not None:
        tested = [np.array(group_hashes(t, numbers.numpy()), dtype=np.uint64) for t in tested]
    p_value = min(1.0, len(tested) * min(evenness(counts_of(t)) for t in tested))
    rows = counts_of(identity)
    counts = len(inputs), len(counts_of(samples.hashes)), len(rows), int(rows.max())
    return Repeats(*counts, p_value, bool(found), identity, part, _tight(samples, numbers))


def _copied_rows(samples: Samples, coarse: RowHashes | None) -> Iterator[tuple[str, RowHashes]]:
    """What repeats as copies do: the part of the inputs in words, "" for the whole, and hashes of it."""

    def read(at: np.ndarray[Any, Any]) -> Floats:
        return flat_rows(samples.take(torch.from_numpy(at))[0])

    if coarse is not None and _repeats(coarse) and repeat_whole(coarse, lambda at: _rounded(read(at))):
        yield "", coarse
    if _repeats(samples.input_hashes) and repeat_whole(samples.input_hashes, read):
        yield "", samples.input_hashes
    for one in single_tensors(samples):
        own = one.input_hashes
        if _repeats(own) and repeat_whole(own, lambda at, one=one: flat_rows(one.take(torch.from_numpy(at))[0])):  # type: ignore[misc]
            yield "in one of their tensors", own
    for hashes, some in without_columns(read, len(samples)):
        if repeat_whole(hashes, some):
            yield "without some columns", hashes


def _tight(samples: Samples, numbers: Tensor | None) -> float:
    """The share in tight groups, of one sample a group of the caller's, also in one tensor of several."""
    return max((_tight_rows(s, numbers) for s in (samples, *single_tensors(samples))), default=0.0)


def _tight_rows(samples: Samples, numbers: Tensor | None) -> float:
    """The same of all values; 0.0 for rows that moments recognise."""
    if not _short(samples, 1):
        return 0.0
    first = np.arange(len(samples)) if numbers is None else np.unique(numbers.numpy(), return_index=True)[1]
    return crowded(np.concatenate([flat_rows(x) for _, x in chunks(samples, torch.from_numpy(first))]))


def _repeats(hashes: RowHashes) -> bool:
    return int(counts_of(hashes).max()) > 1


def _coarse(samples: Samples) -> RowHashes | None:
    """Hashes of the inputs in bfloat16; None where moments recognise near-copies, or there are no fractions."""
    if not _short(samples, _FEWEST_COARSE):
        return None
    return np.concatenate([row_hashes(_rounded(flat_rows(x))) for _, x in chunks(samples)])


def _short(samples: Samples, least: int) -> bool:
    """Whether inputs have so many values at least, too few for moments, and fractions among them."""
    first = leaves(samples.take(torch.tensor([0]))[0])
    values = sum(t[0].numel() for t in first)
    return least <= values < FEWEST_VALUES and any(t.is_floating_point() for t in first)


def _rounded(rows: Floats) -> Floats:
    return torch.from_numpy(rows).bfloat16().float().numpy()


def evenness(counts: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """An upper bound on the probability that independent draws from any distribution repeat with counts so much alike.

    Of n ~ Poisson draws, each distinct value occurs N ~ Poisson(lambda) times, independently. Among the m values that
    occur at least t times, the number with a count in [a, b], a > t, is at most Binomial(m, q) in distribution, with
    q = max over lambda of P(a <= N <= b) / P(N >= t). Fixing n costs a factor e sqrt(n), choosing t, a, b among all a
    factor n^3.

    Args:
        counts: of each distinct value, positive.

    Examples:
        >>> evenness(np.full(60, 100)) < 1e-20
        True
        >>> evenness(np.random.default_rng(0).poisson(100.0, 60))
        1.0
    """
    n = int(counts.sum())
    if int(counts.max()) < 2:
        return 1.0
    choice = math.log(n) * 3 + 1 + 0.5 * math.log(n)
    least = 0.0
    for t in (1, 2, 4):
        kept = np.sort(counts[counts >= t])
        for share in (0.0, 0.02, 0.1, 0.25):
            inner = kept[math.floor(share * len(kept)) : len(kept) - math.floor(share * len(kept))]
            if len(inner) == 0 or int(inner[-1]) <= t:
                continue
            a, b = max(int(inner[0]), t + 1), int(inner[-1])
            inside = int(((kept >= a) & (kept <= b)).sum())
            least = min(least, float(binom.logsf(inside - 1, len(kept), _most_likely(t, a, b))) + choice)
    return math.exp(least)


def _most_likely(t: int, a: int, b: int) -> float:
    """max over lambda of P(a <= N <= b) / P(N >= t), N ~ Poisson(lambda), on a grid that is refined twice."""
    low, high, best = math.log(a / 4), math.log(4 * b), 0.0
    for _ in range(3):
        rates = np.exp(np.linspace(low, high, 100))
        shares = (poisson.cdf(b, rates) - poisson.cdf(a - 1, rates)) / poisson.sf(t - 1, rates)
        place = int(shares.argmax())
        best = float(shares[place])
        low, high = (math.log(rates[min(max(place + step, 0), 99)]) for step in (-1, 1))
    return min(1.0, best * (1 + 1e-5))


def repeat_whole(inputs: RowHashes, read: Read) -> bool:
    """Whether the rows that repeat share no half with rows unlike them, as copies of continuous values do.

    Args:
        inputs: (n,) hashes of the rows. read: rows (k, d) at k indices.
    """
    _, first, counts = np.unique(inputs, return_index=True, return_counts=True)
    if len(first) < _FEWEST_ROWS:
        return False
    repeated = counts > 1
    columns = _columns_to_split(read, first)
    if len(columns) == 0:
        return False
    masks = halves(len(columns))
    parts: list[list[RowHashes]] = [[] for _ in masks]
    for at in np.array_split(first, math.ceil(len(first) / CHUNK)):
        rows = read(at)[:, columns]
        for mask, part in zip(masks, parts, strict=True):
            part.append(row_hashes(rows[:, mask]))
    alone = 0
    for half in (np.concatenate(part) for part in parts):
        _, where, times = np.unique(half, return_inverse=True, return_counts=True)
        alone += float((times[where] > 1)[repeated].mean()) <= _ALIKE
    return alone >= _MANY_HALVES


def _columns_to_split(read: Read, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """All columns but one that numbers the rows: integers, or steps of one size, that alone tell rows apart.

    Two that agree whenever one of them does are no numbers of categories drawn again, but copies.
    """
    columns = ColumnKinds.of(read, rows)
    numbers = columns.injective & columns.even
    return np.flatnonzero(~numbers) if numbers.sum() == 1 else np.arange(len(numbers))


TOO_ALIKE = 1e-3  # probability at most under which two sets are said to be no independent draws
TOLERATED = 0.01  # share of a set that may be another's before it is refused

_MOST_VALUES = 500  # inputs whose counts are compared, the most frequent ones
_UNSUSPICIOUS = 0.02  # of a chi-square, which is not exact, above which nothing is drawn
_DIVISIONS = 5_000  # random ones


@dataclass(frozen=True)
class Overlap:
    """Samples that two sets have in common.

    Attributes:
        indices: of the samples that are others too, in whatever form. equal: how many of them have the same input.
        repeated: samples whose input occurs among the others, as inputs of categories do that are drawn independently.
        copies: the other forms. p_value: that independent sets have counts so much alike, at most.
    """

    n: int
    indices: Tensor
    equal: int
    repeated: int
    copies: Copies
    p_value: float

    @property
    def alike(self) -> bool:
        """The sets repeat each other more closely than independent draws do."""
        return self.p_value < TOO_ALIKE

    @property
    def many(self) -> bool:
        """More than two real data sets have in common."""
        return self.alike or len(self.indices) > max(1, TOLERATED * self.n)

    @cached_property
    def evidence(self) -> str:
        """The comparison and its outcome, in words for the reader."""
        if self.alike:
            return f"its {self.n} inputs occur as often in both, as in no independent draws (p <= {self.p_value:.1g})"
        text = f"{self.equal} of {self.n} with equal inputs"
        if self.repeated:
            text = f"{self.repeated} of {self.n} with inputs that both sets repeat, as independent draws of them do"
        return "; ".join(t for t in (text, self.copies.evidence) if t)


def find_overlap(samples: Samples, others: Samples) -> Overlap:
    """Compare every input of the samples with the others', as they are and in other forms; one pass over each."""
    own, theirs = samples.input_hashes, others.input_hashes
    equal = np.isin(own, theirs)
    copies = find_copies(samples, others)
    p_value, repeated, read = 1.0, 0, _both(samples, others)
    if equal.any() and not repeat_whole(np.concatenate([own, theirs]), read):
        p_value, repeated = alikeness(own, theirs), int(equal.sum())
        equal[:] = False
    if not copies.unchecked.startswith("inputs of different"):
        for hashes, some in without_columns(read, len(own) + len(theirs)):
            shared = np.isin(hashes[: len(own)], hashes[len(own) :])
            if shared.sum() > equal.sum() and repeat_whole(hashes, some):
                equal |= shared
    found = np.flatnonzero(equal)
    if len(copies.kinds):
        found = np.union1d(found, copies.pairs[:, 0].numpy())
    return Overlap(len(own), torch.from_numpy(found), int(equal.sum()), repeated, copies, p_value)


def refuse_overlap(samples: Samples, others: Samples, what: str, remedy: str) -> Overlap:
    """The overlap, as far as real data sets have some.

    Raises:
        DataError: more than 1%, or counts too much alike.
    """
    found = find_overlap(samples, others)
    if found.many:
        raise DataError(f"samples of the bound are {what} ({found.evidence}): {remedy}")
    return found


def alikeness(own: RowHashes, theirs: RowHashes) -> float:
    """Probability that counts of independent sets of one distribution agree so well.

    Given both sets together, every division into sets of these sizes is as likely as any other: an exact test by 5,000
    random ones of sum_c (a_c - s N_c)^2 / N_c, a_c of N_c being the first set's and s its share. Inputs that occur too
    rarely count as one.
    """
    values, which = np.unique(np.concatenate([own, theirs]), return_inverse=True)
    a, b = (np.bincount(w, minlength=len(values)) for w in (which[: len(own)], which[len(own) :]))
    often = np.zeros(len(values), dtype=bool)
    often[np.argsort(-(a + b), kind="stable")[:_MOST_VALUES]] = True
    if not often.all():
        a, b = (np.append(c[often], c[~often].sum()) for c in (a, b))
    total, share = a + b, len(own) / (len(own) + len(theirs))

    def statistic(counts: np.ndarray[Any, Any]) -> Any:
        return ((counts - share * total) ** 2 / total).sum(-1)

    seen = float(statistic(a))
    if float(chi2.cdf(seen / (share * (1 - share)), len(total) - 1)) > _UNSUSPICIOUS:
        return 1.0
    drawn = np.random.default_rng(0).multivariate_hypergeometric(total, len(own), _DIVISIONS, method="marginals")
    return (1 + int((statistic(drawn) <= seen * (1 + 1e-9)).sum())) / (1 + _DIVISIONS)


def _both(samples: Samples, others: Samples) -> Read:
    """Read rows of the samples and, counted on, of the others."""
    n = len(samples)

    def read(at: np.ndarray[Any, Any]) -> Floats:
        inside = at < n
        parts = [(samples, at[inside]), (others, at[~inside] - n)]
        rows = [flat_rows(s.take(torch.from_numpy(i))[0]) for s, i in parts if len(i)]
        if len({r.shape[1] for r in rows}) > 1:
            raise DataError(f"inputs of {rows[0].shape[1]} and {rows[1].shape[1]} numbers; give samples of one kind")
        merged = np.empty((len(at), rows[0].shape[1]), dtype=np.float32)
        merged[np.argsort(~inside, kind="stable")] = np.concatenate(rows)
        return merged

    return read
