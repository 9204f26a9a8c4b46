"""`flatminima doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

from dataclasses import asdict

import typer

from flatminima.cli.options import AsJson
from flatminima.cli.terminal import out
from flatminima.io import json_text

BROKEN = 3  # the exit code of what ran and found a failure
_MARKS = {"works": "ok", "absent": "--", "caution": "!", "broken": "X"}


def doctor(
    as_json: AsJson = False,
) -> None:
    """Say what works here: versions, devices, torchvision, second derivatives, threads; exits 3 if one does not."""
    from flatminima.doctor import examine

    findings = examine()
    broken = [f.what for f in findings if f.status == "broken"]
    if as_json:
        typer.echo(json_text({"schema": 1, "broken": broken, "findings": [asdict(f) for f in findings]}))
    else:
        console = out()
        for f in findings:
            console.print(f"{_MARKS[f.status]:>2}  {f.what}: {f.found}", markup=False)
            if f.do:
                console.print(f"      -> {f.do}", markup=False)
        console.print(f"\n{', '.join(broken)} broken" if broken else "\nNothing is broken.", markup=False)
    if broken:
        raise typer.Exit(BROKEN)
