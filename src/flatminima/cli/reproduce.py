"""`flatminima reproduce`: a paper's study run again, and a verdict on each of its claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flatminima.cli.options import AsJson
from flatminima.cli.terminal import bars, out, say
from flatminima.errors import UnknownName, UsageError

_CLAIM_FAILED = 3


def reproduce(
    study: Annotated[str | None, typer.Argument(help="Id of a study; or --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every study.")] = False,
    scale: Annotated[str, typer.Option(help="smoke, cpu or paper.")] = "smoke",
    data: Annotated[
        str | None, typer.Option(help="Folder with a folder a data set; smoke scale needs none; else the hub.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the runs and results.")] = Path("flatminima-studies"),
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Processes.")] = 1,
    shard: Annotated[str, typer.Option(help="i/N: only every N-th run, from the i-th.")] = "1/1",
    fail_on_claims: Annotated[bool, typer.Option("--fail-on-claims", help="Exit with 3 where a claim fails.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a paper's study; a killed one goes on where it stopped. Says holds, fails or undecided of each claim."""
    from flatminima import studies

    part = _shard(shard)
    if every == (study is not None):
        raise UsageError(f"name one study ({', '.join(studies.STUDIES)}), or give --all")
    if study is not None and study not in studies.STUDIES:
        raise UnknownName("study", study, studies.STUDIES)
    chosen = [s for s in studies.STUDIES.values() if every or s.id == study]
    with bars():
        found = [studies.reproduce(s, output, scale=scale, data=data, jobs=jobs, shard=part) for s in chosen]
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    else:
        _show(found)
    if any(document["missing"] and part == (1, 1) for document in found):
        raise typer.Exit(1)
    if fail_on_claims and any(c["verdict"] == "fails" for document in found for c in document["claims"]):
        raise typer.Exit(_CLAIM_FAILED)


def _shard(text: str) -> tuple[int, int]:
    try:
        index, shards = map(int, text.split("/"))
    except ValueError:
        raise UsageError(f"got --shard {text!r}; give i/N, such as 1/4") from None
    return index, shards


def _show(found: list[dict[str, Any]]) -> None:
    console = out()
    for d in found:
        console.print(f"{d['id']}: {d['title']} ({d['paper']})", markup=False)
        console.print(f"  {d['scale']} scale: {d['reduction']}; {d['seconds']:.0f} s", markup=False)
        for c in d["claims"]:
            whose = "control" if c["control"] else "paper"
            console.print(f"  {c['verdict']:9} {_number(c)}  {c['claim']} [{whose}]", markup=False, soft_wrap=True)
        for run in d["runs"]:
            if "error" in run:
                say(f"  failed: {run['config']}: {run['error']}")
        if d["missing"]:
            say(f"  {d['missing']} runs are missing or failed; the same command runs them")


def _number(claim: dict[str, Any]) -> str:
    if claim["statistic"] is None:
        return f"no {claim['measured']}"
    text = f"{claim['measured']} {claim['statistic']:+.3g}"
    return text if claim["low"] is None else f"{text}, {claim['low']:+.3g} to {claim['high']:+.3g}"
