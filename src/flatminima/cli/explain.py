"""`flatminima measure --explain`: what a page about one network wants beside its measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli.terminal import say
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum
    from flatminima.core.statistic import Cost
    from flatminima.landscape import Landscape

MEASURES = ("bicriteria", "effective_dimension")  # the curve, and the Hessian's spectrum
PICTURES = {
    "landscape-line": ("filter", 1),
    "landscape-plane": ("filter", 2),
    "landscape-eigenvector": ("eigenvectors", 1),
    "landscape-eigenvectors": ("eigenvectors", 2),
}
FILES = tuple(f"{name}.{kind}" for name in PICTURES for kind in ("svg", "png"))
_POINTS = {1: 51, 2: 17}  # a side
_SAMPLES = 500
AUDITED = 1_000  # samples of the audit


def with_more(names: Sequence[str]) -> list[str]:
    """The names, and those that the page wants."""
    return [*names, *(name for name in MEASURES if name not in names)]


def part(minimum: Minimum) -> Minimum:
    """The same network on at most `AUDITED` samples of its data, drawn by its seed."""
    if len(minimum.samples) <= AUDITED:
        return minimum
    data = minimum.samples.take(minimum.samples.order(minimum.seed)[:AUDITED])
    return minimum.replace(data=data)


def landscapes(minimum: Minimum, seed: int) -> dict[str, Landscape]:
    """The loss on lines and planes along random directions and along the steepest; a note where there are none."""
    from flatminima.landscape import directions, landscape

    found = {}
    for kind in ("filter", "eigenvectors"):
        try:
            along = directions(minimum, kind, 2, samples=_SAMPLES, seed=seed)
        except Undefined as reason:
            say(f"Note: no landscape along {kind}: {reason.reason}")
            continue
        for name, (of, count) in PICTURES.items():
            if of == kind:
                found[name] = landscape(minimum, along[:count], steps=_POINTS[count], samples=_SAMPLES, seed=seed)
    return found


def cost(minimum: Minimum, products: int) -> Cost:
    """Cost of `landscapes`, in passes over all the samples: points of both kinds, and `products` with the Hessian."""
    from flatminima.core.statistic import Cost

    share = min(_SAMPLES, len(minimum.samples)) / len(minimum.samples)
    points = sum(_POINTS[count] ** count for _, count in PICTURES.values())
    return Cost(share * (points + 1), share * 2 * products)


def write(found: dict[str, Landscape], folder: Path) -> None:
    """Their figures into a folder that exists, where the page looks for them."""
    from flatminima.landscape import write as draw

    for name, one in found.items():
        draw(one, folder, name)


def document(found: dict[str, Landscape]) -> dict[str, Any]:
    """Their numbers for JSON."""
    return {name: one.to_dict() | {"along": PICTURES[name][0]} for name, one in found.items()}
