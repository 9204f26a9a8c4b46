"""`rank()`: which measure orders networks as their generalization gap does."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from flatminima.core.minimum import Minimum
from flatminima.display import html
from flatminima.errors import UsageError
from flatminima.ranking.controlled import Controlled, Point, controlled
from flatminima.ranking.correlation import Correlation, kendall
from flatminima.rounds import MeasureFunction, measure
from flatminima.table import MeasureTable

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

_WIDTH = 80


@dataclass(frozen=True)
class RankTable:
    """Kendall's tau between each measure and the generalization gap, best first.

    A measure whose direction is "higher" enters with its sign turned, so a positive tau always means that the measure
    orders the networks as their gaps do.

    Attributes:
        correlations: measure name -> Correlation, undefined ones last.
        networks: how many were ranked.
        controlled: measure name -> Controlled, where the hyper-parameters were given.
    """

    correlations: dict[str, Correlation]
    networks: int
    controlled: dict[str, Controlled] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            name: asdict(c) | ({"controlled": asdict(self.controlled[name])} if name in self.controlled else {})
            for name, c in self.correlations.items()
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row a measure: tau, low, high, networks, undefined; granulated, conditional, worst where known."""
        import pandas as pd

        rows = {name: asdict(c) for name, c in self.correlations.items()}
        for name, c in self.controlled.items():
            rows[name] |= {"granulated": c.granulated, "conditional": c.conditional, "worst": c.worst}
        return pd.DataFrame.from_dict(rows, orient="index")

    def _repr_html_(self) -> str:
        return html("ranking", self)

    def show(self) -> None:
        """Print the table."""
        print(self)

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        render(self, Console(file=buffer, width=_WIDTH, force_terminal=False, no_color=True))
        return buffer.getvalue().rstrip()


def rank(
    minima: Sequence[Minimum | MeasureTable],
    gaps: Sequence[float],
    measures: Iterable[str | MeasureFunction] | None = None,
    *,
    hyperparameters: Sequence[Point] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> RankTable:
    """Score measures by how they order networks of known generalization gap.

    Args:
        minima: networks, as Minimum (measured here) or as MeasureTable (measured before).
        gaps: held-out minus training error (or loss) of each.
        measures: names or functions; None: all of the catalogue, or all that the tables hold.
        hyperparameters: of each network, the same names for all: then measures are also scored by pairs of networks
            that differ in one alone (see `controlled`).
        seed: of the bootstrap over networks.
        confidence: of its interval.

    Returns:
        RankTable; a measure undefined for some networks is scored on the others, and says on how many.

    Raises:
        UsageError: no network, or lengths that differ.
    """
    if not minima or len(minima) != len(gaps):
        raise UsageError(f"got {len(minima)} networks and {len(gaps)} gaps; give one gap a network, and at least one")
    wanted = None if measures is None else list(measures)
    if hyperparameters is not None and len(hyperparameters) != len(minima):
        raise UsageError(f"got {len(minima)} networks and the hyper-parameters of {len(hyperparameters)}; give all")
    tables = [m if isinstance(m, MeasureTable) else measure(m, wanted) for m in minima]
    names = list(dict.fromkeys(name for table in tables for name in table))
    if wanted is not None:
        chosen = {m if isinstance(m, str) else getattr(m, "__name__", str(m)) for m in wanted}
        names = [n for n in names if n in chosen] or names
    found = {name: _score(name, tables, gaps, seed, confidence) for name in names}
    ordered = sorted(found.items(), key=lambda item: (item[1].tau is None, -(item[1].tau or 0.0), item[0]))
    scores = {}
    if hyperparameters is not None:
        for name in dict(ordered):
            values, kept = _pairs(name, tables, list(zip(gaps, hyperparameters, strict=True)))
            if values:
                scores[name] = controlled(values, [gap for gap, _ in kept], [point for _, point in kept])
    return RankTable(dict(ordered), len(tables), scores)


def _score(
    name: str, tables: Sequence[MeasureTable], gaps: Sequence[float], seed: int, confidence: float
) -> Correlation:
    values, kept = _pairs(name, tables, gaps)
    return kendall(values, kept, seed=seed, confidence=confidence)


def _pairs(name: str, tables: Sequence[MeasureTable], others: Sequence[T]) -> tuple[list[float], list[T]]:
    """Values where they are defined, oriented so that lower is better, and what belongs to these networks."""
    values, kept = [], []
    for table, other in zip(tables, others, strict=True):
        estimate = table.get(name)
        if estimate is not None and estimate.value is not None:
            values.append(-estimate.value if estimate.direction == "higher" else estimate.value)
            kept.append(other)
    return values, kept


def render(table: RankTable, console: Any) -> None:
    """The table on a rich console, within 80 columns."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("measure", no_wrap=True)
    grid.add_column("tau", justify="right", no_wrap=True)
    grid.add_column("interval", justify="right", no_wrap=True)
    grid.add_column("n", justify="right", no_wrap=True)
    if table.controlled:
        grid.add_column("granulated", justify="right", no_wrap=True)
        grid.add_column("worst", justify="right", no_wrap=True)
    grid.add_column("agrees", overflow="fold", ratio=1)
    for name, c in table.correlations.items():
        if c.tau is None or c.low is None or c.high is None:
            blank = ["-", "-"] if table.controlled else []
            grid.add_row(name, "-", "-", str(c.networks), *blank, f"undefined: {c.undefined}")
        else:
            sure = "yes" if c.low > 0 else "no" if c.high < 0 else "undecided"
            interval = f"[{c.low:+.2f}, {c.high:+.2f}]".replace("[", r"\[")
            grid.add_row(name, f"{c.tau:+.2f}", interval, str(c.networks), *_controls(table, name), sure)
    console.print(grid)


def _controls(table: RankTable, name: str) -> list[str]:
    """Two cells where hyper-parameters were given, else none."""
    if not table.controlled:
        return []
    found = table.controlled.get(name)
    if found is None or found.granulated is None or found.worst is None:
        return ["-", "-"]
    return [f"{found.granulated:+.2f}", f"{found.worst:.0%} wrong"]
