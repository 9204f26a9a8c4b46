"""`flatminima report`: the page again from the numbers in a folder, without computing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flatminima.cli.certificate import draw_again, recorded
from flatminima.cli.terminal import say
from flatminima.errors import FlatMinimaError, UsageError
from flatminima.io import PATIENCE, claimed
from flatminima.untrusted import Unreadable, read_json

_NUMBERS = ("measures.json", "results.json", "certificate.json", "landscape.json", "result.json", "rank.json")


def report(
    folder: Annotated[Path, typer.Argument(help="The --output of an earlier command.")],
) -> None:
    """Write report.html again from the numbers that are there."""
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; give the --output of an earlier command")
    found = next((folder / name for name in _NUMBERS if (folder / name).is_file()), None)
    if found is None and (_studies(folder) or _tracked(folder)):
        return
    if found is None:
        raise UsageError(f"{folder} holds none of {', '.join(_NUMBERS)}; give the --output of an earlier command")
    document = read(found)
    if found.name == "results.json" and "claims" in document:  # of one study, whose page is that of its folder
        _studies(folder.resolve().parent)
        return
    page = folder / "report.html"
    try:
        with claimed(folder, wait=PATIENCE):
            draw_again(folder)
            _write(document, found, page)
    except FlatMinimaError:
        raise
    except Exception as error:  # an edited document may break any part of a page
        reason = str(error) or type(error).__name__
        raise UsageError(f"{found} is not what this version writes ({reason}); run the command again") from None
    say(f"Report: {page}")


def _studies(folder: Path) -> bool:
    """The page of the studies that `reproduce` or `own-study` left there, where there are any."""
    from flatminima.cli.reproduce import show_again
    from flatminima.studies.result_files import documents

    if not documents(folder):
        return False
    show_again(folder)
    return True


def _tracked(folder: Path) -> bool:
    """The page of a Tracker's log, where that is all that lies there."""
    from flatminima.cli.track import LOG, track

    if not (folder / LOG).is_file():
        return False
    track(folder)
    return True


def _write(document: dict[str, Any], found: Path, page: Path) -> None:
    from flatminima.io import write_whole
    from flatminima.report import write_measures, write_report
    from flatminima.report.folder import PAGES, folder_page

    if found.name == "rank.json" and "choice" in document:
        from flatminima.report.ranking import write_ranking

        write_ranking(document, page)
    elif found.name in PAGES:
        sure = recorded(document, found) if found.name == "certificate.json" else document
        write_whole(page, folder_page(found.name, sure, found.parent))
    elif found.name == "measures.json":
        write_measures(document, page)
    else:
        write_report(recorded(document, found), page)


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file that a command wrote."""
    try:
        document = read_json(path)
    except Unreadable as error:
        raise UsageError(f"cannot read {path}: {error}; run the command again") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} holds no JSON object; run the command again")
    return document
