"""`rank()`: which measure orders networks as their generalization gap does."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from flatminima import budgets
from flatminima.core.ambient import in_neutral
from flatminima.core.minimum import Minimum
from flatminima.core.samples import as_samples
from flatminima.display import html
from flatminima.errors import UsageError, optional
from flatminima.measuring import MeasureFunction, measure
from flatminima.ranking.candidates import look
from flatminima.ranking.choice import Choice, choose
from flatminima.ranking.controlled import Controlled, Point, controlled
from flatminima.ranking.correlation import Correlation, kendall
from flatminima.ranking.held_out import without_targets
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
        choice: which network to ship, where held-out samples were given or networks are ordered by measures.
    """

    correlations: dict[str, Correlation]
    networks: int
    controlled: dict[str, Controlled] = field(default_factory=dict)
    choice: Choice | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            name: asdict(c) | ({"controlled": asdict(self.controlled[name])} if name in self.controlled else {})
            for name, c in self.correlations.items()
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row a measure: tau, low, high, networks, undefined; granulated, conditional, worst where known.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = optional("pandas", "pandas", "to_pandas()")
        rows = {name: asdict(c) for name, c in self.correlations.items()}
        for name, c in self.controlled.items():
            rows[name] |= {"granulated": c.granulated, "conditional": c.conditional, "worst": c.worst}
        return pandas.DataFrame.from_dict(rows, orient="index")

    def _repr_html_(self) -> str:
        return html("ranking", self)

    def show(self) -> None:
        """Print the table."""
        print(self)

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        console = Console(file=buffer, width=_WIDTH, force_terminal=False, no_color=True)
        if self.choice is not None:
            from flatminima.ranking.render import render_choice

            render_choice(self.choice, console)
        if self.correlations:
            render_correlations(self, console)
        return buffer.getvalue().rstrip()


