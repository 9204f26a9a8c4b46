"""Samples as rows of numbers, and fast hashes of them: what repeats and near-copies are searched with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.core.samples import Samples, leaves

Floats = np.ndarray[Any, np.dtype[np.float32]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]

FEWEST_VALUES = 12  # of a sample, below which unlike ones are often linear functions of each other
CHUNK = 2_000  # samples that are read at a time


def chunks(samples: Samples, indices: Tensor | None = None) -> Iterator[tuple[Tensor, Any]]:
    """(indices, inputs) of the samples, a few thousand at a time."""
    indices = torch.arange(len(samples)) if indices is None else indices
    for part in indices.split(CHUNK):
        yield part, samples.take(part)[0]


def rows_of(inputs: Any) -> Floats:
    """Inputs of k samples as a matrix (k, d): every tensor of them flattened, as float32."""
    flat = [t.detach().cpu().float().reshape(len(t), -1) for t in leaves(inputs)]
    return np.ascontiguousarray(torch.cat(flat, 1).numpy())


def row_hashes(rows: np.ndarray[Any, Any]) -> Hashes:
    """A multilinear 64-bit hash of each row's bytes, (k,); +0 and -0 are equal. No defence against an adversary."""
    words = np.ascontiguousarray(rows.astype(np.float32) + np.float32(0)).view(np.uint32)
    with np.errstate(over="ignore"):
        mixed = words.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)  # a sum of the words themselves would be linear in them
        mixed *= _factors(words.shape[1])
        total = mixed.sum(1, dtype=np.uint64)
        return np.asarray(total ^ (total >> np.uint64(29)))


def _factors(d: int) -> Hashes:
    """Odd multipliers, the same ones in every run."""
    return np.random.default_rng(0x5EED).integers(0, 1 << 63, d, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def counts_of(hashes: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each distinct value occurs."""
    return np.unique(hashes, return_counts=True)[1].astype(np.int64)
