"""`Samples`: training data with random access, whatever it came as, in an order that does not depend on its order.

Each sample has a content hash, and a key made of it and of the number of equal samples before it. The random order of a
seed sorts by (key, seed), so subsets, and therefore every sampled measure, stay the same when the data arrives shuffled
or in other batches. Copies of a sample have keys of their own: by content alone they would be neighbours in every
order, and a subset a draw of clusters. The sorted hashes identify the data set in the report.
"""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from flatminima import progress
from flatminima.core.samples.content import Hashes, content_hashes, hash_bytes, keys_of, splitmix
from flatminima.core.samples.structure import Inputs, leaves
from flatminima.errors import DataError, UsageError
from flatminima.escaping import brief

_CHUNK = 512
_SEEDS = 1 << 63


class Samples(ABC):
    """n samples of inputs and targets.

    Attributes:
        flat_entries: entries before the target in samples that are flat tuples of three and more; 0 where the inputs
            are one entry, which may be a tuple or a mapping itself.
    """

    flat_entries: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """The samples at `indices` (k,), inputs and targets with leading dimension k."""

    @cached_property
    def _contents(self) -> tuple[Hashes, list[Tensor]]:
        """Hashes (n,), and the targets in chunks: the data is read once for both."""
        hashes, every = np.empty(len(self), dtype=np.uint64), []
        for indices in self._chunks():
            inputs, targets = self.take(indices)
            if len(targets) != len(indices):
                raise DataError(
                    f"got {len(targets)} targets for {len(indices)} samples; a collate function must keep one row a "
                    "sample"
                )
            refuse_not_finite(inputs, targets, int(indices[0]))
            hashes[indices.numpy()] = content_hashes(inputs, targets)
            every.append(targets)
            if len(self) > _CHUNK:
                progress.report("reading the data", int(indices[-1]) + 1, len(self))
        return hashes, every

    @property
    @final
    def hashes(self) -> Hashes:
        """A 64-bit content hash of each sample, (n,)."""
        return self._contents[0]

    @cached_property
    def input_hashes(self) -> Hashes:
        """A 64-bit hash of each sample's inputs alone, (n,): equal where only the target differs."""
        parts = [content_hashes(self.take(i)[0], torch.zeros_like(i)) for i in self._chunks()]
        return np.concatenate(parts)

    @final
    def each_target(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every target once: indices (k,) and targets (k, ...) of some samples at a time."""
        yield from zip(self._chunks(), self._contents[1], strict=True)

    def _chunks(self) -> Iterator[Tensor]:
        for start in range(0, len(self), _CHUNK):
            yield torch.arange(start, min(start + _CHUNK, len(self)))

    @property
    @final
    def fingerprint(self) -> str:
        """Hash of the data set as a set: the same for any order."""
        return hashlib.blake2b(np.sort(self.hashes).tobytes(), digest_size=8).hexdigest()

    @cached_property
    def keys(self) -> Hashes:
        """hash(content, number of equal samples before it), (n,): the content hash for a first occurrence.

        Copies are interchangeable, so the keys as a set depend on the contents alone, whatever the order of the data.
        """
        return keys_of(self.hashes)

    def order(self, seed: int) -> Tensor:
        """A random permutation (n,) made from the samples' keys and the seed: any part of it is a fair draw."""
        salt = np.uint64(hash_bytes(seed_number(seed).to_bytes(8, "little", signed=True)))
        return torch.from_numpy(np.argsort(splitmix(self.keys ^ salt), kind="stable"))


def seed_number(seed: Any, name: str = "seed") -> int:
    """A seed as Python's integer; numpy's whole numbers are ones too.

    Raises:
        UsageError: no whole number, or none that 64 bits with a sign hold.

    Examples:
        >>> seed_number(np.int64(3))
        3
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = _SEEDS
    if not -_SEEDS <= number < _SEEDS:
        raise UsageError(f"got {name}={brief(seed)}; expected a whole number from -2^63 to 2^63 - 1, e.g. 0")
    return number


def spread(count: int, places: int) -> Tensor:
    """Spread up to `places` indices evenly from 0 to count - 1, in integers: float32 is too coarse above 2^24."""
    k = min(places, count)
    return torch.arange(k) * (count - 1) // max(k - 1, 1)


def refuse_not_finite(inputs: Inputs, targets: Tensor, start: int) -> None:
    """Raise DataError for NaN and Inf, naming the sample, of samples from `start`."""
    for t, what in [*((t, "input") for t in leaves(inputs)), (targets, "target")]:
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            bad = int((~torch.isfinite(t)).reshape(len(t), -1).any(1).nonzero()[0])
            raise DataError(f"sample {start + bad} holds NaN or Inf in its {what}; clean or drop it")
