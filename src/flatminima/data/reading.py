"""The reading of a source's samples, where it is not what the source itself suggests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from flatminima.catalog.choices import LAYOUTS
from flatminima.errors import DataError

Targets = Literal["classes", "none", "numbers"]


class ReadingOptions(TypedDict, total=False):
    """The fields of `Reading`, as keyword arguments of `load` and `load_tensors`."""

    config: str | None
    image_column: str | None
    label_column: str | None
    columns: str | None
    classes: tuple[str, ...] | None
    mode: str | None
    image_size: int | None
    max_pixels: int | None
    layout: str | None
    targets: Targets


@dataclass(frozen=True)
class Reading:
    """The parts of a source that become inputs and labels.

    Args:
        config: the configuration of a data set that has several.
        image_column, label_column: names of columns where they cannot be guessed.
        columns: of the inputs, separated by commas: "age,income". Several inputs are separated by semicolons and may
            have names: "image;age,income", "pixels=image;table=age,income".
        classes: names of the classes in the order of the network's outputs; None: as the source has them, or sorted.
        mode: "L" (grey) or "RGB": convert every image.
        image_size: resize every image to this many pixels square.
        max_pixels: of one image, 16.8 million unless given: a small file may decode to gigabytes.
        layout: "chw" or "hwc", of arrays of images where the shape leaves both open.
        targets: "numbers" for a loss that compares outputs with numbers: labels that are no classes are kept; "none":
            labels are not needed, and every target is 0.

    Raises:
        DataError: a layout that does not exist, no columns, classes named twice.
    """

    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    columns: str | None = None
    classes: tuple[str, ...] | None = None
    mode: str | None = None
    image_size: int | None = None
    max_pixels: int | None = None
    layout: str | None = None
    targets: Targets = "classes"

    def __post_init__(self) -> None:
        if self.max_pixels is not None and self.max_pixels < 1:
            raise DataError(f"max_pixels={self.max_pixels}: at least one pixel is needed")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise DataError(f"layout={self.layout!r}: pass 'chw' (channels first) or 'hwc' (channels last)")
        if self.classes is not None:
            twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
            if twice or len(self.classes) < 1:
                raise DataError(f"classes name {twice[0]!r} twice" if twice else "classes name no class")
        if self.columns is not None and not all(names for _, names in self.inputs):
            raise DataError(f"columns={self.columns!r}: write 'age,income', or 'image;age,income' for two inputs")

    @property
    def inputs(self) -> list[tuple[str | None, list[str]]]:
        """Name and columns of each input, in the order of `columns`."""
        found = []
        for part in (self.columns or "").split(";"):
            name, equals, names = part.rpartition("=")
            kept = [n.strip() for n in names.split(",") if n.strip()]
            found.append((name.strip() if equals else None, kept))
        return found if self.columns is not None else []
