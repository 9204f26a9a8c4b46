"""`flatminima list`: every measure, bound and statistic; reads the catalogue only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flatminima import catalog
from flatminima.catalog.uses import used_by
from flatminima.cli.options import AsJson
from flatminima.cli.terminal import out
from flatminima.io import json_text

Statistics = Annotated[
    bool, typer.Option("--statistics", help="The statistics that measures are made of, in place of the measures.")
]


def listing(
    statistics: Statistics = False,
    as_json: AsJson = False,
) -> None:
    """List every measure and bound: paper, equation, what it needs, what it is invariant to, what it proves."""
    if as_json:
        kinds: dict[str, Mapping[str, Any]] = {
            "measures": catalog.MEASURES,
            "statistics": catalog.STATISTICS,
            "bounds": catalog.BOUNDS,
            "optimizers": catalog.OPTIMIZERS,
            "networks": catalog.NETWORKS,
        }
        rows = {kind: [_document(row) for row in table.values()] for kind, table in kinds.items()}
        typer.echo(json_text({"schema": 1, **rows, "studies": list(catalog.STUDY_FILES)}))
        return
    if statistics:
        _list_statistics()
        return
    console = out()
    console.print("Look at these first\n", markup=False)
    for name, question in catalog.FIRST.items():
        console.print(f"[bold]{name}[/bold]")
        console.print(f"    {question}", markup=False)
        console.print(f"    needs: {catalog.MEASURES[name].needs}", markup=False)
    console.print("\nAll measures\n", markup=False)
    for m in catalog.MEASURES.values():
        arrow = "lower is better" if m.direction == "lower" else "higher is better"
        console.print(f"[bold]{m.name}[/bold]  ({arrow})")
        console.print(f"    {m.summary}", markup=False)
        console.print(f"    {m.paper}, {m.equation}", markup=False)
        console.print(f"    needs: {m.needs}", markup=False)
        if m.undefined:
            console.print(f"    not defined for: {m.undefined}", markup=False)
        console.print(f"    {m.invariance}", markup=False)
        console.print(f"    budget: {m.budget}", markup=False)
    console.print("\nBounds: a CERT holds with probability 1 - delta, a SCORE proves nothing\n", markup=False)
    for b in catalog.BOUNDS.values():
        console.print(f"[bold]{b.name}[/bold]  {b.label}")
        console.print(f"    {b.summary} ({', '.join(filter(None, (str(b.paper), b.equation)))})", markup=False)
        console.print(f"    {'rests on' if b.label == 'CERT' else 'because of'}: {b.needs}", markup=False)
    console.print("\nOptimizers: flatminima train --method NAME\n", markup=False)
    for o in catalog.OPTIMIZERS.values():
        console.print(f"[bold]{o.name}[/bold]")
        console.print(f"    {o.summary} ({o.paper}, {o.equation})", markup=False)
    console.print("\nNetworks: --model flatminima.models:NAME\n", markup=False)
    for n in catalog.NETWORKS.values():
        console.print(f"[bold]{n.name}[/bold]")
        console.print(f"    {n.summary}" + (f" ({n.paper})" if n.paper else ""), markup=False)
    console.print("\nStudies: flatminima reproduce NAME\n", markup=False)
    console.print(f"    {', '.join(catalog.STUDY_FILES)}", markup=False)
    counts = f"{len(catalog.MEASURES)} measures, {len(catalog.BOUNDS)} bounds"
    console.print(f"\n{counts}. Next: flatminima measure --help, certify --help", markup=False)
    console.print(f"{len(catalog.STATISTICS)} statistics: flatminima list --statistics", markup=False)


def _list_statistics() -> None:
    """What a `Minimum` can be asked for by value."""
    users, console = used_by(), out()
    console.print("Statistics: minimum[flatminima.statistics.NAME(...)], each computed once\n", markup=False)
    for s in catalog.STATISTICS.values():
        console.print(f"[bold]{s.name}[/bold]")
        console.print(f"    {s.summary}" + (f" ({s.source})" if s.source else ""), markup=False)
        console.print(f"    cost: {s.cost}", markup=False)
        if users[s.name]:
            console.print(f"    used by: {', '.join(users[s.name])}", markup=False)
    console.print(
        "\nW: weights, C: outputs; passes over all the data at the defaults, where no samples are said.", markup=False
    )


def _document(row: Any) -> dict[str, Any]:
    """A row for a program: the paper by its short citation and its key, sets as lists, no options of tests."""
    found = asdict(row) | {"paper": None if row.paper is None else row.paper.short}
    found["paper_key"] = None if row.paper is None else row.paper.key
    if "invariant" in found:
        found["invariant"] = sorted(row.invariant)
    return {key: value for key, value in found.items() if key not in ("small", "module")}
