"""`flatminima reproduce` and `flatminima study`: the papers' studies or one's own, and a verdict on each claim."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima.cli.device import usable
from flatminima.cli.options import AsJson, Device, DryRun
from flatminima.cli.terminal import bars, out, say
from flatminima.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from flatminima.studies import Study

_CLAIM_FAILED = 3
_WITH_PAPER = 5  # columns of the table where the papers give numbers

Scale = Annotated[str, typer.Option(help="smoke, cpu or paper.")]
Sets = Annotated[
    str | None, typer.Option("--data", help="Folder with a folder a data set; smoke scale needs none; else the hub.")
]
Output = Annotated[Path, typer.Option(help="Folder for the runs and results.")]
Jobs = Annotated[int, typer.Option("-j", "--jobs", min=1, help="Processes.")]
Shard = Annotated[str, typer.Option(help="i/N: only every N-th run, from the i-th.")]
Engine = Annotated[str, typer.Option(help="local, or ray.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster, or auto; else one is started here.")]
Replication = Annotated[int, typer.Option("--seed", min=0, help="Replication: 1, 2, ... have other seeds.")]
FailOnClaims = Annotated[bool, typer.Option("--fail-on-claims", help="Exit with 3 where a claim fails.")]


def reproduce(
    study: Annotated[str | None, typer.Argument(help="Id of a study; or --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every study.")] = False,
    scale: Scale = "smoke",
    data: Sets = None,
    output: Output = Path("flatminima-studies"),
    jobs: Jobs = 1,
    shard: Shard = "1/1",
    engine: Engine = "local",
    address: Address = None,
    seed: Replication = 0,
    device: Device = None,
    dry_run: DryRun = False,
    show: Annotated[bool, typer.Option("--show", help="Run nothing: table and page of the results there are.")] = False,
    fail_on_claims: FailOnClaims = False,
    as_json: AsJson = False,
) -> None:
    """Run a paper's study; a killed one goes on where it stopped. Says holds, fails or undecided of each claim."""
    from flatminima import studies

    if every == (study is not None):
        raise UsageError(f"name one study ({', '.join(studies.STUDIES)}), or give --all")
    if study is not None and study not in studies.STUDIES:
        raise UnknownName("study", study, studies.STUDIES)
    chosen = [s for s in studies.STUDIES.values() if every or s.id == study]
    if show:
        _finish(
            [_found(s.id, output) for s in chosen if not every or (output / s.id / "results.json").exists()],
            output,
            as_json,
        )
        return
    if dry_run:
        _plan(chosen, output, scale, jobs, _shard(shard), seed, as_json)
        return
    how = {"scale": scale, "data": data, "jobs": jobs, "shard": _shard(shard), "engine": engine, "address": address}
    _run(chosen, output, how | {"device": usable(device), "seed": seed}, fail_on_claims, as_json)


def own_study(
    file: Annotated[Path, typer.Argument(help="Python file that defines STUDY.")],
    scale: Scale = "smoke",
    data: Sets = None,
    output: Output = Path("flatminima-studies"),
    jobs: Jobs = 1,
    shard: Shard = "1/1",
    engine: Engine = "local",
    address: Address = None,
    seed: Replication = 0,
    device: Device = None,
    dry_run: DryRun = False,
    fail_on_claims: FailOnClaims = False,
    as_json: AsJson = False,
) -> None:
    """Run a study of your own, with the runner of the papers' studies. The file's code is executed."""
    chosen = [load(file)]
    if dry_run:
        _plan(chosen, output, scale, jobs, _shard(shard), seed, as_json)
        return
    how = {"scale": scale, "data": data, "jobs": jobs, "shard": _shard(shard), "engine": engine, "address": address}
    _run(chosen, output, how | {"device": usable(device), "seed": seed}, fail_on_claims, as_json)


def load(file: Path) -> Study:
    """STUDY of a Python file, imported by its name, so that other processes find it too.

    Raises:
        UsageError: no such file, no name that Python can import, no STUDY in it, or an error in its code.
    """
    import importlib

    from flatminima.studies import Study

    if file.suffix != ".py" or not file.is_file():
        raise UsageError(f"no Python file {file}; name a file that defines STUDY")
    if not file.stem.isidentifier() or file.stem in sys.modules:
        raise UsageError(f"{file.name} cannot be imported as {file.stem!r}; give the file another name")
    sys.path.insert(0, str(file.resolve().parent))
    try:
        module = importlib.import_module(file.stem)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{file} failed on import: {type(error).__name__}: {error}") from error
    found = getattr(module, "STUDY", None)
    if not isinstance(found, Study):
        raise UsageError(f"{file} defines no STUDY = flatminima.studies.Study(...)")
    return found


