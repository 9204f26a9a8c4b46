"""`rank()`: which measure orders networks as their generalization gap does."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flatminima.errors import UsageError
from flatminima.minimum import Minimum
from flatminima.ranking.correlation import Correlation, kendall
from flatminima.rounds import MeasureFunction, measure
from flatminima.table import MeasureTable

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 80


@dataclass(frozen=True)
class RankTable:
    """Kendall's tau between each measure and the generalization gap, best first.

    A measure whose direction is "higher" enters with its sign turned, so a positive tau always means that the measure
    orders the networks as their gaps do.

    Attributes:
        correlations: measure name -> Correlation, undefined ones last.
        networks: how many were ranked.
    """

    correlations: dict[str, Correlation]
    networks: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {name: asdict(c) for name, c in self.correlations.items()}

    def to_pandas(self) -> pd.DataFrame:
        """One row a measure: tau, low, high, networks, undefined."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.to_dict(), orient="index")

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
    seed: int = 0,
    confidence: float = 0.95,
) -> RankTable:
    """Score measures by how they order networks of known generalization gap.

    Args:
        minima: networks, as Minimum (measured here) or as MeasureTable (measured before).
        gaps: held-out minus training error (or loss) of each.
        measures: names or functions; None: all of the catalogue, or all that the tables hold.
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
    tables = [m if isinstance(m, MeasureTable) else measure(m, wanted) for m in minima]
    names = list(dict.fromkeys(name for table in tables for name in table))
    if wanted is not None:
        chosen = {m if isinstance(m, str) else getattr(m, "__name__", str(m)) for m in wanted}
        names = [n for n in names if n in chosen] or names
    found = {name: _score(name, tables, gaps, seed, confidence) for name in names}
    ordered = sorted(found.items(), key=lambda item: (item[1].tau is None, -(item[1].tau or 0.0), item[0]))
    return RankTable(dict(ordered), len(tables))


def _score(
    name: str, tables: Sequence[MeasureTable], gaps: Sequence[float], seed: int, confidence: float
) -> Correlation:
    pairs = []
    for table, gap in zip(tables, gaps, strict=True):
        estimate = table.get(name)
        if estimate is not None and estimate.value is not None:
            pairs.append((-estimate.value if estimate.direction == "higher" else estimate.value, gap))
    values, kept = zip(*pairs, strict=True) if pairs else ((), ())
    return kendall(values, kept, seed=seed, confidence=confidence)


def render(table: RankTable, console: Any) -> None:
    """The table on a rich console, within 80 columns."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("measure", no_wrap=True)
    grid.add_column("tau", justify="right", no_wrap=True)
    grid.add_column("interval", justify="right", no_wrap=True)
    grid.add_column("n", justify="right", no_wrap=True)
    grid.add_column("agrees", overflow="fold", ratio=1)
    for name, c in table.correlations.items():
        if c.tau is None or c.low is None or c.high is None:
            grid.add_row(name, "-", "-", str(c.networks), f"undefined: {c.undefined}")
        else:
            sure = "yes" if c.low > 0 else "no" if c.high < 0 else "undecided"
            grid.add_row(
                name, f"{c.tau:+.2f}", f"[{c.low:+.2f}, {c.high:+.2f}]".replace("[", r"\["), str(c.networks), sure
            )
    console.print(grid)
