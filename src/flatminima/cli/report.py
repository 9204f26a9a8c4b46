"""`flatminima report`: the page again from the numbers in a folder, without computing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flatminima.cli.terminal import say
from flatminima.errors import FlatMinimaError, UsageError

_NUMBERS = ("measures.json", "results.json")  # of `measure` and of `demo`


def report(
    folder: Annotated[Path, typer.Argument(help="Where `measure --output` or `demo` left its numbers.")],
) -> None:
    """Write report.html again from the numbers that are there."""
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; give the --output of an earlier command")
    found = next((folder / name for name in _NUMBERS if (folder / name).is_file()), None)
    if found is None:
        raise UsageError(f"{folder} holds neither {' nor '.join(_NUMBERS)}; give the --output of measure or demo")
    document = _read(found)
    from flatminima.report import write_measures, write_report

    write = write_measures if found.name == _NUMBERS[0] else write_report
    page = folder / "report.html"
    try:
        write(document, page)
    except FlatMinimaError:
        raise
    except Exception as error:  # an edited document may break any part of a page
        reason = str(error) or type(error).__name__
        raise UsageError(f"{found} is not what this version writes ({reason}); run the command again") from None
    say(f"Report: {page}")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}; run the command again") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} holds no JSON object; run the command again")
    return document
