"""Studies as `flatminima reproduce` shows them: the plan, the table of claims, the page of the whole folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flatminima.cli.terminal import out, say
from flatminima.errors import FlatMinimaError, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.studies import Study


def plan_table(
    chosen: Sequence[Study], output: Path, scale: str, jobs: int, shard: tuple[int, int], seed: int, as_json: bool
) -> None:
    """Plan what a call would do, and about how long, by the runs that are done; writes nothing."""
    from rich.table import Table

    from flatminima.report.verdicts import duration
    from flatminima.studies.runner import plan

    plans = [plan(s, output, scale=scale, jobs=jobs, shard=shard, seed=seed) for s in chosen]
    if as_json:
        typer.echo(json_text(plans, None))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in ("study", "runs", "done", "to do", "time left", "how it differs from the paper"):
        table.add_column(name, overflow="fold", justify="right" if name in ("runs", "done", "to do") else "left")
    for p in plans:
        left = "-" if p["seconds_left"] is None else f"about {duration(p['seconds_left'])}"
        table.add_row(p["id"], str(p["runs"]), str(p["done"]), str(p["to_do"]), left, p["reduction"])
    out().print(table, markup=False)
    if any(p["seconds_left"] is None for p in plans):
        say("time left is known once a run of the study is done; the smoke scale takes seconds")


@contextmanager
def read_from(output: Path) -> Iterator[None]:
    """Say of results that somebody edited where they are, as they may break any part of a page."""
    try:
        yield
    except (FlatMinimaError, typer.Exit):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UsageError(
            f"the results in {output} are not what this version writes ({reason}); run the study again"
        ) from error


def finish(
    output: Path, wanted: Sequence[tuple[str, str]], as_json: bool, shard: tuple[int, int] = (1, 1)
) -> list[dict[str, Any]]:
    """The page of everything in the folder, and the table of the studies and scales that are wanted."""
    from flatminima.io import PATIENCE, claimed
    from flatminima.report.studies import write_studies
    from flatminima.studies.index import together
    from flatminima.studies.result_files import documents

    whole, findings = together(documents(output))
    found = [d for d in whole if (d["id"], d["scale"]) in wanted]
    if as_json:
        typer.echo(json_text(found, None))
    else:
        _table(found, shard)
    command = shlex.join(["flatminima", *_without_paths(sys.argv[1:])])
    of_papers = [f.to_dict() for f in findings] if any(not d["own"] for d in whole) else []
    with claimed(output, wait=PATIENCE):
        page = write_studies(whole, output, command, of_papers)
    say(f"{page}")
    return found


def _without_paths(words: list[str]) -> list[str]:
    """The command without the folders of this machine."""
    hidden = {"--data": "DATA", "--output": "FOLDER"}
    found = []
    for before, word in zip(["", *words], words, strict=False):
        name, given, _ = word.partition("=")
        shown = f"{name}={hidden[name]}" if given and name in hidden else word
        shown = Path(word).name if word.endswith(".py") else shown
        found.append(hidden.get(before, shown))
    return found


def _table(found: Sequence[dict[str, Any]], shard: tuple[int, int]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from flatminima.report.verdicts import duration, here

    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("study and claim", overflow="fold", ratio=3)
    for name, width in (("here", 26), ("verdict", 12), ("cost", None)):
        table.add_column(name, overflow="fold", max_width=width)
    for d in found:
        table.add_row(f"{d['id']}, {d['scale']}", "", "", duration(d["seconds"]), style="bold")
        if d["scale"] == "smoke" and not d["claims"]:
            table.add_row(
                Padding("smoke scale shows that the study runs, and decides nothing", (0, 0, 0, 2)), "", "", ""
            )
        for c in d["claims"]:
            claim = f'"{c["claim"]}" ({c["where"]})' if c.get("id") else c["claim"]
            other, alone = c.get("decided_by"), c.get("alone")
            number = here(c) if not other else "not tried" if alone is None else here(alone)
            word = f"{c['verdict']}, by {other}" if other else c["verdict"]
            said = Text(f"{claim}{' (control)' if c['control'] else ''}")
            table.add_row(Padding(said, (0, 0, 0, 2)), number, word, "")
        for run in d["runs"]:
            if "error" in run:
                say(f"{d['id']}: a run failed: {run['config']}: {run['error']}")
        if d["missing"]:
            whose = "another process's; the same command runs them" if shard == (1, 1) else "of other shards"
            say(f"{d['id']}: {d['missing']} runs are missing, failed or {whose}")
    out().print(table, markup=False)
