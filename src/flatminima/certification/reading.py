"""Samples of a certificate, read through `take` alone, and read again to see that they are the same.

A `Samples` of the caller's may say of itself what it likes: its hashes decide the division. And a data set may give
other samples the second time, so that the bound would be about samples that the prior has seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.core.samples import Inputs, Samples, as_samples, content_hashes
from flatminima.errors import DataError

_CHUNK = 512


class _Taken(Samples):
    """The samples of another, with hashes of its own."""

    def __init__(self, samples: Samples) -> None:
        self._samples, self._count = samples, len(samples)

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        return self._samples.take(indices)


def read(data: Any) -> Samples:
    """The data as samples whose hashes are computed here, whatever they say of themselves."""
    return data if type(data) is _Taken else _Taken(as_samples(data))


def taken(samples: Samples, rows: Tensor) -> tuple[Inputs, Tensor]:
    """Inputs and targets at rows, which must be what the division was made from.

    Raises:
        DataError: one has other contents than before.
    """
    inputs, targets = samples.take(rows)
    again = content_hashes(inputs, targets)
    changed = np.flatnonzero(again != samples.hashes[rows.numpy()])
    if len(changed):
        raise DataError(
            f"sample {int(rows[int(changed[0])])} differs when read again: the data is augmented, its labels are drawn "
            "anew, or it was changed meanwhile; pass data that stay as they are"
        )
    return inputs, targets


def confirm(samples: Samples, rows: Tensor | None = None) -> None:
    """Read samples again; those of a certificate must be what the division was made from.

    Args:
        rows: indices of them; all by default.

    Raises:
        DataError: one has other contents than before.
    """
    rows = torch.arange(len(samples)) if rows is None else rows
    for part in rows.split(_CHUNK):
        taken(samples, part)
