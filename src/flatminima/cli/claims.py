"""`flatminima reproduce --claims`: the papers' sentences, what tries each, and what the results of a folder say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flatminima.cli.studies import read_from
from flatminima.cli.terminal import out, say
from flatminima.errors import UnknownName, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.studies.claims import Finding


def listed(output: Path, paper: str | None, study: str | None, *, as_json: bool, markdown: bool) -> None:
    """Print the claims of a paper or of a study, of all by default: a table, JSON, or the report in Markdown.

    Raises:
        UnknownName: no such paper. UsageError: no claim is of both, or results that cannot be judged.
    """
    from flatminima.studies import STUDIES
    from flatminima.studies.claims import evaluate, papers
    from flatminima.studies.result_files import documents

    if paper is not None and paper not in papers():
        raise UnknownName("paper", paper, papers())
    results = [d for d in documents(output) if d["id"] in STUDIES]
    if not results:
        say(f"no results in {output}: what runs decide is not tried there; name a folder of studies with --output")
    with read_from(output):
        findings = evaluate(results, paper=paper, study=study)
    if not findings:
        raise UsageError(f"no sentence of {paper} is tried by {study}; leave out one of the two")
    if as_json:
        typer.echo(json_text([f.to_dict() for f in findings], None))
    elif markdown:
        from flatminima.report.claims import claims_page
        from flatminima.studies.claims import papers
        from flatminima.studies.index import together

        titles = {key: found.title for key, found in papers().items()}
        typer.echo(claims_page([f.to_dict() for f in findings], together(results)[0], titles), nl=False)
    else:
        _table(findings, whole=paper is None and study is None)


def _table(findings: list[Finding], *, whole: bool) -> None:
    from rich.table import Table

    from flatminima.report.verdicts import elided, here, summary

    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    for name, width in (("claim", 24), ("verdict", 12), ("sentence and what is here", 40)):
        table.add_column(name, overflow="fold", max_width=width)
    for f in findings:
        said = f'"{elided(f.claim.quote)}"'
        if f.verdict is not None:
            said += f"\n{f.scale}: {f.verdict.note if f.scale == 'calculation' else here(f.verdict.to_dict())}"
        elif f.claim.needs:
            said += f"\nneeds {f.claim.needs}"
        table.add_row(f"{f.claim.id}\n{f.claim.paper}, {f.claim.where}", f.word, said)
    console = out()
    console.print(table, markup=False)
    for line in summary([f.to_dict() for f in findings], whole=whole):
        console.print(line, markup=False)
