"""Samples with their labels, decoded once.

Pixels stay the integers that were stored (uint8): 47 MB for MNIST where float32 takes 188. `full_scale` says
what "one" is: 255 for images, 16 for the embedded digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import DataError


@dataclass(frozen=True, eq=False)  # tensors have no truth value: compare fingerprints
class LabelledData:
    """Inputs and labels of one split of one source.

    Args:
        inputs: shape (n, channels, height, width), uint8 in [0, full_scale] (or floating, or rows of numbers).
        targets: shape (n,), int64, each in [0, number of classes); or float32 of shape (n, ...), numbers to predict.
        classes: names of the classes in the order of their labels, or None where the source has none.
        name: source and split, for messages and reports.
        full_scale: the stored value that means 1.0.
        others: further inputs of the network by name, each (n, ...), in the order of its arguments.
        key: name of the first input where the network takes its inputs by name; None: by position.
        unused: columns of the source that are neither input nor label.
        scales: the stored value that means 1.0 in each of `others` where it is not 1.

    Raises:
        DataError: no samples, lengths that differ, or labels outside the classes.
    """

    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...] | None = None
    name: str = "data"
    full_scale: float = 255.0
    others: Mapping[str, Tensor] = field(default_factory=dict)
    key: str | None = None
    unused: tuple[str, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.inputs) == 0:
            raise DataError(f"no samples in {self.name}: check the split and the limit")
        if self.targets.is_floating_point() and len(self.targets) == len(self.inputs):
            return
        if self.targets.shape != (len(self.inputs),) or self.targets.dtype != torch.int64:
            raise DataError(
                f"{self.name} has {len(self.inputs)} inputs but targets of shape "
                f"{tuple(self.targets.shape)}, {self.targets.dtype}: one int64 label a sample is needed"
            )
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or (self.classes is not None and high >= len(self.classes)):
            bad = low if low < 0 else high
            row = int((self.targets == bad).nonzero()[0])
            known = f"0 to {len(self.classes) - 1}" if self.classes else "0 and above"
            raise DataError(f"sample {row} of {self.name} has the label {bad}; labels are {known}")

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.inputs.shape)
        kind = f"{self.n_classes} classes" if self.n_classes else "numbers to predict"
        return f"LabelledData({self.name!r}, {shape} {self.inputs.dtype}, {kind})"

    def together(self, first: Tensor) -> Any:
        """The network's inputs, `first` in place of the stored first one: a tensor, a tuple, or a dict by name."""
        if self.key is not None:
            return {self.key: first, **self.others}
        return (first, *self.others.values()) if self.others else first

    def parts(self) -> list[LabelledData]:
        """Each input on its own, in the order of the network's arguments."""
        first = replace(self, others={}, scales={}, key=None)
        return [first, *(replace(first, inputs=t, full_scale=self.scales.get(n, 1.0)) for n, t in self.others.items())]

    @property
    def n_classes(self) -> int:
        """Number of classes: of names where there are names, else the largest label plus one; 0 of numbers."""
        if self.targets.is_floating_point():
            return 0
        return len(self.classes) if self.classes is not None else int(self.targets.max()) + 1

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the content: equal exactly for equal inputs, targets and full scale.

        Independent of where the data came from, so a report can say that two runs saw the same samples.
        """
        digest = hashlib.sha256(f"{tuple(self.inputs.shape)} {self.inputs.dtype} {self.full_scale}".encode())
        for tensor in (self.inputs, *self.others.values(), self.targets):
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]
