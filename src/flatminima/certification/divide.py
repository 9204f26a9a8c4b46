"""Samples divided into the prior's and the bound's, by their contents.

A keyed hash of each sample decides, so the division survives shuffling and needs no list of indices to be repeated.
Copies of a sample are different samples, each divided by a hash of its own: kept together, the bound's samples would
be no independent draw given the prior's. The key is a seed, which must not be chosen by its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flatminima.core.samples import Samples
from flatminima.errors import DataError, UsageError

FEWEST = 8  # samples that the PAC-Bayes-kl bound needs (Maurer 2004)
DUPLICATES = 0.01  # share of samples that two real data sets may have in common


@dataclass(frozen=True)
class Division:
    """Indices of the prior's samples and of the bound's, disjoint."""

    prior: Tensor
    bound: Tensor


def divide(samples: Samples, fraction: float, seed: int) -> Division:
    """The `fraction` of the samples with the smallest keyed hashes for the prior, the others for the bound.

    Args:
        samples: n of them.
        fraction: share of the prior in [0, 1); 0 for a prior that no data has touched.
        seed: key of the hash.

    Returns:
        Division; round(fraction n) samples for the prior.

    Raises:
        UsageError: fraction outside [0, 1). DataError: fewer than 8 samples left for the bound.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"got prior_fraction={fraction!r}; expected a share in [0, 1), 0 for a data-free prior")
    order = samples.order(seed)
    cut = round(fraction * len(order))
    if len(order) - cut < FEWEST:
        raise DataError(
            f"{len(order) - cut} of {len(order)} samples are left for the bound, which needs at least {FEWEST}: "
            "give more samples or a smaller prior_fraction"
        )
    return Division(order[:cut].sort().values, order[cut:].sort().values)


def shared(samples: Samples, others: Samples) -> int:
    """How many of the samples occur among the others, by content."""
    return int(np.isin(samples.hashes, others.hashes).sum())


def refuse_shared(samples: Samples, others: Samples, what: str, remedy: str) -> int:
    """The number of samples in common, as far as real data sets have duplicates.

    Raises:
        DataError: more than that.
    """
    found = shared(samples, others)
    if found > max(1, DUPLICATES * min(len(samples), len(others))):
        raise DataError(f"{found} of {len(samples)} samples of the bound are {what}: {remedy}")
    return found
