"""Samples in another precision."""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.core.samples.base import Samples
from flatminima.core.samples.structure import Inputs, map_tensors


class Converted(Samples):
    """Samples whose floating-point tensors have another dtype; order and identity are those of the samples."""

    def __init__(self, samples: Samples, dtype: torch.dtype) -> None:
        self._samples, self._dtype = samples, dtype
        if "_contents" in vars(samples):  # hashed in one precision, whatever they are kept in
            hashes, targets = samples._contents
            vars(self)["_contents"] = hashes, [self._convert(t) for t in targets]

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        inputs, targets = self._samples.take(indices)
        return map_tensors(self._convert, inputs), self._convert(targets)

    def _convert(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor
