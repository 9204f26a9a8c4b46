"""A certificate as `flatminima certify` shows it: on stdout, as JSON, and as a plot in the folder of --output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flatminima.cli.terminal import say, tell
from flatminima.errors import UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.certification import Certificate

WRITES = ("certificate.json", "weights.safetensors", "certificate.svg")


def show(found: Certificate, output: Path | None, as_json: bool) -> None:
    """The result on stdout, and its plot in the folder."""
    document = found.to_dict() | {"schema": 2}
    if as_json:
        typer.echo(json_text(document))
    else:
        tell(_text(found))
    sys.stdout.flush()  # before the notes, where both go to one terminal
    if output is None:
        say("", "Next: the same with --output FOLDER keeps the certificate, its weights and a plot")
        return
    record, _, plot = (output / name for name in WRITES)
    _draw(found, plot)
    say("", f"Certificate: {record}", f"Plot:        {plot}")
    say(f"Next:        flatminima certify --verify {record} --data ...")


def recorded(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record in a file, or the demonstration's, its verdict derived again: one written into it is not printed.

    Raises:
        CheckpointError: its bounds do not follow from its own counts.
    """
    from flatminima.certification.pipeline import derived

    if path.name != "results.json":
        return derived(document, path)
    if not isinstance(document.get("certificate"), dict):
        raise UsageError(f"{path} holds no certificate of the demonstration; run the command again")
    return document | {"certificate": derived(document["certificate"], path)}


def draw_again(folder: Path) -> None:
    """The plot that lies in a folder, from the record beside it: an edited plot is no verdict either."""
    from flatminima.certification import Certificate
    from flatminima.cli.report import read

    record, _, plot = (folder / name for name in WRITES)
    if record.is_file() and plot.is_file():
        _draw(Certificate.from_dict(recorded(read(record), record)), plot)


def _text(c: Certificate) -> str:
    lines = [str(c)]
    test = c.details.get("test")
    if test is not None:
        gap = c.risk_bound - test["error"]
        lines.append(f"  error on {test['n']} test samples      {test['error']:.4f}, {gap:.4f} below the bound")
    for name, value in c.terms().items():
        lines.append(f"  of the bound: {name:<17} {value:.4f}")
    return "\n".join(lines)


def _draw(c: Certificate, path: Path) -> None:
    from flatminima.io import write_whole
    from flatminima.report.plots import certificate_terms
    from flatminima.report.theme import standalone

    beside = {"hold-out bound": c.holdout_bound, "errors seen": c.empirical_risk, "constant answer": c.constant_error}
    if "test" in c.details:
        beside["test error"] = c.details["test"]["error"]
    drawn = certificate_terms(c.risk_bound, c.terms(), beside, standing=c.standing, title=c.statement)
    write_whole(path, standalone(drawn) + "\n")
