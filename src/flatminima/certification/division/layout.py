"""Layout of a sample's numbers: channels first or last, an image or a row, and the ways to turn it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flatminima.certification.division.reading import Floats

Shape = tuple[int, ...]

_CHANNELS = (1, 2, 3, 4)  # sizes of an axis that are those of a channel


@dataclass(frozen=True)
class Layout:
    """Shape of one sample as channels, height, width; (1, 1, d) for what is no image."""

    channels: int
    height: int
    width: int
    last: bool = False  # channels come last

    def canonical(self, rows: Floats) -> Floats:
        """Rows (k, d) with channels first."""
        if not self.last or self.channels == 1:
            return rows
        images = rows.reshape(len(rows), self.height, self.width, self.channels)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(rows), -1)

    @cached_property
    def weights(self) -> Floats:
        """Two weights of each position, (height width, 2), that no turn changes: powers of the distance to the middle.

        Of a row, random ones, alike from both ends.
        """
        count = self.height * self.width
        if self.flat:
            found = np.random.default_rng(1).standard_normal((count, 2))
            found += found[::-1].copy()
        else:
            y, x = (np.arange(size) - (size - 1) / 2 for size in (self.height, self.width))
            away = ((y / self.height) ** 2)[:, None] + ((x / self.width) ** 2)[None]
            found = np.stack([away.reshape(-1), away.reshape(-1) ** 2], 1)
        found -= found.mean(0)
        norm = np.sqrt((found**2).sum(0) * count)
        return (found / np.where(norm > 0, norm, 1.0)).astype(np.float32)

    @property
    def flat(self) -> bool:
        """Whether it is a row rather than an image."""
        return self.height == 1 or self.width == 1

    def turns(self, rows: Floats) -> Iterator[tuple[str, Floats]]:
        """Rows with channels first in every position an image can be turned to, with its name; "" for as they are."""
        yield "", rows
        images = rows.reshape(len(rows), self.channels, self.height, self.width)
        if self.flat:
            yield "reversed", np.ascontiguousarray(images[..., ::-1, ::-1]).reshape(len(rows), -1)
            return
        flips = {"flipped": images[..., ::-1], "flipped vertically": images[..., ::-1, :]}
        flips["turned"] = images[..., ::-1, ::-1]
        if self.channels == 3:
            flips |= {"channels reversed": images[:, ::-1], "channels reversed, flipped": images[:, ::-1, :, ::-1]}
        if self.height == self.width:
            over = images.swapaxes(2, 3)
            flips |= {"transposed": over, "turned left": over[..., ::-1, :], "turned right": over[..., ::-1]}
            flips["transposed and turned"] = over[..., ::-1, ::-1]
        for name, image in flips.items():
            yield name, np.ascontiguousarray(image).reshape(len(rows), -1)


def layouts(first: tuple[Shape, ...], second: tuple[Shape, ...]) -> list[tuple[Layout, Layout]]:
    """Pairs of layouts that two sets of equal size may have, all to try.

    A set of rows has the layout of the other, where that one has images: their channels may be first or last in it. A
    volume is images of its height and width with its depth among the channels, and one of its depth by the rest.
    """
    one, two = _layout(first), _layout(second)
    if one is None and two is None:
        d = sum(math.prod(shape) for shape in first)
        row = [(Layout(1, 1, d), Layout(1, 1, d))]
        if first == second and len(first) == 1 and len(first[0]) == 4:
            channels, depth, height, width = first[0]
            of = Layout(channels * depth, height, width), Layout(channels, depth, height * width)
            return [*((layout, layout) for layout in of), *row]
        return row
    if one is None:
        assert two is not None
        return [(mine, two) for mine in _either(two)]
    return [(one, theirs) for theirs in _either(one)] if two is None else [(one, two)]


def _either(layout: Layout) -> list[Layout]:
    """The layout with channels first and, if there are several, last."""
    first = Layout(layout.channels, layout.height, layout.width)
    return [first] if layout.channels == 1 else [first, replace(first, last=True)]


def _layout(shapes: tuple[Shape, ...]) -> Layout | None:
    """Layout of an image; None for rows and for inputs of several tensors."""
    if len(shapes) != 1:
        return None
    shape = shapes[0]
    if len(shape) == 2:
        return Layout(1, *shape)
    if len(shape) != 3:
        return None
    if shape[0] in _CHANNELS or shape[2] not in _CHANNELS:
        return Layout(shape[0], shape[1], shape[2])
    return Layout(shape[2], shape[0], shape[1], last=True)
