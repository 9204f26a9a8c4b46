"""Samples of a map-style Dataset, read by index each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from flatminima.core.samples.base import Samples, spread
from flatminima.core.samples.collate import collate_entries, longest_mask
from flatminima.core.samples.content import content_hashes
from flatminima.core.samples.structure import Inputs, leaves, map_tensors, split_batch
from flatminima.core.samples.tensors import EMPTY
from flatminima.errors import DataError, FlatMinimaError

_PROBE = 8  # samples read more than once to detect augmentation
_READS = 4  # times that they are read: a flip that happens half of the time hides in none of 8 x 3 comparisons
Collate = Callable[[list[Any]], Any]


@final
class DatasetSamples(Samples):
    """A map-style Dataset.

    Args:
        dataset: with ``len`` and an item for every index below it; an item is a pair, a tuple that ends with the
            target, or a mapping with labels.
        collate: of a DataLoader. One that pads is given the longest samples with every batch, so that all are padded
            alike and no number depends on the batches.

    Raises:
        DataError: no samples; a sample that differs when it is read twice; items that are no tensors, or differ in
            shape where nothing says how to pad.
    """

    def __init__(self, dataset: Any, collate: Collate = default_collate) -> None:
        self.dataset = dataset
        if len(dataset) == 0:
            raise DataError(EMPTY)
        own = collate is not default_collate
        self._collate = collate if own else partial(collate_entries, length=longest_mask(self._item, len(dataset)))
        self._rulers: list[Any] = []  # the longest samples
        self._compared = 0  # batches
        self.flat_entries = self._entries()
        self._refuse_changing()
        if own:
            self._rulers = [self._item(i) for i in self._longest()]

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        items = [self._item(i) for i in indices.tolist()]
        inputs, targets = split_batch(self._collated(items + self._rulers))
        if self._rulers:
            inputs, targets = map_tensors(lambda t: t[: len(items)], inputs), targets[: len(items)]
        self._refuse_changed(indices, inputs, targets)
        return inputs, targets

    def _item(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:  # the caller's code, which may raise anything
            if _passes(error):
                raise
            raise DataError(f"sample {index} of {len(self)} cannot be read: {_reason(error)}") from error

    def _collated(self, items: list[Any]) -> Any:
        try:
            return self._collate(items)
        except Exception as error:
            if _passes(error):
                raise
            raise DataError(f"the collate function fails on {len(items)} samples: {_reason(error)}") from error

    def _entries(self) -> int:
        item = self._item(0)
        flat = isinstance(item, Sequence) and not isinstance(item, str) and len(item) > 2
        if not flat:
            return 0
        batch = self._collated([item])
        return len(batch) - 1 if isinstance(batch, Sequence) and len(batch) > 2 else 0

    def _refuse_changing(self) -> None:
        """Raise DataError where a sample differs when it is read twice."""
        probe = spread(len(self), _PROBE)
        one = content_hashes(*self.take(probe))
        for _ in range(_READS - 1):
            two = content_hashes(*self.take(probe))
            if not np.array_equal(one, two):
                i = int(probe[int(np.flatnonzero(one != two)[0])])
                raise DataError(
                    f"sample {i} differs when read twice: the data is augmented or random; pass it without augmentation"
                )

    def _refuse_changed(self, indices: Tensor, inputs: Inputs, targets: Tensor) -> None:
        """Compare one sample of each batch with what it was when all were read: one in twenty may be augmented.

        Raises:
            DataError: it differs.
        """
        contents = vars(self).get("_contents")
        if contents is None or len(targets) != len(indices) or not len(indices):
            return
        self._compared += 1
        row = self._compared % len(indices)
        one = slice(row, row + 1)
        if content_hashes(map_tensors(lambda t: t[one], inputs), targets[one])[0] != contents[0][int(indices[row])]:
            raise DataError(
                f"sample {int(indices[row])} is not what it was when it was read before: the data is augmented, random "
                "or changed; pass it as it is, without augmentation"
            )

    def _longest(self) -> list[int]:
        """For every dimension of every tensor whose length differs between samples, one that is longest there."""
        longest: dict[tuple[int, int], tuple[int, int]] = {}
        differs = set()
        for i in range(len(self)):
            inputs, targets = self.take(torch.tensor([i]))
            for k, tensor in enumerate([*leaves(inputs), targets]):
                for d, size in enumerate(tensor.shape[1:]):
                    best, _ = longest.setdefault((k, d), (size, i))
                    if size != best:
                        differs.add((k, d))
                    if size > best:
                        longest[k, d] = (size, i)
        return sorted({longest[place][1] for place in differs})


def _passes(error: Exception) -> bool:
    """Errors that other code answers: the library's own refusals, and memory that runs out, which halves the batch."""
    return isinstance(error, FlatMinimaError | MemoryError) or "can't allocate memory" in str(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
