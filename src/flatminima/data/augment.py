"""Augmentation by the batch, on the device: one gather moves every image at once.

Pure functions of a batch and a Generator. The generator lives on the CPU whatever the device, so that a seed
means the same crops everywhere. Padding is with `fill`, on the scale of the batch: 0 is black for "unit"
inputs and the mean for "standard" ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from flatminima.errors import DataError, UnknownName

_Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def random_flip(images: Tensor, generator: torch.Generator, *, probability: float = 0.5) -> Tensor:
    """Each image mirrored left to right with the given probability.

    Args:
        images: shape (n, channels, height, width). probability: in [0, 1].

    Returns:
        A new tensor of the same shape and dtype.
    """
    _check(images)
    if not 0.0 <= probability <= 1.0:
        raise DataError(f"probability={probability}: must be between 0 and 1")
    flip = (torch.rand(len(images), generator=generator) < probability).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def random_crop(
    images: Tensor,
    generator: torch.Generator,
    *,
    padding: int = 4,
    size: int | None = None,
    fill: float = 0.0,
) -> Tensor:
    """A random window of each image after padding all four sides; every offset is equally likely.

    Args:
        images: shape (n, channels, height, width).
        padding: pixels added to each side, 0 or more.
        size: side of the window; None keeps height and width.
        fill: value of the padding.

    Returns:
        Shape (n, channels, size, size), or that of `images`.

    Raises:
        DataError: a window larger than the padded image.
    """
    _check(images)
    n, channels, height, width = images.shape
    rows, columns = (height, width) if size is None else (size, size)
    spare = (height + 2 * padding - rows, width + 2 * padding - columns)
    if padding < 0 or min(rows, columns) < 1 or min(spare) < 0:
        raise DataError(f"no window of {rows}x{columns} in {height}x{width} images padded by {padding}")
    top, left = (torch.randint(room + 1, (n,), generator=generator).to(images.device) for room in spare)
    padded = pad(images, (padding,) * 4, value=fill)
    row = top[:, None] + torch.arange(rows, device=images.device)  # (n, rows)
    column = left[:, None] + torch.arange(columns, device=images.device)  # (n, columns)
    sample = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, row[:, None, :, None], column[:, None, None, :]]


def random_shift(images: Tensor, generator: torch.Generator, *, pixels: int = 2, fill: float = 0.0) -> Tensor:
    """Each image moved by up to `pixels` in each direction; what leaves is lost, what enters is `fill`."""
    return random_crop(images, generator, padding=pixels, fill=fill)


def augmentation(name: str, *, side: int | None = None) -> _Augmentation | None:
    """The augmentation schemes of J20 fig. 2, from least to most.

    "none" is None; "flip" mirrors at random; "1-crop-f" and "4-crop-f" crop from 1 or 4 pixels of padding, then flip
    (J20, sec. 7.1).

    Args:
        name: of the scheme. side: of images reduced from 32 x 32: the padding is the same share of it, rounded half
            up (at 16: 1 and 2 pixels); None: the pixels as printed.

    Raises:
        UnknownName: no such scheme. DataError: a side below 1.
    """
    if name not in _SCHEMES:
        raise UnknownName("augmentation", name, _SCHEMES)
    if side is not None and side < 1:
        raise DataError(f"side={side}: images have at least one pixel a side")
    padding = _SCHEMES[name]
    if padding is None:
        return random_flip if name == "flip" else None
    return _crop_and_flip(padding if side is None else math.floor(padding * side / _PRINTED_SIDE + 0.5))


def _crop_and_flip(padding: int) -> _Augmentation:
    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        return random_flip(random_crop(images, generator, padding=padding), generator)

    return augment


_PRINTED_SIDE = 32  # of the images whose padding the paper prints
_SCHEMES: dict[str, int | None] = {"none": None, "flip": None, "1-crop-f": 1, "4-crop-f": 4}  # pixels of padding


def _check(images: Tensor) -> None:
    if images.ndim != 4:
        raise DataError(f"images have shape (n, channels, height, width); got {tuple(images.shape)}")
