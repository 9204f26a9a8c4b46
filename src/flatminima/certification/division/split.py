"""Samples divided into the prior's and the bound's: a fair draw by hashes of contents, whatever the order of the data.

A keyed hash of each sample's content and of the number of equal samples before it decides. Copies are interchangeable,
so given the data as a multiset every division into parts of these sizes is as likely as any other. The key is a seed,
which must not be chosen by its result. Where samples are not independent of each other (a patient's images), groups are
the draws: a whole group is the prior's or the bound's, and of each of the bound's one sample is drawn, so that losses
stay 0 or 1 and n is the number of groups. What the bound's samples share with the prior's is left out and paid for, or
refused (docs/certificates.md has the proofs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flatminima.certification.division.copies import Copies, find_copies_within
from flatminima.certification.division.reading import group_hashes
from flatminima.certification.division.repeats import TOLERATED, Repeats, find_overlap, find_repeats
from flatminima.core.samples import Samples, hash_bytes
from flatminima.errors import DataError, UsageError

_PICK = b"one sample of a group"  # parts the draw of a group's sample from the draw of the groups


def identifiers(groups: Tensor | Sequence[Any] | np.ndarray[Any, Any], n: int) -> list[Any]:
    """Groups as Python values, one a sample.

    Args:
        groups: numbers or texts. n: samples.

    Raises:
        DataError: another length, or an identifier that is missing (None, NaN).
    """
    given = groups.detach().cpu().tolist() if isinstance(groups, Tensor) else list(groups)
    if len(given) != n:
        raise DataError(f"got {len(given)} groups for {n} samples; give one group identifier a sample")
    values = [value.item() if isinstance(value, np.generic) else value for value in given]
    for i, value in enumerate(values):
        if value is None or value != value or isinstance(value, list):
            raise DataError(
                f"got group {value!r} for sample {i}; give every sample an identifier, one of its own if alone"
            )
    return values


def group_numbers(groups: Tensor | Sequence[Any] | np.ndarray[Any, Any], n: int) -> Tensor:
    """Groups as numbers 0 .. G-1, (n,), in the order in which they occur; errors as of `identifiers`."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in identifiers(groups, n)])


def group_order(samples: Samples, numbers: Tensor, seed: int) -> Tensor:
    """A random permutation (G,) of the groups, made from their contents and the seed: any part of it is a fair draw.

    The key of a group is a hash of its samples' sorted content hashes and of the number of equal groups before it.
    """
    contents = group_hashes(samples.hashes, numbers.numpy())
    seen: dict[int, int] = {}
    keys = []
    for content in contents:
        earlier = seen[content] = seen.get(content, -1) + 1
        keys.append(hash_bytes(_eight(content), _eight(earlier), _signed(seed)))
    return torch.from_numpy(np.argsort(np.array(keys, dtype=np.uint64), kind="stable"))


def one_of_each(samples: Samples, numbers: Tensor, chosen: Tensor, seed: int) -> Tensor:
    """Index of one sample of each chosen group, drawn by a keyed hash of contents, independently of `group_order`."""
    wanted = set(chosen.tolist())
    best: dict[int, tuple[int, int]] = {}
    copies: dict[tuple[int, int], int] = {}
    for i, (group, content) in enumerate(zip(numbers.tolist(), samples.hashes.tolist(), strict=True)):
        if group not in wanted:
            continue
        earlier = copies[group, content] = copies.get((group, content), -1) + 1
        key = hash_bytes(_PICK, _eight(content), _eight(earlier), _signed(seed))
        if group not in best or key < best[group][0]:
            best[group] = (key, i)
    return torch.tensor([best[g][1] for g in chosen.tolist()], dtype=torch.int64)


