"""`flatminima demo`: from nothing to a ranked table, a certificate and a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flatminima.cli.options import AsJson, Seed
from flatminima.cli.terminal import WIDTH, bars, number, out, say
from flatminima.display import ceiled_percent, probability
from flatminima.io import json_text

_BETWEEN = 3  # spaces that rich puts between two columns of this box


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report and the results.")] = Path("flatminima-demo"),
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Four networks, fewer samples: a smoke test.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not reuse what an earlier run left.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train networks on digits, measure them, rank the measures, certify the best one."""
    from flatminima.demo import DEMO_MEASURES, recipes, run_demo
    from flatminima.report import write_report

    say(
        f"1. train {len(recipes(seed, quick))} networks on the digits: other batch sizes, rates, wrong labels;",
        f"   measure each with {len(DEMO_MEASURES)} measures (this takes most of the time)",
        "2. rank the measures, certify the best network",
    )
    with bars():
        results = run_demo(output, seed=seed, quick=quick, fresh=fresh)
    if as_json:
        typer.echo(json_text(results, None))
    else:
        _show(results)
    sys.stdout.flush()  # before the notes, where both go to one terminal
    page = output / "report.html"
    say("3. draw the report")
    write_report(results, page)
    say("", f"Report:  {page}", f"Results: {output / 'results.json'}  ({results['seconds']:.0f} s)")
    say("Next:    flatminima measure --help measures a network of yours")


def _show(results: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    console = out()
    quick = " - quick run: fewer networks and samples" if results["quick"] else ""
    title = f"Networks (errors in %, on labels as noisy as the training's){quick}"
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in ("network", "train loss", "train", "test", "gap"):
        grid.add_column(name, justify="left" if name == "network" else "right", no_wrap=True)
    for n in results["networks"]:
        mark = " *" if n["name"] == results["best"] else ""
        row = [f"{n['train_loss']:.4f}", *(f"{100 * n[k]:.1f}" for k in ("train_error", "test_error", "gap"))]
        grid.add_row(n["name"] + mark, *row)
    console.print(grid)
    console.print("* lowest training error on clean labels; +- is one standard error", markup=False)
    for names in _columns(results):
        console.print(_measures(results, names))
    console.print(_ranking(results["ranking"]))
    for line in _certificate(results["certificate"]):
        console.print(line, markup=False)


def _certificate(c: dict[str, Any]) -> list[str]:
    """The certificate in plain words, at most 80 columns."""
    lines = [
        c["statement"],
        f"  of a network trained by the recipe of *, {c['recipe']}",
        f"  With probability {probability(c['delta'])} over the samples, the network that draws its weights",
        f"  from N(w, {c['sigma']:g}^2) at each prediction errs on at most {ceiled_percent(c['risk_bound'])} "
        "of new digits.",
        f"  It errs on {100 * c['gibbs_test_error']:.1f}% of the test set, "
        f"{100 * c['empirical_risk']:.1f}% of the bound's {c['n']} samples.",
        f"  KL {c['kl']:.1f} nats; {c['draws']} draws of the weights; union over {c['candidates']} priors;",
        f"  a constant answer errs on {100 * c['constant_error']:.1f}% of these samples;",
        f"  prior: {c['prior']}.",
    ]
    if c["holdout_bound"] is not None:
        lines.append(f"  Hold-out bound, same samples: {ceiled_percent(c['holdout_bound'])} ({c['holdout_network']}).")
    return [*lines, *(f"  FAILS: {a['text']} ({a['evidence']})" for a in c["assumptions"] if a["holds"] is False)]


def _columns(results: dict[str, Any]) -> list[list[str]]:
    """Measures in groups, each a table of networks by measures that fits 80 columns."""
    left = max(len(n["name"]) for n in results["networks"]) + 1
    groups: list[list[str]] = []
    room = 0
    for name, c in results["ranking"].items():
        if c["tau"] is None:
            continue
        width = _BETWEEN + max(len(name), *(len(_cell(n, name)) for n in results["networks"]))
        if width > room:
            groups.append([])
            room = WIDTH - left
        groups[-1].append(name)
        room -= width
    return groups


def _cell(network: dict[str, Any], name: str) -> str:
    e = network["measures"]["measures"][name]
    if e["value"] is None:
        return "undefined"
    return number(e["value"], e["stderr"])


def _measures(results: dict[str, Any], names: list[str]) -> Any:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("network", no_wrap=True)
    for name in names:
        grid.add_column(name, justify="right", no_wrap=True)
    for network in results["networks"]:
        grid.add_row(network["name"], *(_cell(network, name) for name in names))
    return grid


def _ranking(ranking: dict[str, Any]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = "Kendall's tau with the generalization gap, 95% interval"
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in ("measure", "tau", "interval", "networks", "agrees"):
        grid.add_column(name, justify="left" if name in ("measure", "agrees") else "right", no_wrap=name != "agrees")
    for name, c in ranking.items():
        if c["tau"] is None:
            grid.add_row(name, "-", "-", str(c["networks"]), escape(c["undefined"]))
            continue
        sure = "yes" if c["low"] > 0 else "no" if c["high"] < 0 else "undecided"
        grid.add_row(name, f"{c['tau']:+.2f}", f"{c['low']:+.2f} to {c['high']:+.2f}", str(c["networks"]), sure)
    return grid
