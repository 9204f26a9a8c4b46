"""A figure that a notebook shows as the value of a cell, whether or not pyplot was imported."""

from __future__ import annotations

import io
from typing import final

from matplotlib.figure import Figure

_PIXELS = 160  # an inch of the PNG


@final
class Picture(Figure):
    """A matplotlib Figure beyond pyplot, which alone would show as its class and size."""

    def png(self) -> bytes:
        """The picture on white."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_PIXELS, bbox_inches="tight", facecolor="white")
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()