def _eight(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _signed(seed: int) -> bytes:
    return seed.to_bytes(8, "little", signed=True)


FEWEST = 8  # samples that the PAC-Bayes-kl bound needs (Maurer 2004)

_NONE = torch.empty(0, dtype=torch.int64)

Repetition = Literal["tested", "independent"]
Groups = Tensor | Sequence[Any] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Drawn:
    """The caller's statement of how the samples were drawn: see `split`."""

    groups: Groups | None = None
    repetition: Repetition = "tested"


REMEDY = (
    "remove the copies, pass groups= (one identifier a sample, shared by its copies), or state that every row was "
    "drawn anew with repetition='independent'"
)


@dataclass(frozen=True)
class Division:
    """Indices of the prior's samples and of the bound's.

    Attributes:
        prior, bound: disjoint, ascending; with groups, an index of `bound` is one sample of a group.
        left_out: of the bound, since copies of them are the prior's or others of the bound's; not in `bound`.
        nats: what leaving them out costs, to be added to KL; 0.0 where none is.
        repeats: what was counted. copies: pairs that were recognised in another form.
        groups: how many the samples form, None where each is one.
        stated: what the caller stated of repeated rows, "" for nothing.
        doubt: why the samples are no independent draws, "" for nothing that was found; no certificate can be given of
            them. remedy: what to do about it.
        shared: what was seen when the bound's samples were compared with the prior's, "" where there were none to.
        leak: why the prior depends on the bound's samples, "" for nothing that was found.
    """

    prior: Tensor
    bound: Tensor
    left_out: Tensor
    nats: float
    repeats: Repeats
    copies: Copies
    groups: int | None = None
    stated: str = ""
    doubt: str = ""
    shared: str = ""
    leak: str = ""
    remedy: str = REMEDY

    @property
    def evidence(self) -> str:
        """Copies and groups, in words for the reader; "" for none."""
        parts = [self.repeats.evidence, self.copies.evidence]
        if self.groups is not None:
            parts.append(f"{self.groups} groups, each whole on one side, one sample of each of the bound's")
        if len(self.left_out):
            parts.append(f"{len(self.left_out)} left out of the bound for {self.nats:.4g} nats")
        return "; ".join(p for p in parts if p)


def split(
    samples: Samples,
    fraction: float,
    seed: int,
    *,
    groups: Groups | None = None,
    repetition: Repetition = "tested",
) -> Division:
    """The `fraction` of samples, or of groups, with the smallest keyed hashes for the prior, the others for the bound.

    At most 1% of the bound's samples that are copies are left out of it and paid for; more of them are a doubt.

    Args:
        samples: n of them.
        fraction: share of the prior in [0, 1); 0 for a prior that no data has touched.
        seed: key of the hash.
        groups: an identifier a sample, of what was drawn independently: a patient, a document, an augmented original.
        repetition: "tested", whether independent draws explain what repeats; or "independent", the caller's word that
            every repeated row was drawn anew.

    Returns:
        Division; round(fraction n) samples, or groups, for the prior.

    Raises:
        UsageError: fraction outside [0, 1). DataError: fewer than 8 samples or groups for the bound.
    """
    if repetition not in ("tested", "independent"):
        raise UsageError(f"got repetition={repetition!r}; expected 'tested', or 'independent' to state it")
    numbers = None if groups is None else group_numbers(groups, len(samples))
    drawn = fair_draw(samples, fraction, seed, numbers)
    repeats, copies = find_repeats(samples, numbers), find_copies_within(samples)
    stated = "every repeated row was drawn anew" if repetition == "independent" else ""
    units = torch.arange(len(samples)) if numbers is None else numbers
    lost = torch.zeros(len(drawn.bound), dtype=torch.bool)
    if not stated:
        equal = torch.from_numpy(repeats.identity.view(np.int64)) if repeats.whole else None
        lost = _copied(units, drawn.order, drawn.cut, equal, copies.pairs)
    left = _leave_out(drawn.bound, lost)
    why = "; ".join(e for e in (repeats.evidence, copies.evidence) if e)
    doubt = f"{int(lost.sum())} of the bound's {len(lost)} samples are copies ({why})" if left is None else ""
    if repeats.dependent and not stated:
        doubt = repeats.evidence
    bound, out, nats = left or (drawn.bound.sort().values, _NONE, 0.0)
    count = None if numbers is None else len(drawn.order)
    return Division(drawn.prior, bound, out, nats, repeats, copies, count, stated, doubt)


@dataclass(frozen=True)
class Draw:
    """The samples, or groups, in the order of their keys; the first `cut` are the prior's.

    Attributes:
        prior: indices of the prior's samples, ascending. bound: one index for each of order[cut:].
    """

    order: Tensor
    cut: int
    prior: Tensor
    bound: Tensor


def fair_draw(samples: Samples, fraction: float, seed: int, numbers: Tensor | None = None) -> Draw:
    """The division by keyed hashes alone, nothing examined.

    Args:
        numbers: (n,) of each sample's group, 0 .. G-1; None where each sample is one.

    Raises:
        UsageError: fraction outside [0, 1). DataError: fewer than 8 samples or groups for the bound.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"got prior_fraction={fraction!r}; expected a share in [0, 1), 0 for a data-free prior")
    order = samples.order(seed) if numbers is None else group_order(samples, numbers, seed)
    cut = round(fraction * len(order))
    if len(order) - cut < FEWEST:
        what = "samples" if numbers is None else "groups"
        raise DataError(
            f"{len(order) - cut} of {len(order)} {what} are left for the bound, which needs at least {FEWEST}: "
            f"give more {what} or a smaller prior_fraction"
        )
    if numbers is None:
        return Draw(order, cut, order[:cut].sort().values, order[cut:])
    inside = torch.isin(numbers, order[:cut]).nonzero()[:, 0]
    return Draw(order, cut, inside, one_of_each(samples, numbers, order[cut:], seed))


def hold_apart(
    samples: Samples,
    prior_data: Samples | None,
    seed: int,
    *,
    groups: Groups | None = None,
    prior_groups: Groups | None = None,
    repetition: Repetition = "tested",
) -> Division:
    """All samples for the bound, without what they have in common with those that a prior was trained on.

    Args:
        samples: n of the bound. prior_data: those of the prior; None for none.
        seed: key of the hash that draws one sample of each group.
        groups, prior_groups: an identifier a sample, of the bound's and of the prior's; equal ones are one group.
        repetition: as for `split`.

    Returns:
        Division, its `prior` empty; with a leak where more than 1% of the bound's samples are the prior's, in whatever
        form, or fewer than 8 would remain.
    """
    alone = split(samples, 0.0, seed, groups=groups, repetition=repetition)
    if prior_data is None:
        return alone
    common = find_overlap(samples, prior_data)
    units = torch.arange(len(samples)) if groups is None else group_numbers(groups, len(samples))
    bound = torch.cat([alone.bound, alone.left_out]).sort().values
    lost = torch.isin(bound, alone.left_out) | torch.isin(units[bound], units[common.indices])
    found = replace(alone, copies=common.copies, shared=common.evidence)
    if groups is not None:
        if prior_groups is None:
            leak = "got groups of the bound's samples and none of the prior's, which may have seen others of them"
            return replace(found, leak=leak, remedy="pass prior_groups=, an identifier for each sample of prior_data")
        seen = set(identifiers(prior_groups, len(prior_data)))
        both = torch.tensor([value in seen for value in identifiers(groups, len(samples))])
        lost |= both[bound]
        if both.any():
            found = replace(found, shared=f"{found.shared}; {int(both[bound].sum())} of {len(bound)} groups in both")
    left = None if common.alike else _leave_out(bound, lost)
    if left is None:
        remedy = "train the prior on samples of its own and make the Minimum of the others"
        return replace(found, leak=f"the bound's samples are the prior's: {found.shared}", remedy=remedy)
    bound, out, nats = left
    return replace(found, bound=bound, left_out=out, nats=nats)


def nats_left_out(n: int, k: int) -> float:
    """ln C(n, k) + ln(4 k (k + 1)) for a bound on n - k of n samples, whichever k are left out; 0 for none.

    A union over all subsets of all sizes k >= 1 with shares 1 / (4 k (k + 1)), which add up to 1/4. They are paid by
    what the PAC-Bayes-kl bound has to spare: its ln(2 sqrt(n)) is at least ln(xi(n) / 0.7505) for n >= 8.

    Examples:
        >>> nats_left_out(100, 0)
        0.0
        >>> round(nats_left_out(30_000, 10), 1)
        94.1
    """
    if k == 0:
        return 0.0
    subsets = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return subsets + math.log(4 * k * (k + 1))


def _leave_out(bound: Tensor, lost: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """The bound's samples that are kept, ascending, those that are left out, and the price; None for too many."""
    n, k = len(bound), int(lost.sum())
    if k > max(1, TOLERATED * n) or (k and n - k < FEWEST):
        return None
    return bound[~lost].sort().values, bound[lost].sort().values, nats_left_out(n, k)


def _copied(units: Tensor, order: Tensor, cut: int, equal: Tensor | None, pairs: Tensor) -> Tensor:
    """Which of the bound's units, order[cut:], have copies among the other samples that count against them.

    Equal inputs: all but the first of them in the order, where that is the bound's. Near-copies: each one.

    Args:
        units: of each sample, its group or its own index. order: of the units; the first `cut` are the prior's.
        equal: (n,) equal for equal inputs; None where they are draws of their own. pairs: (m, 2) of near-copies.
    """
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[order] = torch.arange(len(order))
    lost = torch.zeros(len(order), dtype=torch.bool)  # by rank
    if equal is not None:
        ranks = rank[units]
        which = equal.unique(return_inverse=True)[1]
        first = torch.full((int(which.max()) + 1,), len(order)).scatter_reduce(0, which, ranks, "amin")
        lost[ranks[first[which] < ranks]] = True
    near = rank[units[pairs]]
    lost[near[near[:, 0] != near[:, 1]].reshape(-1)] = True
    return lost[cut:]
