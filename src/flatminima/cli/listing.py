"""`flatminima list`: every measure; reads the catalogue only."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from flatminima import catalog
from flatminima.cli.terminal import out


def listing(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List every measure: paper, equation, direction, what it needs, what it is invariant to."""
    if as_json:
        rows = [asdict(m) | {"invariant": sorted(m.invariant)} for m in catalog.MEASURES.values()]
        typer.echo(json.dumps({"schema": 1, "measures": rows}, indent=1))
        return
    console = out()
    for m in catalog.MEASURES.values():
        arrow = "lower is better" if m.direction == "lower" else "higher is better"
        console.print(f"[bold]{m.name}[/bold]  ({arrow})")
        console.print(f"    {m.summary}", markup=False)
        console.print(f"    {m.paper}, {m.equation}", markup=False)
        console.print(f"    needs: {m.needs}", markup=False)
        console.print(f"    unchanged by (measured): {', '.join(sorted(m.invariant)) or 'nothing tried'}", markup=False)
        console.print(f"    budget: {m.budget}", markup=False)
    console.print(f"\n{len(catalog.MEASURES)} measures. Next: flatminima measure --help", markup=False)
