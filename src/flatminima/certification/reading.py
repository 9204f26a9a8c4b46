"""Samples of a certificate, read through `take` alone, and read again to see that they are the same.

A `Samples` of the caller's may say of itself what it likes: its hashes decide the division. And a data set may give
other samples the second time, so that the bound would be about samples that the prior has seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.core.samples import Inputs, Samples, TensorSamples, as_samples, content_hashes
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
    samples = as_samples(data)
    if isinstance(data, Samples):
        return TensorSamples(samples.inputs, samples.targets) if type(samples) is TensorSamples else _Taken(samples)
    return samples


def confirm(samples: Samples, rows: Tensor | None = None) -> None:
    """Read samples again; those of a certificate must be what the division was made from.

    Args:
        rows: indices of them; all by default.

    Raises:
        DataError: one has other contents than before.
    """
    rows = torch.arange(len(samples)) if rows is None else rows
    for part in rows.split(_CHUNK):
        again = content_hashes(*samples.take(part))
        if not np.array_equal(again, samples.hashes[part.numpy()]):
            i = int(part[int(np.flatnonzero(again != samples.hashes[part.numpy()])[0])])
            raise DataError(
                f"sample {i} differs when read again: the data is augmented, its labels are drawn anew, or it was "
                "changed meanwhile; pass data that stay as they are"
            )
