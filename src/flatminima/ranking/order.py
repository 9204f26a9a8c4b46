"""One order of networks from many measures, with how sure it is.

Each measure votes by its ranks (Borda); the interval resamples the measures, and within each the values by their
standard errors, so that neither one odd measure nor noise decides in silence.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import UsageError
from flatminima.escaping import shown
from flatminima.ranking.calibrated import probabilities
from flatminima.table import MeasureTable

_RESAMPLES = 2_000
_BEHIND = 0.05  # training error above the best's at which a network is no longer compared
_HOPELESS = 0.5  # training error above which nothing is fitted, whatever the others do
_USUAL = 3  # voters of the default ones that the probabilities need
# what the benchmark zoo found to order gaps (docs/which-measure.md); those a table lacks are left out
RECOMMENDED = ("robustness", "path_norm", "fisher_spectral_radius", "fisher_frobenius", "fisher_trace")


@dataclass(frozen=True)
class Place:
    """A network's place.

    Attributes:
        name: of the network.
        rank: mean rank over the measures, 1 is best.
        low, high: 95% interval of it.
        best: probability of the smallest gap; those of all networks add up to 1 (see `calibrated`).
    """

    name: str
    rank: float
    low: float
    high: float
    best: float


@dataclass(frozen=True)
class Order:
    """Networks from the most to the least promising.

    Attributes:
        places: in that order.
        measures: that voted.
        agreement: Kendall's W of the measures' ranks in [0, 1]: 1 where all agree.
        left_out: networks whose tables show that they do not fit their data, and why.
        calibrated: whether the probabilities were fitted to votes of these measures.
    """

    places: tuple[Place, ...]
    measures: tuple[str, ...]
    agreement: float
    left_out: tuple[tuple[str, str], ...] = ()
    calibrated: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        places = [vars(p) for p in self.places]
        return {
            "places": places,
            "measures": list(self.measures),
            "agreement": self.agreement,
            "left_out": [list(pair) for pair in self.left_out],
            "calibrated": self.calibrated,
        }

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        render_order(self, Console(file=buffer, width=80, force_terminal=False, no_color=True))
        return buffer.getvalue().rstrip()


def order(
    tables: Sequence[MeasureTable],
    names: Sequence[str] | None = None,
    measures: Iterable[str] | None = None,
    *,
    seed: int = 0,
) -> Order:
    """Order networks by the votes of measures.

    Args:
        tables: of the networks, measured with the same options.
        names: of the networks; None: network 1, 2, ...
        measures: that vote; None: those that did best in our benchmark zoo, as far as every table has them.
        seed: of the resamples.

    Returns:
        Order, the most promising first. A network that its table (`margin`) shows to fit its training data much worse
        than the best is left out and named: measures order gaps of networks that fit.

    Raises:
        UsageError: fewer than two networks, names of another number, or no measure that is defined for all of them.

    Examples:
        >>> from flatminima.estimate import Estimate
        >>> def table(v): return MeasureTable({"path_norm": Estimate(v)}, 1, 1, 0, 0, 0, "", "")
        >>> [p.name for p in order([table(3.0), table(1.0)], ["a", "b"]).places]
        ['b', 'a']
    """
    if len(tables) < 2 or (names is not None and len(names) != len(tables)):
        got = len(tables) if names is None else len(names)
        raise UsageError(f"got {len(tables)} networks and {got} names; give two networks or more, and a name each")
    labels = list(names) if names is not None else [f"network {i + 1}" for i in range(len(tables))]
    reasons = _unfitted(tables)
    left_out = tuple((labels[i], reason) for i, reason in reasons.items())
    labels = [name for i, name in enumerate(labels) if i not in reasons]
    tables = [table for i, table in enumerate(tables) if i not in reasons]
    if len(tables) < 2:  # one that fits is the first of one
        alone = tuple(Place(name, 1.0, 1.0, 1.0, 1.0) for name in labels)
        return Order(alone, (), 1.0, left_out, calibrated=False)
    voting = [m for m in (RECOMMENDED if measures is None else measures) if _defined(m, tables)]
    if not voting:
        known = sorted({m for t in tables for m in t if _defined(m, tables)})
        raise UsageError(f"no measure to order by is defined for every network; defined: {', '.join(known) or 'none'}")
    values = np.array([[_oriented(t, m) for t in tables] for m in voting])  # (measures, networks)
    errors = np.array([[t[m].stderr or 0.0 for t in tables] for m in voting])
    ranks = _ranks(values)
    rng = np.random.default_rng(seed)
    means = np.empty((_RESAMPLES, len(tables)))
    for r in range(_RESAMPLES):
        drawn = rng.integers(0, len(voting), len(voting))
        noisy = values[drawn] + errors[drawn] * rng.standard_normal((len(voting), len(tables)))
        means[r] = _ranks(noisy).mean(0)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    mean = ranks.mean(0)
    best = probabilities(mean)
    places = [
        Place(labels[i], float(mean[i]), float(low[i]), float(high[i]), float(best[i])) for i in range(len(tables))
    ]
    places.sort(key=lambda p: (p.rank, p.name))
    usual = set(voting) <= set(RECOMMENDED) and len(voting) >= _USUAL
    return Order(tuple(places), tuple(voting), _agreement(ranks), left_out, usual)


def _unfitted(tables: Sequence[MeasureTable]) -> dict[int, str]:
    """Networks whose training error, where the tables know it, is far from the best one's."""
    known = {i: t["margin"].details.get("train_error") for i, t in enumerate(tables) if "margin" in t}
    errors = {i: float(e) for i, e in known.items() if isinstance(e, int | float)}
    lowest = min(errors.values(), default=0.0)
    return {
        i: f"{error:.1%} of its training labels are wrong, {lowest:.1%} of the best's"
        for i, error in errors.items()
        if error > lowest + _BEHIND or error > _HOPELESS
    }


def _defined(name: str, tables: Sequence[MeasureTable]) -> bool:
    return all(name in t and t[name].value is not None for t in tables)


def _oriented(table: MeasureTable, name: str) -> float:
    estimate = table[name]
    return -float(estimate) if estimate.direction == "higher" else float(estimate)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 along the last axis, ties shared."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1), dtype=np.float64)


def _agreement(ranks: NDArray[np.float64]) -> float:
    """Kendall's coefficient of concordance, 12 S / (m^2 (n^3 - n))."""
    m, n = ranks.shape
    totals = ranks.sum(0)
    return float(12 * ((totals - totals.mean()) ** 2).sum() / (m**2 * (n**3 - n)))


def render_order(found: Order, console: Any) -> None:
    """The order on a rich console, within 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("network", overflow="fold", ratio=1)
    grid.add_column("mean rank", justify="right", no_wrap=True)
    grid.add_column("95% interval", justify="right", no_wrap=True)
    grid.add_column("smallest gap" if found.calibrated else "share of votes", justify="right", no_wrap=True)
    for place in found.places:
        interval = Text(f"{place.low:.1f} to {place.high:.1f}")
        grid.add_row(Text(shown(place.name)), f"{place.rank:.2f}", interval, f"{place.best:.0%}")
    console.print(grid)
    for name, reason in found.left_out:
        console.print(Text(f"left out: {name}: {reason}"))
    if not found.calibrated:
        console.print(Text("the shares are not calibrated for these networks: no probabilities"))
    voters = ", ".join(found.measures)
    console.print(Text(f"by {len(found.measures)} measures ({voters}); their agreement W = {found.agreement:.2f} of 1"))
