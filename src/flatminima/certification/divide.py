"""The names that `split` had before."""

from __future__ import annotations

import numpy as np

from flatminima.certification.overlap import TOLERATED as DUPLICATES
from flatminima.certification.overlap import refuse_overlap
from flatminima.certification.split import FEWEST, Division, split
from flatminima.core.samples import Samples
from flatminima.errors import DataError

__all__ = ["DUPLICATES", "FEWEST", "Division", "divide", "refuse_shared", "shared"]


def divide(samples: Samples, fraction: float, seed: int) -> Division:
    """`split`, for callers that do not pay for what is left out: where something is, it is refused."""
    found = split(samples, fraction, seed)
    if found.doubt or len(found.left_out):
        raise DataError(f"{found.doubt or found.evidence}; {found.remedy}")
    return found


def shared(samples: Samples, others: Samples) -> int:
    """How many of the samples occur among the others, by content."""
    return int(np.isin(samples.hashes, others.hashes).sum())


def refuse_shared(samples: Samples, others: Samples, what: str, remedy: str) -> int:
    """The number of samples in common, as far as real data sets have duplicates."""
    return len(refuse_overlap(samples, others, what, remedy).indices)
