"""`flatminima track`: a run's log as a page, once or again and again while the run goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from flatminima.cli.terminal import say, tell
from flatminima.errors import FlatMinimaError, UsageError
from flatminima.io import json_text, write_whole


def track(
    log: Annotated[Path, typer.Argument(help="The log of a Tracker, or the folder of `flatminima train --track`.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Of the page; by default beside the log, ending in .html.")
    ] = None,
    watch: Annotated[
        int | None, typer.Option("--watch", min=1, help="Write it again every so many seconds, until Ctrl-C.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Show the curvature of a run that a Tracker follows: loss, eigenvalue and threshold, trace, events."""
    file = log / LOG if log.is_dir() else log
    if not file.is_file():
        raise UsageError(f"no file {file}; give the log=... of a Tracker, or the --output of flatminima train --track")
    target = output or file.with_suffix(".html")
    while True:
        table, sentences = _write(file, target, watch)
        if watch is None:
            break
        time.sleep(watch)
    if as_json:
        typer.echo(json_text({"schema": 1, "header": table.header, "rows": list(table)}, None))
    else:
        tell("\n".join(sentences))
    say(f"Page: {target}")


LOG = "track.jsonl"  # in the folder of `flatminima train`


def _write(file: Path, target: Path, watch: int | None) -> tuple[Any, list[str]]:
    """Write the page; the table, and its summary in sentences."""
    from flatminima.track.page import page, summary_sentences
    from flatminima.track.table import TrackTable

    table = TrackTable.read(file)
    try:
        text, sentences = page(table, refresh=watch), list(summary_sentences(table))
    except FlatMinimaError:
        raise
    except Exception as error:  # an edited log may break any part of the page
        reason = str(error) or type(error).__name__
        raise UsageError(f"{file} has rows that this version does not write ({reason}); track the run again") from None
    write_whole(target, text)
    return table, sentences
