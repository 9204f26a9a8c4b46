"""Samples held as tensors."""

from __future__ import annotations

from torch import Tensor

from flatminima.core.samples.base import Samples, refuse_not_finite
from flatminima.core.samples.structure import Inputs, leaves, map_tensors
from flatminima.errors import DataError

EMPTY = "got no samples in data; a Minimum needs at least 1 (check the split, drop_last and filters)"


class TensorSamples(Samples):
    """Samples held as tensors, their first dimension."""

    def __init__(self, inputs: Inputs, targets: Tensor, flat_entries: int = 0) -> None:
        tensors = [*leaves(inputs), targets]
        if any(t.dim() == 0 for t in tensors):
            raise DataError("got an input or target without dimensions; the first dimension counts the samples")
        sizes = {len(t) for t in tensors}
        if len(sizes) != 1:
            raise DataError(f"got inputs and targets of different lengths {sorted(sizes)}; give one target a sample")
        self.inputs, self.targets, self.flat_entries = inputs, targets, flat_entries
        if len(targets) == 0:
            raise DataError(EMPTY)
        refuse_not_finite(inputs, targets, 0)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        here = indices.to(self.targets.device)
        return map_tensors(lambda t: t[indices.to(t.device)], self.inputs), self.targets[here]
