"""`flatminima list`: every measure and bound; reads the catalogue only."""

from __future__ import annotations

from dataclasses import asdict

import typer

from flatminima import catalog
from flatminima.cli.options import AsJson
from flatminima.cli.terminal import out
from flatminima.io import json_text


def listing(
    as_json: AsJson = False,
) -> None:
    """List every measure and bound: paper, equation, what it needs, what it is invariant to, what it proves."""
    if as_json:
        rows = [asdict(m) | {"invariant": sorted(m.invariant)} for m in catalog.MEASURES.values()]
        bounds = [asdict(b) for b in catalog.BOUNDS.values()]
        typer.echo(json_text({"schema": 1, "measures": rows, "bounds": bounds}))
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
        console.print(f"    {_invariance(m)}", markup=False)
        console.print(f"    budget: {m.budget}", markup=False)
    console.print("\nBounds: a CERT holds with probability 1 - delta, a SCORE proves nothing\n", markup=False)
    for b in catalog.BOUNDS.values():
        console.print(f"[bold]{b.name}[/bold]  {b.label}")
        console.print(f"    {b.summary} ({', '.join(filter(None, (b.paper, b.equation)))})", markup=False)
        console.print(f"    {'rests on' if b.label == 'CERT' else 'because of'}: {b.needs}", markup=False)
    counts = f"{len(catalog.MEASURES)} measures, {len(catalog.BOUNDS)} bounds"
    console.print(f"\n{counts}. Next: flatminima measure --help, certify --help", markup=False)


def _invariance(measure: catalog.Measure) -> str:
    """What rescaling the layers of a ReLU network, which changes no output, does to the measure."""
    if catalog.UNITWISE in measure.invariant:
        return "rescaling-invariant, by layers and by units"
    if catalog.LAYERWISE in measure.invariant:
        return "invariant where whole layers are rescaled, not where units are"
    return "not rescaling-invariant: compare networks of one parameterisation"
