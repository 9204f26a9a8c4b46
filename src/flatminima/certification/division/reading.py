"""Samples of a certificate, read through `take` alone, and again to see that they are the same; as rows and as hashes.

A `Samples` of the caller's may say of itself what it likes: its hashes decide the division. And a data set may give
other samples the second time, so that the bound would be about samples that the prior has seen. Rows of numbers and
fast hashes of them are what repeats and near-copies are searched with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.core.samples import Inputs, Samples, as_samples, content_hashes, hash_bytes, leaves, map_tensors
from flatminima.errors import DataError

Floats = np.ndarray[Any, np.dtype[np.float32]]
RowHashes = np.ndarray[Any, np.dtype[np.uint64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Read = Callable[[Indices], Floats]  # rows (k, d) at k indices

FEWEST_VALUES = 12  # of a sample, below which unlike ones are often linear functions of each other
_FEWEST = 3  # of a tensor that may be looked at on its own
CHUNK = 2_000  # samples that are read at a time


def chunks(samples: Samples, indices: Tensor | None = None) -> Iterator[tuple[Tensor, Any]]:
    """(indices, inputs) of the samples, a few thousand at a time."""
    indices = torch.arange(len(samples)) if indices is None else indices
    for part in indices.split(CHUNK):
        yield part, samples.take(part)[0]


def flat_rows(inputs: Any) -> Floats:
    """Inputs of k samples as a matrix (k, d): every tensor of them flattened, as float32."""
    flat = [t.detach().cpu().float().reshape(len(t), -1) for t in leaves(inputs)]
    return np.ascontiguousarray(torch.cat(flat, 1).numpy())


def row_hashes(rows: np.ndarray[Any, Any]) -> RowHashes:
    """A multilinear 64-bit hash of each row's bytes, (k,); +0 and -0 are equal. No defence against an adversary."""
    words = np.ascontiguousarray(rows.astype(np.float32) + np.float32(0)).view(np.uint32)
    with np.errstate(over="ignore"):
        mixed = words.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)  # a sum of the words themselves would be linear in them
        mixed *= _factors(words.shape[1])
        total = mixed.sum(1, dtype=np.uint64)
        return np.asarray(total ^ (total >> np.uint64(29)))


def group_hashes(hashes: RowHashes, numbers: np.ndarray[Any, Any]) -> list[int]:
    """A hash of each group's samples, whatever their order, (G,)."""
    order = np.lexsort((hashes, numbers))
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    return [hash_bytes(part.tobytes()) for part in np.split(hashes[order], cuts)]


def _factors(d: int) -> RowHashes:
    """Odd multipliers, the same ones in every run."""
    return np.random.default_rng(0x5EED).integers(0, 1 << 63, d, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def counts_of(hashes: RowHashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count of each distinct value."""
    return np.unique(hashes, return_counts=True)[1].astype(np.int64)


_CHUNK = 512


class _Taken(Samples):
    """The samples of another, with hashes of its own."""

    def __init__(self, samples: Samples) -> None:
        self._samples, self._count = samples, len(samples)

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        inputs, targets = self._samples.take(indices)
        return map_tensors(plain_samples, inputs), plain_samples(targets)


class OneTensor(Samples):
    """The samples with one tensor of their inputs, by its place among `leaves`; targets as they are."""

    def __init__(self, samples: Samples, place: int) -> None:
        self._samples, self._place = samples, place

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        inputs, targets = self._samples.take(indices)
        return leaves(inputs)[self._place], targets


def single_tensors(samples: Samples) -> list[OneTensor]:
    """Each tensor of 12 values a sample, or of a third of all, on its own, where there are several; else none."""
    first = leaves(samples.take(torch.tensor([0]))[0])
    sizes = [t[0].numel() for t in first]
    large = [i for i, size in enumerate(sizes) if size >= FEWEST_VALUES or (size >= _FEWEST and 3 * size >= sum(sizes))]
    return [OneTensor(samples, i) for i in large] if len(first) > 1 else []


class Unchanging(Samples):
    """Some of the samples, each compared with what was divided whenever it is read.

    Args:
        samples: whose hashes the division was made from. rows: indices of some.
    """

    def __init__(self, samples: Samples, rows: Tensor) -> None:
        self._samples, self._rows = samples, rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        return taken(self._samples, self._rows[indices])


def plain_samples(t: Tensor) -> Tensor:
    """A tensor as torch's own: a subclass of the caller's may answer a comparison as it likes."""
    return t if type(t) is Tensor else t.as_subclass(Tensor)


def read_samples(data: Any) -> Samples:
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
