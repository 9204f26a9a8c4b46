"""Samples of one set that are another's too: equal inputs whatever their labels, and near-copies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from flatminima.certification.copies import Copies, find_copies
from flatminima.certification.repeats import repeat_whole
from flatminima.certification.rows import Floats, Hashes, rows_of
from flatminima.core.samples import Samples
from flatminima.errors import DataError

TOO_ALIKE = 1e-3  # probability at most under which two sets are said to be no independent draws
TOLERATED = 0.01  # share of a set that may be another's before it is refused

_MOST_VALUES = 500  # inputs whose counts are compared, the most frequent ones
_UNSUSPICIOUS = 0.02  # of a chi-square, which is not exact, above which nothing is drawn
_DIVISIONS = 5_000  # random ones


@dataclass(frozen=True)
class Overlap:
    """What two sets have in common.

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
        """What was compared and seen, for the reader."""
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
    p_value, repeated = 1.0, 0
    if equal.any() and not _copied(samples, others, own, theirs):
        p_value, repeated = alikeness(own, theirs), int(equal.sum())
        equal[:] = False
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


def alikeness(own: Hashes, theirs: Hashes) -> float:
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


def _copied(samples: Samples, others: Samples, own: Hashes, theirs: Hashes) -> bool:
    """Whether the inputs that occur in both are copies of continuous values rather than categories drawn again."""

    def read(at: np.ndarray[Any, Any]) -> Floats:
        inside = at < len(own)
        parts = [(samples, at[inside]), (others, at[~inside] - len(own))]
        rows = [rows_of(s.take(torch.from_numpy(i))[0]) for s, i in parts if len(i)]
        if len({r.shape[1] for r in rows}) > 1:
            raise DataError(f"inputs of {rows[0].shape[1]} and {rows[1].shape[1]} numbers; give samples of one kind")
        merged = np.empty((len(at), rows[0].shape[1]), dtype=np.float32)
        merged[np.argsort(~inside, kind="stable")] = np.concatenate(rows)
        return merged

    return repeat_whole(np.concatenate([own, theirs]), read)
