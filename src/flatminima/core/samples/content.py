"""Content hashes of samples, and the keys that make copies of a sample different samples."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.core.samples.structure import Inputs, leaves

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def content_hashes(inputs: Inputs, targets: Tensor) -> Hashes:
    """One 64-bit hash a sample, of the bytes of its inputs and target."""
    whole = not targets.is_floating_point() and targets.dtype != torch.bool  # labels may come as any integer
    rows = [_bytes(t) for t in [*leaves(inputs), targets.long() if whole and not targets.is_complex() else targets]]
    hashes = [hash_bytes(*(r[i].data for r in rows)) for i in range(len(targets))]
    return np.array(hashes, dtype=np.uint64)


def hash_bytes(*parts: Any) -> int:
    """A 64-bit hash of the parts after each other."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def keys_of(hashes: Hashes) -> Hashes:
    """hash(content, number of equal samples before it), (n,): the content hash for a first occurrence."""
    repeats = _earlier_copies(hashes)
    return np.where(repeats == 0, hashes, splitmix(hashes ^ splitmix(repeats)))


def splitmix(z: Hashes) -> Hashes:
    """A bijection of 64-bit integers that mixes all of their bits (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def _earlier_copies(hashes: Hashes) -> Hashes:
    """How many entries before each one are equal to it, (n,)."""
    by_content = np.argsort(hashes, kind="stable")
    ordered = hashes[by_content]
    places = np.arange(len(hashes))
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    run = places - np.maximum.accumulate(np.where(first, places, 0))
    earlier = np.empty(len(hashes), dtype=np.uint64)
    earlier[by_content] = run
    return earlier


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    """(samples, bytes)."""
    t = tensor.detach().cpu().resolve_conj().resolve_neg()
    t = torch.view_as_real(t) if t.is_complex() else t
    t = (t.float() if t.is_floating_point() else t).contiguous()  # float64 copies of float32 data hash alike
    rows = t.reshape(len(t), math.prod(t.shape[1:]))
    return np.ascontiguousarray(rows.numpy()).view(np.uint8).reshape(len(t), -1) if rows.numel() else _empty(len(t))


def _empty(count: int) -> np.ndarray[Any, Any]:
    return np.empty((count, 0), dtype=np.uint8)
