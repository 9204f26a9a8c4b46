"""Stored integers to the float32 that a network sees.

Explicit conventions: "unit" divides by the full scale (pixels in [0, 1]), "standard" also subtracts the
mean and divides by the standard deviation of each channel, taken over the *train* split whichever split is
asked for. A network measured on other inputs than it was trained on is another network: record the scaling
with the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from flatminima.catalog.choices import SCALINGS
from flatminima.data.labelled import LabelledData
from flatminima.data.reading import ReadingOptions
from flatminima.data.sources import load
from flatminima.errors import DataError, UnknownName

_FEW_CLASSES = 5  # whose names fit one line
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
        if data.inputs.dtype == torch.int64:
            raise DataError(f"{data.name} holds tokens: scaling='none' leaves them as they are")
        inputs = _unit(data)
        if inputs.shape[1] != len(self.mean):
            grey = ": pass mode='RGB'" if (inputs.shape[1], len(self.mean)) == (1, 3) else ""
            raise DataError(f"{data.name} has {inputs.shape[1]} channels; the normalisation has {len(self.mean)}{grey}")
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        mean, std = (torch.tensor(values, device=inputs.device).view(shape) for values in (self.mean, self.std))
        return inputs.sub_(mean).div_(std)  # in place: `_unit` has made the copy

    def over(self, channels: int) -> Normalisation:
        """The same for so many channels, where there is one number for all of them."""
        return Normalisation(self.mean * channels, self.std * channels) if len(self.mean) == 1 else self

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


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's, of RGB in [0, 1]


def _unit(data: LabelledData) -> Tensor:
    """A fresh float32 tensor of inputs / full_scale; tokens stay the integers that they are."""
    if data.inputs.dtype == torch.int64:
        return data.inputs
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


@dataclass(frozen=True)
class Prepared:
    """Samples as a network takes them.

    Attributes:
        inputs: float32 (n, ...); a tuple or a dict where the network takes several.
        targets: (n,) int64, or float32 where they are numbers to predict.
        classes: their names, where they have names.
        said: what was understood, in one line.
    """

    inputs: Any
    targets: Tensor
    classes: tuple[str, ...] | None
    said: str


def prepare(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    limit: int | None = None,
    scaling: str | Normalisation = "unit",
    progress: Callable[[int, int, str], None] | None = None,
    **options: Unpack[ReadingOptions],
) -> Prepared:
    """A source as a network takes it, with what was understood of it.

    Args:
        source, split, limit, progress, options: as for `load`.
        scaling: a name of `SCALINGS`, or a Normalisation to use recorded statistics. "unit": inputs in [0, 1]; "none":
            as stored; "standard": zero mean and unit standard deviation by channel (or column) over the source's whole
            train split, independent of `split` and `limit` (reads that split as well); "imagenet": ImageNet's mean and
            standard deviation, of three channels. "standard" standardises further inputs too.

    Raises:
        UnknownName: no such scaling, split or column. DataError, MissingExtra: as `load`.

    Examples:
        >>> prepare("digits", "train[:100]").said
        '100 images 8x8x1, 10 classes, scaled by 1/16'
    """
    if isinstance(scaling, str) and scaling not in SCALINGS:
        raise UnknownName("scaling", scaling, SCALINGS)
    data = load(source, split, limit=limit, progress=progress, **options)
    if scaling != "standard" or (split, limit) == ("train", None):
        return scaled(data, data, scaling)
    options["targets"] = "none"  # of the train split only inputs count
    return scaled(data, load(source, "train", progress=progress, **options), scaling)


def scaled(data: LabelledData, train: LabelledData, scaling: str | Normalisation) -> Prepared:
    """Samples as a network takes them.

    Args:
        data: as stored.
        train: whose mean and deviation "standard" takes.
        scaling: a name of `SCALINGS`, or statistics: of every input of images, or of the first input where none is one.
    """
    parts, sources = data.parts(), train.parts() if scaling == "standard" else data.parts()
    pictures = _pictures(parts)
    first, *others = (
        _part(part, source, scaling if i in pictures or scaling in ("standard", "none") else "unit", i)
        for i, (part, source) in enumerate(zip(parts, sources, strict=True))
    )
    named = dict(zip(data.others, others, strict=True))
    return Prepared(
        replace(data, others=named).together(first), data.targets, data.classes, _describe(data, parts, scaling)
    )


def _pictures(parts: Sequence[LabelledData]) -> list[int]:
    """Places of the inputs that a mean and deviation of channels are of."""
    return [i for i, part in enumerate(parts) if part.inputs.ndim == 4] or [0]


def _part(part: LabelledData, train: LabelledData, scaling: str | Normalisation, place: int) -> Tensor:
    """One input, scaled; further inputs of tokens stay as they are."""
    tokens = part.inputs.dtype == torch.int64
    if tokens and (place or scaling == "none"):
        return part.inputs
    if scaling == "standard":
        return Normalisation.of(train)(part)
    if scaling == "imagenet":
        return IMAGENET(part)
    if isinstance(scaling, Normalisation):
        return scaling.over(part.inputs.shape[1])(part)
    return part.inputs.to(torch.float32, copy=True) if scaling == "none" else _unit(part)


def _describe(data: LabelledData, inputs: Sequence[LabelledData], scaling: str | Normalisation) -> str:
    """One line: how many samples of which shape, which labels, how they are scaled.

    Examples:
        >>> digits = load("digits", "test")
        >>> _describe(digits, digits.parts(), "none")
        '539 images 8x8x1, 10 classes, as stored (0 to 16)'
    """
    parts = [f"{len(data):,} {_shaped(data.inputs)}"]
    parts += [f"with {name}: {_shaped(tensor)}" for name, tensor in data.others.items()]
    if data.n_classes == 0:
        parts.append("numbers to predict")
    else:
        named = data.classes is not None and data.classes != tuple(map(str, range(data.n_classes)))
        few = named and data.classes is not None and len(data.classes) <= _FEW_CLASSES
        parts.append(f"{data.n_classes} classes" + (f" ({', '.join(data.classes or ())})" if few else ""))
    parts.append(_scaled(inputs[_pictures(inputs)[0]], scaling))
    aside = f" (not used: {', '.join(data.unused[:_FEW_CLASSES])})" if data.unused else ""
    return ", ".join(parts) + aside


def _shaped(inputs: Tensor) -> str:
    if inputs.ndim == 4:
        channels, height, width = inputs.shape[1:]
        return f"images {height}x{width}x{channels}"
    if inputs.dtype == torch.int64:
        return f"rows of {inputs.shape[1]} tokens"
    return (
        f"rows of {inputs.shape[1]} numbers" if inputs.ndim == 2 else f"arrays {'x'.join(map(str, inputs.shape[1:]))}"
    )


def _scaled(data: LabelledData, scaling: str | Normalisation) -> str:
    scale = f"{data.full_scale:g}"
    if data.inputs.dtype == torch.int64:
        return "as stored"
    if isinstance(scaling, Normalisation):
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (scaling.mean, scaling.std))
        own = "value" if data.full_scale == 1 else f"value/{scale}"
        return f"scaled as ({own} - ({mean})) / ({std})"
    if scaling == "standard":
        return "standardised by the train split's mean and deviation"
    if scaling == "imagenet":
        return "scaled by ImageNet's mean and deviation"
    if scaling == "unit" and data.full_scale != 1:
        return f"scaled by 1/{scale}"
    low, high = (float(f(data.inputs.float())) for f in (torch.min, torch.max))
    return f"as stored ({low:.4g} to {high:.4g})"


def load_tensors(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    limit: int | None = None,
    scaling: str | Normalisation = "unit",
    progress: Callable[[int, int, str], None] | None = None,
    **options: Unpack[ReadingOptions],
) -> tuple[Tensor, Tensor]:
    """A source as a network of one input takes it: float32 inputs and int64 targets.

    Args:
        source, split, limit, scaling, progress, options: as for `prepare`.

    Returns:
        Inputs of shape (n, channels, height, width) or (n, features), float32; targets of shape (n,), int64.

    Raises:
        UnknownName: no such scaling, split or column. DataError, MissingExtra: as `load`, or several inputs.

    Examples:
        >>> x, y = load_tensors("digits", "train[:100]")
        >>> x.shape, float(x.max())
        (torch.Size([100, 1, 8, 8]), 1.0)
    """
    found = prepare(source, split, limit=limit, scaling=scaling, progress=progress, **options)
    if not isinstance(found.inputs, Tensor):
        raise DataError(
            f"{os.fspath(source)} gives several inputs, where one tensor is needed: call prepare, or name columns"
        )
    return found.inputs, found.targets