@in_neutral
def rank(
    minima: Sequence[Minimum | MeasureTable],
    gaps: Sequence[float] | None = None,
    measures: Iterable[str | MeasureFunction] | None = None,
    *,
    test: Any = None,
    unlabelled: Any = None,
    names: Sequence[str] | None = None,
    hyperparameters: Sequence[Point] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> RankTable:
    """Choose the network to ship, and say which measure orders networks as their generalization gap does.

    With `gaps` measures are scored. Without, the networks are compared: by paired tests on the held-out samples `test`
    (and measures are scored by the gaps that these show), or by measures alone. Networks that do not fit their training
    data are left out first, and named.

    Args:
        minima: networks, as Minimum (measured here) or, with `gaps`, as MeasureTable (measured before).
        gaps: held-out minus training error (or loss) of each.
        measures: names or functions; None: with gaps all of the catalogue, or all that the tables hold; else the fast
            budget's.
        test: held-out samples with labels, in any form that a Minimum takes.
        unlabelled: held-out samples whose targets are not read: agreement between the networks, and their confidence.
        names: of the networks; None: network 1, 2, ...
        hyperparameters: of each network, the same names for all: then measures are also scored by pairs of networks
            that differ in one alone (see `controlled`).
        seed: of the bootstrap over networks.
        confidence: of its interval.

    Returns:
        RankTable; its first printed line is the answer (`choice.answer`). A measure undefined for some networks is
        scored on the others, and says on how many.

    Raises:
        UsageError: no network, lengths that differ, tables without gaps, gaps with `test`.
        DataError: held-out samples that fit none of the networks, or are nothing but training samples.
    """
    if gaps is not None and test is not None:
        raise UsageError("got gaps= and test=; give one of them")
    if not minima or (gaps is not None and len(minima) != len(gaps)):
        count = 0 if gaps is None else len(gaps)
        raise UsageError(f"got {len(minima)} networks and {count} gaps; give one gap a network, and at least one")
    wanted = None if measures is None else list(measures)
    if hyperparameters is not None and len(hyperparameters) != len(minima):
        raise UsageError(f"got {len(minima)} networks and the hyper-parameters of {len(hyperparameters)}; give all")
    if gaps is not None:
        tables = [m if isinstance(m, MeasureTable) else measure(m, wanted) for m in minima]
        return score(tables, gaps, wanted, hyperparameters=hyperparameters, seed=seed, confidence=confidence)
    return _compared(minima, wanted, test, unlabelled, names, hyperparameters, seed, confidence)


def _compared(
    minima: Sequence[Minimum | MeasureTable],
    wanted: list[str | MeasureFunction] | None,
    test: Any,
    unlabelled: Any,
    names: Sequence[str] | None,
    hyperparameters: Sequence[Point] | None,
    seed: int,
    confidence: float,
) -> RankTable:
    networks = [m for m in minima if isinstance(m, Minimum)]
    if len(networks) < len(minima):
        raise UsageError("got tables without gaps; give gaps=, or the networks as Minimum, which can be looked at")
    labels = [f"network {i + 1}" for i in range(len(networks))] if names is None else list(names)
    if len(labels) != len(networks):
        raise UsageError(f"got {len(networks)} networks and {len(labels)} names; give one a network")
    test = None if test is None else as_samples(test)  # read once for all of them
    unlabelled = None if unlabelled is None else without_targets(unlabelled)
    looks = [look(name, m, test, unlabelled) for name, m in zip(labels, networks, strict=True)]
    chosen = budgets.names("fast") if wanted is None else wanted
    tables = [measure(m, chosen) if one.candidate.compared else None for m, one in zip(networks, looks, strict=True)]
    voters = None if wanted is None else [_name(m) for m in wanted]
    choice = choose(looks, tables, voters, seed=seed)
    known = [(t, c, i) for i, (t, c) in enumerate(zip(tables, choice.candidates, strict=True)) if t is not None]
    held = [c.test_error - c.train_error for _, c, _ in known if c.test_error is not None and c.train_error is not None]
    if len(held) < len(known) or not known:
        return RankTable({}, len(minima), choice=choice)
    points = None if hyperparameters is None else [hyperparameters[i] for _, _, i in known]
    found = score(
        [t for t, _, _ in known], held, wanted, hyperparameters=points, seed=seed, confidence=confidence
    )  # fmt: skip
    return replace(found, choice=choice)


def score(
    tables: Sequence[MeasureTable],
    gaps: Sequence[float],
    measures: Sequence[str | MeasureFunction] | None = None,
    *,
    hyperparameters: Sequence[Point] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> RankTable:
    """Measures scored by known gaps; arguments as of `rank`."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    if measures is not None:
        chosen = {_name(m) for m in measures}
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


def _name(measure: str | MeasureFunction) -> str:
    return measure if isinstance(measure, str) else getattr(measure, "__name__", str(measure))


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


def render_correlations(table: RankTable, console: Any) -> None:
    """The table on a rich console, within 80 columns."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("measure", no_wrap=True)
    grid.add_column("tau", justify="right", no_wrap=True)
    grid.add_column("interval", justify="right", no_wrap=True)
    grid.add_column("n", justify="right", no_wrap=True)
    if table.controlled:
        grid.add_column("granulated", justify="right", no_wrap=True)
        grid.add_column("worst", justify="right", no_wrap=True)  # share of pairs in the wrong order
    grid.add_column("agrees", overflow="fold", ratio=1, min_width=len("undecided"))
    for name, c in table.correlations.items():
        if c.tau is None or c.low is None or c.high is None:
            blank = ["-", "-"] if table.controlled else []
            grid.add_row(name, "-", "-", str(c.networks), *blank, f"undefined: {c.undefined}")
        else:
            sure = "yes" if c.low > 0 else "no" if c.high < 0 else "undecided"
            interval = f"{c.low:+.2f} to {c.high:+.2f}"
            grid.add_row(name, f"{c.tau:+.2f}", interval, str(c.networks), *_controls(table, name), sure)
    console.print(grid)


def _controls(table: RankTable, name: str) -> list[str]:
    """Two cells where hyper-parameters were given, else none."""
    if not table.controlled:
        return []
    found = table.controlled.get(name)
    if found is None or found.granulated is None or found.worst is None:
        return ["-", "-"]
    return [f"{found.granulated:+.2f}", f"{found.worst:.0%}"]