def _run(chosen: Sequence[Study], output: Path, how: dict[str, Any], fail_on_claims: bool, as_json: bool) -> None:
    """Studies one after the other, `how` as `studies.reproduce` takes it; then the table and the page."""
    from flatminima import studies

    with bars():
        found = [studies.reproduce(s, output, **how) for s in chosen]
    _finish(found, output, as_json)
    if any(document["missing"] and how["shard"] == (1, 1) for document in found):
        raise typer.Exit(1)
    if fail_on_claims and any(c["verdict"] == "fails" for document in found for c in document["claims"]):
        raise typer.Exit(_CLAIM_FAILED)


def _plan(
    chosen: Sequence[Study], output: Path, scale: str, jobs: int, shard: tuple[int, int], seed: int, as_json: bool
) -> None:
    """What a call would do, and about how long, by the runs that are done; writes nothing."""
    from rich.table import Table

    from flatminima.report.studies import duration
    from flatminima.studies.runner import plan

    plans = [plan(s, output, scale=scale, jobs=jobs, shard=shard, seed=seed) for s in chosen]
    if as_json:
        typer.echo(json.dumps(plans, allow_nan=False))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in ("study", "runs", "done", "to do", "time left", "how it differs from the paper"):
        table.add_column(name, overflow="fold", justify="right" if name in ("runs", "done", "to do") else "left")
    for p in plans:
        left = "-" if p["seconds_left"] is None else f"about {duration(p['seconds_left'])}"
        table.add_row(p["id"], str(p["runs"]), str(p["done"]), str(p["to_do"]), left, p["reduction"])
    out().print(table)
    if any(p["seconds_left"] is None for p in plans):
        say("time left is known once a run of the study is done; the smoke scale takes seconds")


def _shard(text: str) -> tuple[int, int]:
    try:
        index, shards = map(int, text.split("/"))
    except ValueError:
        raise UsageError(f"got --shard {text!r}; give i/N, such as 1/4") from None
    return index, shards


def _found(name: str, output: Path) -> dict[str, Any]:
    file = output / name / "results.json"
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if document["id"] != name or not all(key in document for key in ("claims", "runs", "seconds", "versions")):
            raise ValueError("not the results of this study")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read {file}: {error}; run the study first") from None
    return document


def _finish(found: list[dict[str, Any]], output: Path, as_json: bool) -> None:
    from flatminima.report.studies import write_studies

    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    else:
        _table(found)
    words = [word for word in sys.argv[1:] if word != "--show"]
    say(f"{write_studies(found, output, shlex.join(['flatminima', *_without_paths(words)]))}")


def _without_paths(words: list[str]) -> list[str]:
    """The command without the folders of this machine."""
    return [
        "DATA" if before == "--data" else "FOLDER" if before == "--output" else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def _table(found: list[dict[str, Any]]) -> None:
    from rich.padding import Padding
    from rich.table import Table

    from flatminima.report.studies import duration, here

    console = out()
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("study and claim", overflow="fold", ratio=3)
    if any(c["paper"] for d in found for c in d["claims"]):
        table.add_column("paper", overflow="fold", max_width=14)
    for name, width in (("here", 24), ("verdict", None), ("cost", None)):
        table.add_column(name, overflow="fold", max_width=width)
    for d in found:
        empty = [""] * (len(table.columns) - 2)
        table.add_row(d["id"], *empty, duration(d["seconds"]), style="bold")
        for c in d["claims"]:
            claim = f"{c['claim']}{' (control)' if c['control'] else ''}"
            paper = [c["paper"] or ""] if len(table.columns) == _WITH_PAPER else []
            table.add_row(Padding(claim, (0, 0, 0, 2)), *paper, here(c), c["verdict"], "")
        for run in d["runs"]:
            if "error" in run:
                say(f"{d['id']}: a run failed: {run['config']}: {run['error']}")
        if d["missing"]:
            say(f"{d['id']}: {d['missing']} runs are missing, failed or another process's; the same command runs them")
    console.print(table)
