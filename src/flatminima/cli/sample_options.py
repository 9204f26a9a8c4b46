"""Reading and scaling of samples, as typed: the options that every command with data has."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from flatminima.catalog.choices import LAYOUTS, SCALINGS
from flatminima.cli import factory
from flatminima.cli.options import (
    Classes,
    DataArg,
    DataConfig,
    ImageColumn,
    ImageMode,
    ImageSize,
    InputColumns,
    LabelColumn,
    Layout,
    Length,
    Limit,
    MaxPixels,
    Mean,
    Packing,
    Scaling,
    Std,
    TextColumn,
)
from flatminima.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from flatminima.data import Normalisation


@dataclass(frozen=True)
class Reading:
    """Reading and scaling of samples."""

    scaling: Scaling = "unit"
    mean: Mean = None
    std: Std = None
    classes: Classes = None
    columns: InputColumns = None
    label_column: LabelColumn = None
    image_column: ImageColumn = None
    mode: ImageMode = None
    image_size: ImageSize = None
    max_pixels: MaxPixels = None
    layout: Layout = None
    data_config: DataConfig = None
    data_arg: DataArg = None
    limit: Limit = None
    text_column: TextColumn = None
    length: Length = None
    packing: Packing = False

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        if self.scaling not in SCALINGS:
            raise UnknownName("scaling", self.scaling, SCALINGS)
        if self.layout is not None and self.layout not in LAYOUTS:
            raise UnknownName("layout", self.layout, LAYOUTS)
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std go together: give both, one number or one a channel (0.49,0.48,0.45)")
        if self.mean is not None and self.std is not None:
            mean, std = _numbers("--mean", self.mean), _numbers("--std", self.std)
            if len(mean) != len(std) or min(std) <= 0:
                got = f"--mean {self.mean} and --std {self.std}"
                raise UsageError(f"got {got}; expected as many of each, --std above 0")
            if self.scaling != "unit":
                raise UsageError(f"got --scaling {self.scaling} and --mean; give one of them")
        factory.arguments(list(self.data_arg or ()), "--data-arg")

    @property
    def normalisation(self) -> str | Normalisation:
        """Scaling in the form that `prepare` takes."""
        if self.mean is None or self.std is None:
            return self.scaling
        from flatminima.data import Normalisation

        return Normalisation(_numbers("--mean", self.mean), _numbers("--std", self.std))

    def names(self) -> tuple[str, ...] | None:
        """Names given with --classes."""
        return None if self.classes is None else tuple(c.strip() for c in self.classes.split(",") if c.strip())

    def document(self) -> dict[str, Any]:
        """Scaling, limit, and what else was given, as JSON holds it."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in given.items() if v not in (None, [], False) or k in ("scaling", "limit")}


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(v) for v in values):
        raise UsageError(f"got {option} {text}; expected a number, or one a channel: 0.49,0.48,0.45")
    return values
