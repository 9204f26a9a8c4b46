"""Loss landscapes: the mean loss on a line or plane through a minimum (Li et al. 2018), with the noise's ball."""

from flatminima.catalog.choices import DIRECTIONS
from flatminima.landscape.direction import Direction, directions, filter_normalised
from flatminima.landscape.figure import draw, write
from flatminima.landscape.surface import Ball, Landscape, landscape

__all__ = [
    "DIRECTIONS",
    "Ball",
    "Direction",
    "Landscape",
    "directions",
    "draw",
    "filter_normalised",
    "landscape",
    "write",
]


def __dir__() -> list[str]:
    return __all__
