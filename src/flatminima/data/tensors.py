"""Stored integers to the float32 that a network sees.

Two explicit conventions: "unit" divides by the full scale (pixels in [0, 1]), "standard" also subtracts the
mean and divides by the standard deviation of each channel, taken over the *train* split whichever split is
asked for. A network measured on other inputs than it was trained on is another network: record the scaling
with the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.data.labelled import LabelledData
from flatminima.data.sources import load
from flatminima.errors import DataError, UnknownName

_CHUNK = 4096  # samples per float64 copy: 100 MB of CIFAR-10 at a time, not 1.2 GB


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of inputs in [0, 1]; calling it standardises data.

    Args:
        mean: one number a channel.
        std: one positive number a channel; a constant channel has 1, which leaves it centred.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise DataError(f"normalisation needs one mean and one positive std a channel; got {self}")

    @classmethod
    def of(cls, data: LabelledData) -> Normalisation:
        """Statistics of `data`: population standard deviation, sums in float64 (exact for uint8)."""
        channels = data.inputs.shape[1]
        total, squares = (torch.zeros(channels, dtype=torch.float64) for _ in range(2))
        for chunk in torch.split(data.inputs, _CHUNK):
            values = chunk.double().cpu()
            other = [axis for axis in range(values.ndim) if axis != 1]
            total += values.sum(other)
            squares += (values * values).sum(other)
        count = data.inputs.numel() / channels
        mean = total / count
        std = (squares / count - mean * mean).clamp(min=0).sqrt()
        std[std == 0] = data.full_scale
        return cls(tuple((mean / data.full_scale).tolist()), tuple((std / data.full_scale).tolist()))

    def __call__(self, data: LabelledData) -> Tensor:
        """Standardised inputs, shape (n, channels, ...), float32."""
        inputs = _unit(data)
        if inputs.shape[1] != len(self.mean):
            raise DataError(f"{data.name} has {inputs.shape[1]} channels; the normalisation has {len(self.mean)}")
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        mean, std = (torch.tensor(values, device=inputs.device).view(shape) for values in (self.mean, self.std))
        return inputs.sub_(mean).div_(std)  # in place: `_unit` has made the copy

    def to_dict(self) -> dict[str, list[float]]:
        """A dictionary that JSON can hold; `from_dict` is its inverse."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalisation:
        """The inverse of `to_dict`; raises DataError for anything else."""
        try:
            mean, std = (tuple(float(number) for number in values[key]) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a normalisation is {{'mean': [...], 'std': [...]}}; got {values!r}") from error
        return cls(mean, std)


def _unit(data: LabelledData) -> Tensor:
    """A fresh float32 tensor of inputs / full_scale."""
    return data.inputs.to(torch.float32, copy=True).div_(data.full_scale)


def normalise(
    data: LabelledData, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """(inputs / full_scale - mean) / std by channel; without statistics, those of `data` itself.

    For a test split pass the train split's: `normalise(test, *dataclasses.astuple(Normalisation.of(train)))`,
    or `Normalisation.of(train)(test)`.

    Args:
        data: n samples of shape (channels, ...).
        mean, std: one number a channel, on the scale [0, 1]; both or neither.

    Returns:
        Shape of `data.inputs`, float32.

    Raises:
        DataError: one statistic without the other, or another number of channels.
    """
    if (mean is None) != (std is None):
        raise DataError("normalise needs both mean and std, or neither")
    if mean is None or std is None:
        return Normalisation.of(data)(data)
    return Normalisation(tuple(mean), tuple(std))(data)


def load_tensors(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    limit: int | None = None,
    scaling: str | Normalisation = "unit",
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    mode: str | None = None,
    image_size: int | None = None,
    max_pixels: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """A source as a network takes it: float32 inputs and int64 targets.

    Args:
        source, split, limit, config, image_column, label_column, mode, image_size, max_pixels, progress: as for `load`.
        scaling: "unit" for inputs in [0, 1]; "standard" for zero mean and unit standard deviation by channel
            over the source's whole train split, independent of `split` and `limit` (reads that split as
            well); a Normalisation to use recorded statistics.

    Returns:
        Inputs of shape (n, channels, height, width), float32; targets of shape (n,), int64.

    Raises:
        UnknownName: no such scaling, split or column. DataError, MissingExtra: as `load`.

    Examples:
        >>> x, y = load_tensors("digits", "train[:100]")
        >>> x.shape, float(x.max())
        (torch.Size([100, 1, 8, 8]), 1.0)
    """
    if isinstance(scaling, str) and scaling not in ("unit", "standard"):
        raise UnknownName("scaling", scaling, ("unit", "standard"))

    def fetch(part: str, count: int | None) -> LabelledData:
        return load(
            source,
            part,
            limit=count,
            config=config,
            image_column=image_column,
            label_column=label_column,
            mode=mode,
            image_size=image_size,
            max_pixels=max_pixels,
            progress=progress,
        )

    data = fetch(split, limit)
    if scaling == "unit":
        return _unit(data), data.targets
    if not isinstance(scaling, Normalisation):
        scaling = Normalisation.of(data if (split, limit) == ("train", None) else fetch("train", None))
    return scaling(data), data.targets
