"""Quantities that a tracker can follow, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flatminima import catalog
from flatminima.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Quantity:
    """A quantity as the table and the page name it. `usual`: followed unless the caller names others."""

    name: str
    summary: str
    cost: str
    usual: bool = False


_ROWS = (
    Quantity("eigenvalue", "largest eigenvalue of the loss's Hessian", "2 to 10 Hessian products", True),
    Quantity("preconditioned", "the same in the optimizer's metric, beside its threshold", "as eigenvalue", True),
    Quantity("gauss_newton", "largest eigenvalue of the Gauss-Newton matrix", "2 to 10 products"),
    Quantity("trace", "trace of the Hessian, with its standard error", "2 Hessian products", True),
    Quantity("critical_sharpness", "2 / the step along the gradient that raises the loss", "4 forward passes", True),
    Quantity("update_sharpness", "the same along the optimizer's last update", "4 forward passes"),
    Quantity("gradient_norm", "length of the gradient of the probe's loss", "nothing beside a product", True),
    Quantity("noise_scale", "variance of the samples' gradients over their squared mean", "2 gradients"),
    Quantity("expected_sharpness", "rise of the loss under random weight noise", "forward passes on a block"),
    Quantity("distance", "distance of the weights from where tracking began", "nothing", True),
    Quantity("optimizer", "what PertOPT and SAM know: noise, kappa_bound, h, L(w + e) - L(w)", "nothing", True),
)
QUANTITIES: Mapping[str, Quantity] = {row.name: row for row in _ROWS}
CURVATURES = ("eigenvalue", "preconditioned", "trace", "gradient_norm")  # of one Hessian's graphs


def usual(every: int = 50) -> dict[str, int]:
    """The usual quantities, each every so many steps; add others with `|`.

    Examples:
        >>> sorted((usual(50) | {"fisher_trace": 1000}).items())[:2]
        [('critical_sharpness', 50), ('distance', 50)]
    """
    return {row.name: every for row in _ROWS if row.usual}


def intervals(quantities: Iterable[str] | Mapping[str, int] | None, every: int) -> dict[str, int]:
    """Name -> steps between two looks, of quantities and of the catalogue's measures.

    Raises:
        UnknownName: neither. UsageError: an interval below 1, a measure that needs what the tracker does not have.
    """
    if quantities is None:
        quantities = usual(every)
    if isinstance(quantities, str):
        quantities = [quantities]
    found = dict(quantities) if isinstance(quantities, Mapping) else dict.fromkeys(quantities, every)
    for name in found:
        if name == "distance_from_init":
            raise UsageError("distance_from_init needs the initial weights: follow the quantity 'distance'")
        if name not in QUANTITIES and name not in catalog.MEASURES:
            raise UnknownName("quantity or measure", name, [*QUANTITIES, *catalog.MEASURES])
    for name, interval in found.items():
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise UsageError(f"got an interval of {interval!r} steps for {name}; a whole number from 1")
    return found
